// Calls, attributes and elements: how values are reached into.
#include <algorithm>

#include "text/jinja_interpreter.h"

namespace lathe::jinja {

bool Loop::get(std::string_view name, Value& value) const {
  const auto count = std::ssize(items);
  const auto at = static_cast<int64_t>(index);
  if (name == "index") {
    value = at + 1;
  } else if (name == "index0") {
    value = at;
  } else if (name == "revindex") {
    value = count - at;
  } else if (name == "revindex0") {
    value = count - at - 1;
  } else if (name == "first") {
    value = at == 0;
  } else if (name == "last") {
    value = at + 1 == count;
  } else if (name == "length") {
    value = count;
  } else if (name == "depth") {
    value = 1;  // counts recursive loops only
  } else if (name == "depth0") {
    value = 0;
  } else if (name == "previtem") {
    value = at > 0 ? items[index - 1] : Value::undefined("there is no previous item");
  } else if (name == "nextitem") {
    value = at + 1 < count ? items[index + 1] : Value::undefined("there is no next item");
  } else {
    return false;
  }
  return true;
}

Value Interpreter::call(const Value& callee, const Arguments& arguments) {
  const DepthGuard guard(*this);
  require_defined(callee);
  const Callable* callable = callee.callable();
  if (callable == nullptr) template_error("'", callee.type_name(), "' object is not callable");
  switch (callable->kind) {
    case Callable::Kind::kMacro:
      return call_macro(*callable, arguments);
    case Callable::Kind::kFunction:
      return call_function(*this, callable->name, arguments);
    case Callable::Kind::kMethod:
      if (const auto* loop = dynamic_cast<const Loop*>(callable->self.object())) {
        if (callable->name == "cycle") {
          if (arguments.positional.empty()) template_error("no items for cycling given");
          return arguments.positional[loop->index % arguments.positional.size()];
        }
        Value now = make_list(arguments.positional, budget_, true);
        if (!loop->last_changed.is_undefined() && equal(now, loop->last_changed, budget_))
          return false;
        loop->last_changed = std::move(now);
        return true;
      }
      return call_method(*this, callable->self, callable->name, arguments);
  }
  return {};
}

namespace {

// How Jinja names a value's type in errors.
std::string described(const Value& value) {
  if (value.is_none()) return "None";
  return std::string(value.type_name()) + " object";
}

Value no_attribute(const Value& value, std::string_view name) {
  return Value::undefined(str("'", described(value), "' has no attribute '", name, "'"));
}

bool is_mutating(const Value& value, std::string_view name) {
  static constexpr std::string_view kList[] = {"append", "clear", "pop",    "reverse",
                                               "insert", "sort",  "extend", "remove"};
  static constexpr std::string_view kDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  const auto has = [&](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  return value.is_dict() ? has(kDict) : value.is_list() && !value.list().is_tuple && has(kList);
}

}  // namespace

Value Interpreter::attribute(const Value& value, std::string_view name) {
  require_defined(value);
  if (const Object* thing = value.object()) {
    Value found;
    if (thing->get(name, found)) return found;
    const bool is_loop = dynamic_cast<const Loop*>(thing) != nullptr;
    if (!is_loop || (name != "cycle" && name != "changed")) return no_attribute(value, name);
  } else if (is_mutating(value, name)) {
    return Value::undefined(
        str("access to attribute '", name, "' of '", value.type_name(), "' object is unsafe."));
  } else if (!has_method(value, name)) {
    if (value.is_dict()) {
      if (const Value* found = value.dict().find(name)) return *found;
    }
    return no_attribute(value, name);
  }
  auto method = std::make_shared<Callable>();
  method->kind = Callable::Kind::kMethod;
  method->name = name;
  method->self = value;
  return std::shared_ptr<const Callable>(std::move(method));
}

Value Interpreter::item(const Value& value, const Value& key) {
  require_defined(value);
  if (value.is_dict()) {
    if (const Value* found = value.dict().find(key, budget_)) return *found;
  } else if (key.is_integer() && (value.is_list() || value.is_string())) {
    if (auto found = element(value, key.integer(), budget_)) return *std::move(found);
  }
  if (key.is_string()) {
    const Value found = attribute(value, key.text());
    return found;
  }
  return Value::undefined(str(described(value), " has no element ", to_repr(key, budget_)));
}

bool Namespace::get(std::string_view name, Value& value) const {
  for (const auto& [known, attribute] : attributes) {
    if (known != name) continue;
    value = attribute;
    return true;
  }
  return false;
}

void Namespace::set(std::string_view name, Value value) {
  for (auto& [known, attribute] : attributes) {
    if (known != name) continue;
    attribute = std::move(value);
    return;
  }
  attributes.emplace_back(std::string(name), std::move(value));
}

}  // namespace lathe::jinja
