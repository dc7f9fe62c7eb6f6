// Global functions, and how arguments meet a signature.
#include <algorithm>
#include <array>

#include "text/jinja_interpreter.h"

namespace lathe::jinja {

Parameters::Parameters(const Arguments& arguments, std::string_view function,
                       std::initializer_list<std::string_view> names)
    : function_(function), names_(names), values_(names.size()) {
  if (arguments.positional.size() > names_.size()) {
    template_error(function, "() takes at most ", names_.size(), " arguments (",
                   arguments.positional.size(), " given)");
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find(names_.begin(), names_.end(), name);
    if (found == names_.end()) {
      template_error(function, "() got an unexpected keyword argument '", name, "'");
    }
    values_[found - names_.begin()] = &value;
  }
}

const Value& Parameters::required(size_t index) const {
  if (values_[index] == nullptr) {
    template_error(function_, "() misses its argument '", names_[index], "'");
  }
  return *values_[index];
}

int64_t Parameters::integer(size_t index, int64_t otherwise) const {
  const Value* value = values_[index];
  if (value == nullptr || value->is_none()) return otherwise;
  if (!value->is_integer()) {
    template_error(function_, "(): '", names_[index], "' is a ", value->type_name(),
                   ", not an integer");
  }
  return value->integer();
}

bool Parameters::boolean(size_t index, bool otherwise) const {
  return values_[index] == nullptr ? otherwise : values_[index]->truthy();
}

const std::string* Parameters::text(size_t index) const {
  const Value* value = values_[index];
  if (value == nullptr || value->is_none()) return nullptr;
  if (!value->is_string()) {
    template_error(function_, "(): '", names_[index], "' is a ", value->type_name(),
                   ", not a string");
  }
  return &value->text();
}

namespace {

constexpr std::array<std::string_view, 8> kFunctions = {
    "range", "dict", "namespace", "raise_exception", "strftime_now", "cycler", "joiner", "lipsum"};

Value range(Interpreter& interpreter, const Arguments& arguments) {
  const Parameters p(arguments, "range", {"start", "stop", "step"});
  const bool one = p[1] == nullptr;
  const int64_t start = one ? 0 : p.integer(0, 0);
  p.required(0);
  const int64_t stop = one ? p.integer(0, 0) : p.integer(1, 0);
  const int64_t step = p.integer(2, 1);
  if (step == 0) template_error("range() arg 3 must not be zero");
  // jinja2's sandbox allows as many.
  constexpr uint64_t kMaxItems = 100'000;
  const bool empty = step > 0 ? start >= stop : start <= stop;
  if (empty) return make_list({}, interpreter.budget());
  const uint64_t distance =
      step > 0 ? uint64_t(stop) - uint64_t(start) : uint64_t(start) - uint64_t(stop);
  const uint64_t stride = step > 0 ? uint64_t(step) : uint64_t{0} - uint64_t(step);
  const uint64_t count = (distance - 1) / stride + 1;
  if (count > kMaxItems)
    template_error("Range too big. The maximum size for a range is ", kMaxItems);
  std::vector<Value> items;
  for (uint64_t i = 0; i < count; ++i) items.emplace_back(start + static_cast<int64_t>(i) * step);
  return make_list(std::move(items), interpreter.budget());
}

// The members of dict() and namespace(): of one mapping or list of pairs, then the keywords.
std::vector<std::pair<Value, Value>> members(Interpreter& interpreter, const Arguments& arguments) {
  std::vector<std::pair<Value, Value>> items;
  if (arguments.positional.size() > 1) template_error("dict expected at most 1 argument");
  for (const Value& source : arguments.positional) {
    if (source.is_dict()) {
      interpreter.budget().bytes(source.dict().items.size() * 2 * sizeof(Value));
      items = source.dict().items;
      continue;
    }
    for (const Value& pair : iterate(source, interpreter.budget())) {
      std::vector<Value> two = iterate(pair, interpreter.budget());
      if (two.size() != 2) template_error("dictionary update sequence element is not a pair");
      items.emplace_back(std::move(two[0]), std::move(two[1]));
    }
  }
  for (const auto& [name, value] : arguments.named) items.emplace_back(Value(name), value);
  return items;
}

Value make_namespace(Interpreter& interpreter, const Arguments& arguments) {
  auto space = std::make_unique<Namespace>();
  for (auto& [name, value] : members(interpreter, arguments)) {
    if (!name.is_string()) template_error("namespace() takes names");
    space->set(name.text(), std::move(value));
  }
  return interpreter.keep(std::move(space));
}

std::string format_time(std::time_t now, const std::string& format, Budget& budget) {
  budget.bytes(format.size() * 32);
  std::tm parts{};
  localtime_r(&now, &parts);
  std::string out(format.size() * 32 + 64, '\0');
  out.resize(std::strftime(out.data(), out.size(), format.c_str(), &parts));
  return out;
}

}  // namespace

bool has_function(std::string_view name) {
  return std::find(kFunctions.begin(), kFunctions.end(), name) != kFunctions.end();
}

Value call_function(Interpreter& interpreter, std::string_view name, const Arguments& arguments) {
  if (name == "range") return range(interpreter, arguments);
  if (name == "dict") return make_dict(members(interpreter, arguments), interpreter.budget());
  if (name == "namespace") return make_namespace(interpreter, arguments);
  if (name == "raise_exception") {
    const Parameters p(arguments, name, {"message"});
    // The template's own words, without a prefix: they are meant for whoever sent the conversation.
    throw Error(ErrorCode::kInvalidArgument, to_text(p.required(0), interpreter.budget()));
  }
  if (name == "strftime_now") {
    const Parameters p(arguments, name, {"format"});
    p.required(0);
    const std::string* format = p.text(0);
    return Value(format == nullptr ? ""
                                   : format_time(interpreter.now(), *format, interpreter.budget()));
  }
  fail(ErrorCode::kUnsupported, "chat template: ", name, "() is not supported");
}

}  // namespace lathe::jinja
