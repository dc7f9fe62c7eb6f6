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

namespace {

std::string float_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  // Python's repr: the shortest digits that read back the same, fixed for exponents -4 to 15.
  char buffer[64];
  const auto shortest =
      std::to_chars(buffer, buffer + sizeof buffer, number, std::chars_format::scientific);
  std::string digits(buffer, shortest.ptr);
  const size_t e = digits.find('e');
  const int exponent = std::stoi(digits.substr(e + 1));
  if (exponent < -4 || exponent >= 16) {
    std::string mantissa = digits.substr(0, e);
    const int size = std::abs(exponent);
    return mantissa + (exponent < 0 ? "e-" : "e+") + (size < 10 ? "0" : "") + std::to_string(size);
  }
  const auto fixed =
      std::to_chars(buffer, buffer + sizeof buffer, number, std::chars_format::fixed);
  std::string text(buffer, fixed.ptr);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

void append_hex(std::string& out, const char* prefix, uint32_t value, int digits) {
  static constexpr char kHex[] = "0123456789abcdef";
  out += prefix;
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out += kHex[value >> shift & 15];
}

// repr() of a string: single quotes unless the text has one and no double quote.
void append_string_repr(std::string_view text, std::string& out) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out += quote;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t codepoint = next_codepoint(text, pos);
    if (codepoint == static_cast<char32_t>(quote) || codepoint == '\\') {
      out += '\\';
      out += static_cast<char>(codepoint);
    } else if (codepoint == '\n') {
      out += "\\n";
    } else if (codepoint == '\r') {
      out += "\\r";
    } else if (codepoint == '\t') {
      out += "\\t";
    } else if (is_printable(codepoint)) {
      out.append(text, begin, pos - begin);
    } else if (codepoint < 0x100) {
      append_hex(out, "\\x", codepoint, 2);
    } else if (codepoint < 0x10000) {
      append_hex(out, "\\u", codepoint, 4);
    } else {
      append_hex(out, "\\U", codepoint, 8);
    }
  }
  out += quote;
}

class ReprWriter {
 public:
  explicit ReprWriter(Budget& budget) : budget_(budget) {}

  void write(const Value& value) {
    budget_.steps(1);
    const size_t before = out.size();
    if (value.is_string()) {
      budget_.steps(value.text().size() / 16);
      append_string_repr(value.text(), out);
    } else if (value.is_list()) {
      return write_list(value.list());
    } else if (value.is_dict()) {
      return write_dict(value.dict());
    } else if (value.is_undefined()) {
      out += "Undefined";
    } else {
      out += to_text(value, budget_);
    }
    budget_.bytes(out.size() - before);
  }

  std::string out;

