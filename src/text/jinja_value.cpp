#include "text/jinja_value.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/json.h"
#include "text/jinja_text.h"
#include "text/unicode.h"

namespace lathe::jinja {

void Budget::steps(size_t count) {
  if (count > static_cast<uint64_t>(steps_)) {
    fail(ErrorCode::kUnsupported, "chat template: takes too many steps");
  }
  steps_ -= static_cast<int64_t>(count);
}

void Budget::bytes(size_t count) {
  if (count > static_cast<uint64_t>(bytes_)) {
    fail(ErrorCode::kUnsupported, "chat template: makes too much text");
  }
  bytes_ -= static_cast<int64_t>(count);
}

Value Value::undefined(std::string reason) {
  Value value;
  value.storage_ = Undefined{std::make_shared<const std::string>(std::move(reason))};
  return value;
}

const Callable* Value::callable() const {
  const auto* found = std::get_if<std::shared_ptr<const Callable>>(&storage_);
  return found == nullptr ? nullptr : found->get();
}

Object* Value::object() const {
  Object* const* found = std::get_if<Object*>(&storage_);
  return found == nullptr ? nullptr : *found;
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_integer()) return integer() != 0;
  if (is<double>()) return number() != 0;
  if (is_string()) return !text().empty();
  if (is_list()) return !list().items.empty();
  if (is_dict()) return !dict().items.empty();
  return true;
}

std::string_view Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is<bool>()) return "bool";
  if (is<int64_t>()) return "int";
  if (is<double>()) return "float";
  if (is_string()) return "str";
  if (is_list()) return list().is_tuple ? "tuple" : "list";
  if (is_dict()) return "dict";
  if (const Object* thing = object()) return thing->type_name();
  return "function";
}

int Value::depth() const { return is_list() ? list().depth : is_dict() ? dict().depth : 0; }

const Value* Dict::find(std::string_view key) const {
  const auto found = index.find(key);
  return found == index.end() ? nullptr : &items[found->second].second;
}

const Value* Dict::find(const Value& key, Budget& budget) const {
  if (key.is_string()) return find(key.text());
  for (const auto& [name, value] : items) {
    if (!name.is_string() && equal(name, key, budget)) return &value;
  }
  return nullptr;
}

namespace {

void check_depth(int depth) {
  if (depth > kMaxValueDepth) {
    fail(ErrorCode::kUnsupported, "chat template: lists nested deeper than ", kMaxValueDepth);
  }
}

}  // namespace

Value make_list(std::vector<Value> items, Budget& budget, bool is_tuple) {
  budget.steps(items.size() / 8 + 1);
  budget.bytes(items.size() * sizeof(Value) + sizeof(List));
  auto list = std::make_shared<List>();
  for (const Value& item : items) list->depth = std::max(list->depth, item.depth() + 1);
  check_depth(list->depth);
  list->items = std::move(items);
  list->is_tuple = is_tuple;
  return std::shared_ptr<const List>(std::move(list));
}

Value make_dict(std::vector<std::pair<Value, Value>> items, Budget& budget) {
  budget.steps(items.size() + 1);
  budget.bytes(items.size() * 4 * sizeof(Value) + sizeof(Dict));
  auto dict = std::make_shared<Dict>();
  for (auto& [key, value] : items) {
    if (key.is_list() || key.is_dict()) template_error("unhashable type: '", key.type_name(), "'");
    dict->depth = std::max(dict->depth, value.depth() + 1);
    if (const Value* old = dict->find(key, budget)) {
      *const_cast<Value*>(old) = std::move(value);  // still ours alone
      continue;
    }
    if (key.is_string()) dict->index.emplace(key.text(), dict->items.size());
    dict->items.emplace_back(std::move(key), std::move(value));
  }
  check_depth(dict->depth);
  return std::shared_ptr<const Dict>(std::move(dict));
}

