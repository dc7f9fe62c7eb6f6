// Jinja as chat templates use it: the subset that the published templates of Llama, Qwen, Mistral,
// Gemma, Phi and SmolLM need, with the environment that transformers gives them (trim_blocks,
// lstrip_blocks, loop controls, {% generation %}, tojson without HTML escaping, raise_exception,
// strftime_now, immutable lists and dicts).
//
// Not supported: include, import, extends, block, recursive loops, autoescaping, integers beyond 64
// bits. A template is as hostile as any file: parsing and rendering are bounded in depth, steps and
// bytes.
#pragma once
#include <cstdint>
#include <ctime>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace lathe {

struct JinjaLimits {
  // About 50 ns each; a conversation of 1,000 messages takes some 100,000.
  int64_t max_steps = 20'000'000;
  // All text and lists that the template makes, output included.
  int64_t max_bytes = int64_t{512} << 20;
};

class JinjaTemplate {
 public:
  // Throws kCorruptData, naming the line, for what is not a template; kUnsupported for Jinja
  // outside of the subset.
  explicit JinjaTemplate(std::string_view source);
  ~JinjaTemplate();
  JinjaTemplate(JinjaTemplate&&) noexcept;
  JinjaTemplate& operator=(JinjaTemplate&&) noexcept;

  // Renders with the members of `variables` (an object) as variables. Thread-safe. Throws
  // kInvalidArgument with the template's own words for raise_exception(), and for what the template
  // does wrong with these variables; kUnsupported when a limit is hit. `now`: the time of
  // strftime_now, else the clock's.
  std::string render(const nlohmann::ordered_json& variables, const JinjaLimits& limits = {},
                     std::optional<std::time_t> now = std::nullopt) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace lathe
