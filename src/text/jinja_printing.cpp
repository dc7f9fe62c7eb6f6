// str(), repr() and json.dumps() of values.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/jinja_text.h"
#include "text/jinja_value.h"
#include "text/unicode.h"

namespace lathe::jinja {
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

  void write_list(const List& list, int level) {
    out += '[';
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out += style_.item_separator;
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
      if (i > 0) out += style_.item_separator;
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

}  // namespace lathe::jinja