Value from_json(const nlohmann::ordered_json& json, Budget& budget) {
  using Type = nlohmann::ordered_json::value_t;
  // A tree deeper than make_list allows would overflow the stack before it got there.
  struct Converter {
    Budget& budget;
    Value operator()(const nlohmann::ordered_json& node, int depth) const {
      check_depth(depth);
      switch (node.type()) {
        case Type::boolean:
          return node.get<bool>();
        case Type::number_integer:
          return node.get<int64_t>();
        case Type::number_unsigned:
          if (node.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return node.get<double>();
          return node.get<int64_t>();
        case Type::number_float:
          return node.get<double>();
        case Type::string: {
          const auto& text = node.get_ref<const std::string&>();
          return is_valid_utf8(text) ? Value(text) : Value(to_valid_utf8(text));
        }
        case Type::array: {
          std::vector<Value> items;
          items.reserve(node.size());
          for (const auto& item : node) items.push_back((*this)(item, depth + 1));
          return make_list(std::move(items), budget);
        }
        case Type::object: {
          std::vector<std::pair<Value, Value>> items;
          items.reserve(node.size());
          for (const auto& [key, item] : node.items()) {
            items.emplace_back(to_valid_utf8(key), (*this)(item, depth + 1));
          }
          return make_dict(std::move(items), budget);
        }
        default:
          return None{};
      }
    }
  };
  return Converter{budget}(json, 0);
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.steps(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.is_string() && b.is_string()) {
    budget.steps(std::min(a.text().size(), b.text().size()) / 256);
    return a.text() == b.text();
  }
  if (a.is_list() && b.is_list()) {
    const List& x = a.list();
    const List& y = b.list();
    if (x.is_tuple != y.is_tuple || x.items.size() != y.items.size()) return false;
    for (size_t i = 0; i < x.items.size(); ++i) {
      if (!equal(x.items[i], y.items[i], budget)) return false;
    }
    return true;
  }
  if (a.is_dict() && b.is_dict()) {
    if (a.dict().items.size() != b.dict().items.size()) return false;
    for (const auto& [key, value] : a.dict().items) {
      const Value* other = b.dict().find(key, budget);
      if (other == nullptr || !equal(value, *other, budget)) return false;
    }
    return true;
  }
  if (a.object() != nullptr || b.object() != nullptr) return a.object() == b.object();
  if (a.callable() != nullptr || b.callable() != nullptr) return a.callable() == b.callable();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

int compare(const Value& a, const Value& b, std::string_view operation, Budget& budget) {
  budget.steps(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) {
      return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
    }
    if (std::isnan(a.number()) || std::isnan(b.number())) return 2;
    return a.number() < b.number() ? -1 : a.number() > b.number();
  }
  if (a.is_string() && b.is_string()) {
    // UTF-8 sorts as its code points do.
    budget.steps(std::min(a.text().size(), b.text().size()) / 256);
    const int order = a.text().compare(b.text());
    return order < 0 ? -1 : order > 0;
  }
  if (a.is_list() && b.is_list() && a.list().is_tuple == b.list().is_tuple) {
    const auto& x = a.list().items;
    const auto& y = b.list().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equal(x[i], y[i], budget)) return compare(x[i], y[i], operation, budget);
    }
    return x.size() < y.size() ? -1 : x.size() > y.size();
  }
  if (const auto* undefined = std::get_if<Undefined>(&a.storage());
      undefined && undefined->reason) {
    template_error(*undefined->reason);
  }
  if (const auto* undefined = std::get_if<Undefined>(&b.storage());
      undefined && undefined->reason) {
    template_error(*undefined->reason);
  }
  template_error("'", operation, "' not supported between instances of '", a.type_name(), "' and '",
                 b.type_name(), "'");
}

std::vector<Value> iterate(const Value& value, Budget& budget) {
  if (value.is_undefined()) return {};
  std::vector<Value> items;
  if (value.is_list()) {
    budget.bytes(value.list().items.size() * sizeof(Value));
    items = value.list().items;
  } else if (value.is_dict()) {
    for (const auto& [key, item] : value.dict().items) items.push_back(key);
  } else if (value.is_string()) {
    const std::string_view text = value.text();
    budget.bytes(text.size() * 2 * sizeof(Value));
    for (size_t pos = 0; pos < text.size();) {
      const size_t begin = pos;
      next_codepoint(text, pos);
      items.emplace_back(text.substr(begin, pos - begin));
    }
  } else {
    template_error("'", value.type_name(), "' object is not iterable");
  }
  budget.steps(items.size() / 8 + 1);
  return items;
}

}  // namespace lathe::jinja