 private:
  void write_list(const List& list) {
    out += list.is_tuple ? '(' : '[';
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out += ", ";
      write(list.items[i]);
    }
    if (list.is_tuple && list.items.size() == 1) out += ',';
    out += list.is_tuple ? ')' : ']';
  }

  void write_dict(const Dict& dict) {
    out += '{';
    for (size_t i = 0; i < dict.items.size(); ++i) {
      if (i > 0) out += ", ";
      write(dict.items[i].first);
      out += ": ";
      write(dict.items[i].second);
    }
    out += '}';
  }

  Budget& budget_;
};

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Budget& budget) : style_(style), budget_(budget) {}

  void write(const Value& value, int level) {
    budget_.steps(1);
    const size_t before = out.size();
    if (value.is_none()) {
      out += "null";
    } else if (value.is<bool>()) {
      out += value.truthy() ? "true" : "false";
    } else if (value.is<int64_t>()) {
      out += std::to_string(value.integer());
    } else if (value.is<double>()) {
      write_float(value.number());
    } else if (value.is_string()) {
      write_string(value.text());
    } else if (value.is_list()) {
      write_list(value.list(), level);
    } else if (value.is_dict()) {
      write_dict(value.dict(), level);
    } else {
      template_error("Object of type ", value.type_name(), " is not JSON serializable");
    }
    if (!value.is_list() && !value.is_dict()) budget_.bytes(out.size() - before);
  }

  std::string out;

 private:
  void write_float(double number) {
    out += std::isnan(number)   ? "NaN"
           : std::isinf(number) ? (number > 0 ? "Infinity" : "-Infinity")
                                : float_text(number);
  }

  void write_string(std::string_view text) {
    budget_.steps(text.size() / 16);
    out += '"';
    for (size_t pos = 0; pos < text.size();) {
      const size_t begin = pos;
      const char32_t codepoint = next_codepoint(text, pos);
      switch (codepoint) {
        case '"':
          out += "\\\"";
          continue;
        case '\\':
          out += "\\\\";
          continue;
        case '\n':
          out += "\\n";
          continue;
        case '\r':
          out += "\\r";
          continue;
        case '\t':
          out += "\\t";
          continue;
        case '\f':
          out += "\\f";
          continue;
        case '\b':
          out += "\\b";
          continue;
        default:
          break;
      }
      if (codepoint < 0x20) {
        append_hex(out, "\\u", codepoint, 4);
      } else if (codepoint < 0x7F || !style_.ensure_ascii) {
        out.append(text, begin, pos - begin);
      } else if (codepoint < 0x10000) {
        append_hex(out, "\\u", codepoint, 4);
      } else {
        append_hex(out, "\\u", 0xD800 + ((codepoint - 0x10000) >> 10), 4);
        append_hex(out, "\\u", 0xDC00 + ((codepoint - 0x10000) & 0x3FF), 4);
      }
    }
    out += '"';
  }

  void new_line(int level) {
    if (style_.indent < 0) return;
    const auto width = static_cast<size_t>(style_.indent) * static_cast<size_t>(level);
    budget_.bytes(width + 1);
    out += '\n';
    out.append(width, ' ');
  }

  // With an indent, json.dumps drops the space behind the item separator.
  std::string_view item_separator() const {
    return style_.indent >= 0 && style_.item_separator == ", " ? "," : style_.item_separator;
  }

  void write_list(const List& list, int level) {
    out += '[';
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out += item_separator();
      new_line(level + 1);
      write(list.items[i], level + 1);
    }
    if (!list.items.empty()) new_line(level);
    out += ']';
    budget_.bytes(2 + list.items.size() * style_.item_separator.size());
  }

  void write_dict(const Dict& dict, int level) {
    std::vector<const std::pair<Value, Value>*> order;
    for (const auto& item : dict.items) order.push_back(&item);
    if (style_.sort_keys) {
      std::stable_sort(order.begin(), order.end(), [&](const auto* a, const auto* b) {
        return compare(a->first, b->first, "<", budget_) < 0;
      });
    }
    out += '{';
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0) out += item_separator();
      new_line(level + 1);
      write_key(order[i]->first);
      out += style_.key_separator;
      write(order[i]->second, level + 1);
    }
    if (!order.empty()) new_line(level);
    out += '}';
    budget_.bytes(2 +
                  dict.items.size() * (style_.item_separator.size() + style_.key_separator.size()));
  }

  void write_key(const Value& key) {
    if (key.is_string()) return write(key, 0);
    out += '"';
    write(key, 0);
    out += '"';
  }

  const JsonStyle& style_;
  Budget& budget_;
};

}  // namespace

std::string to_text(const Value& value, Budget& budget) {
  if (value.is_undefined()) return "";
  if (value.is_none()) return "None";
  if (value.is<bool>()) return value.truthy() ? "True" : "False";
  if (value.is<int64_t>()) return std::to_string(value.integer());
  if (value.is<double>()) return float_text(value.number());
  if (value.is_string()) {
    budget.bytes(value.text().size());
    return value.text();
  }
  if (const Object* thing = value.object()) return "<" + std::string(thing->type_name()) + ">";
  if (value.callable() != nullptr) return "<function>";
  return to_repr(value, budget);
}

std::string to_repr(const Value& value, Budget& budget) {
  ReprWriter writer(budget);
  writer.write(value);
  return std::move(writer.out);
}

std::string to_json(const Value& value, const JsonStyle& style, Budget& budget) {
  JsonWriter writer(style, budget);
  writer.write(value, 0);
  return std::move(writer.out);
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
