// Filters on text and numbers, and the look-up of all: `value | NAME(arguments)`.
#include "text/jinja_filters.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "text/jinja_text.h"

namespace lathe::jinja {
namespace {

// ---- of text ----

Value filter_trim(const FilterCall& call) {
  const Parameters p = call.parameters({"chars"});
  return made_text(std::string(strip(call.text(), true, true, p.text(0))), call.budget);
}

Value filter_case(const FilterCall& call) {
  const Parameters none = call.parameters({});
  const std::string text = call.text();
  call.budget.steps(text.size() / 16);
  return made_text(call.name == "upper"        ? upper(text)
                   : call.name == "lower"      ? lower(text)
                   : call.name == "capitalize" ? capitalize(text)
                                               : title_words(text),
                   call.budget);
}

Value filter_replace(const FilterCall& call) {
  const Parameters p = call.parameters({"old", "new", "count"});
  const std::string from = to_text(p.required(0), call.budget);
  return Value(replace_text(call.text(), from, to_text(p.required(1), call.budget),
                            p.integer(2, -1), call.budget));
}

Value filter_indent(const FilterCall& call) {
  const Parameters p = call.parameters({"width", "first", "blank"});
  std::string margin;
  if (p[0] != nullptr && p[0]->is_string()) {
    margin = p[0]->text();
  } else {
    const int64_t width = std::max<int64_t>(0, p.integer(0, 4));
    call.budget.bytes(static_cast<size_t>(width));
    margin.assign(static_cast<size_t>(width), ' ');
  }
  const bool blank = p.boolean(2, false);
  const std::string text = call.text() + "\n";  // so that a newline at the end counts as a line
  std::string out;
  bool first = true;
  for (const std::string_view line : split_lines(text, false)) {
    call.budget.bytes(line.size() + margin.size() + 1);
    if (!first) out += '\n';
    const bool indents = first ? p.boolean(1, false) : blank || !line.empty();
    if (indents) out += margin;
    out += line;
    first = false;
  }
  return Value(std::move(out));
}

Value filter_escape(const FilterCall& call) {
  std::string out;
  for (const char c : call.text()) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return made_text(std::move(out), call.budget);
}

Value filter_string(const FilterCall& call) { return Value(call.text()); }

Value filter_format(const FilterCall& call) {
  if (!call.value.is_string()) template_error("format() needs a string");
  const Value arguments = make_list(call.arguments.positional, call.budget, true);
  return binary_operation("%", call.value, arguments, call.budget);
}

Value filter_tojson(const FilterCall& call) {
  const Parameters p = call.parameters({"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = p.boolean(0, false);
  const int64_t indent = p.integer(1, -1);
  if (p[1] != nullptr && !p[1]->is_none())
    style.indent = static_cast<int>(std::clamp<int64_t>(indent, 0, 1000));
  if (p[2] != nullptr && !p[2]->is_none()) {
    const std::vector<Value> two = iterate(*p[2], call.budget);
    if (two.size() != 2 || !two[0].is_string() || !two[1].is_string()) {
      template_error("tojson(): separators are two strings");
    }
    style.item_separator = two[0].text();
    style.key_separator = two[1].text();
  } else if (style.indent >= 0) {
    style.item_separator = ",";
  }
  style.sort_keys = p.boolean(3, false);
  return Value(to_json(call.value, style, call.budget));
}

// ---- of numbers ----

Value filter_int(const FilterCall& call) {
  const Parameters p = call.parameters({"default", "base"});
  const Value otherwise = p[0] != nullptr ? *p[0] : Value(0);
  if (call.value.is_integer()) return call.value.integer();
  if (call.value.is<double>()) {
    const double number = call.value.number();
    return std::abs(number) < 9.2e18 ? Value(static_cast<int64_t>(number)) : otherwise;
  }
  if (!call.value.is_string()) return otherwise;
  std::string_view text = strip(call.value.text(), true, true, nullptr);
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto base = static_cast<int>(std::clamp<int64_t>(p.integer(1, 10), 2, 36));
  if (base == 16 && (text.starts_with("0x") || text.starts_with("0X"))) text.remove_prefix(2);
  int64_t integer = 0;
  const char* end = text.data() + text.size();
  const auto whole = std::from_chars(text.data(), end, integer, base);
  if (whole.ec == std::errc() && whole.ptr == end) return integer;
  double number = 0;
  const auto real = std::from_chars(text.data(), end, number);
  if (real.ec == std::errc() && real.ptr == end && std::abs(number) < 9.2e18) {
    return static_cast<int64_t>(number);
  }
  return otherwise;
}

Value filter_float(const FilterCall& call) {
  const Parameters p = call.parameters({"default"});
  if (call.value.is_number()) return call.value.number();
  if (call.value.is_string()) {
    std::string_view text = strip(call.value.text(), true, true, nullptr);
    if (text.starts_with('+')) text.remove_prefix(1);
    double number = 0;
    const char* end = text.data() + text.size();
    const auto real = std::from_chars(text.data(), end, number);
    if (real.ec == std::errc() && real.ptr == end) return number;
  }
  return p[0] != nullptr ? *p[0] : Value(0.0);
}

Value filter_abs(const FilterCall& call) {
  if (!call.value.is_number())
    template_error("bad operand type for abs(): '", call.value.type_name(), "'");
  if (call.value.is<double>()) return std::abs(call.value.number());
  return call.value.integer() < 0 ? binary_operation("-", 0, call.value, call.budget) : call.value;
}

Value filter_round(const FilterCall& call) {
  const Parameters p = call.parameters({"precision", "method"});
  if (!call.value.is_number()) template_error("round() needs a number");
  const int64_t precision = std::clamp<int64_t>(p.integer(0, 0), -300, 300);
  const std::string method = p.text(1) != nullptr ? *p.text(1) : "common";
  const double number = call.value.number();
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return std::ceil(number * scale) / scale;
  if (method == "floor") return std::floor(number * scale) / scale;
  if (method != "common") template_error("method must be common, ceil or floor");
  if (precision < 0 || precision > 15) return std::nearbyint(number * scale) / scale;
  // Python rounds the decimal value correctly, half to even: let printf do so.
  char buffer[400];
  snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(precision), number);
  double rounded = 0;
  std::from_chars(buffer, buffer + std::char_traits<char>::length(buffer), rounded);
  return rounded;
}

const std::unordered_map<std::string_view, Filter>& plain_filters() {
  static const std::unordered_map<std::string_view, Filter> table = {
      {"trim", filter_trim},       {"upper", filter_case},    {"lower", filter_case},
      {"capitalize", filter_case}, {"title", filter_case},    {"replace", filter_replace},
      {"indent", filter_indent},   {"escape", filter_escape}, {"e", filter_escape},
      {"string", filter_string},   {"safe", filter_string},   {"format", filter_format},
      {"tojson", filter_tojson},   {"int", filter_int},       {"float", filter_float},
      {"abs", filter_abs},         {"round", filter_round},   {"forceescape", filter_escape},
  };
  return table;
}

}  // namespace

Value made_text(std::string text, Budget& budget) {
  budget.bytes(text.size());
  return Value(std::move(text));
}

Value Interpreter::apply_filter(std::string_view name, const Value& value,
                                const Arguments& arguments) {
  budget_.steps(value.is_string() ? value.text().size() / 64 : 0);
  const DepthGuard guard(*this);  // map() and its like call filters in turn
  const auto plain = plain_filters().find(name);
  const Filter filter = plain != plain_filters().end() ? plain->second : find_sequence_filter(name);
  if (filter == nullptr) {
    fail(ErrorCode::kUnsupported, "chat template: no filter named '", name.substr(0, 100), "'");
  }
  return filter({*this, budget_, name, value, arguments});
}

}  // namespace lathe::jinja
