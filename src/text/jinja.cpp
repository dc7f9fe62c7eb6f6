#include "text/jinja.h"

#include "base/json.h"
#include "text/jinja_ast.h"
#include "text/jinja_interpreter.h"

namespace lathe {

struct JinjaTemplate::Impl {
  jinja::Body body;
};

JinjaTemplate::JinjaTemplate(std::string_view source)
    : impl_(std::make_unique<const Impl>(Impl{jinja::parse_template(source)})) {}
JinjaTemplate::~JinjaTemplate() = default;
JinjaTemplate::JinjaTemplate(JinjaTemplate&&) noexcept = default;
JinjaTemplate& JinjaTemplate::operator=(JinjaTemplate&&) noexcept = default;

std::string JinjaTemplate::render(const nlohmann::ordered_json& variables,
                                  const JinjaLimits& limits, std::optional<std::time_t> now) const {
  jinja::Budget budget(limits.max_steps, limits.max_bytes);
  std::vector<std::pair<std::string, jinja::Value>> values;
  for (const auto& [name, value] : variables.items()) {
    values.emplace_back(name, jinja::from_json(value, budget));
  }
  jinja::Interpreter interpreter(budget, now ? *now : std::time(nullptr));
  return interpreter.run(impl_->body, std::move(values));
}

}  // namespace lathe
