// Filters: `value | NAME(arguments)`.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <unordered_map>

#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace lathe::jinja {
namespace {

struct Call {
  Interpreter& interpreter;
  Budget& budget;
  std::string_view name;
  const Value& value;
  const Arguments& arguments;

  Parameters parameters(std::initializer_list<std::string_view> names) const {
    return {arguments, name, names};
  }
  // Most filters on text take anything and print it first.
  std::string text() const { return to_text(value, budget); }
};

using Filter = Value (*)(const Call&);

Value made(std::string text, Budget& budget) {
  budget.bytes(text.size());
  return Value(std::move(text));
}

// "a.b.0" from value, as the attribute arguments of filters name it.
Value dig(const Call& call, Value value, const Value& path) {
  if (path.is_integer()) return call.interpreter.item(value, path);
  if (!path.is_string()) template_error(call.name, "(): the attribute is a ", path.type_name());
  for (const std::string_view part : [&] {
         static const std::string dot = ".";
         return split(path.text(), &dot, -1, false);
       }()) {
    int64_t index = 0;
    const auto parsed = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = parsed.ec == std::errc() && parsed.ptr == part.data() + part.size();
    value = call.interpreter.item(value, is_index ? Value(index) : Value(part));
  }
  return value;
}

// ---- of text ----

Value filter_trim(const Call& call) {
  const Parameters p = call.parameters({"chars"});
  return made(std::string(strip(call.text(), true, true, p.text(0))), call.budget);
}

Value filter_case(const Call& call) {
  const Parameters none = call.parameters({});
  const std::string text = call.text();
  call.budget.steps(text.size() / 16);
  return made(call.name == "upper"        ? upper(text)
              : call.name == "lower"      ? lower(text)
              : call.name == "capitalize" ? capitalize(text)
                                          : title_words(text),
              call.budget);
}

Value filter_replace(const Call& call) {
  const Parameters p = call.parameters({"old", "new", "count"});
  const std::string from = to_text(p.required(0), call.budget);
  return Value(replace_text(call.text(), from, to_text(p.required(1), call.budget),
                            p.integer(2, -1), call.budget));
}

Value filter_indent(const Call& call) {
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

Value filter_escape(const Call& call) {
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
  return made(std::move(out), call.budget);
}

Value filter_string(const Call& call) { return Value(call.text()); }

Value filter_format(const Call& call) {
  if (!call.value.is_string()) template_error("format() needs a string");
  const Value arguments = make_list(call.arguments.positional, call.budget, true);
  return binary_operation("%", call.value, arguments, call.budget);
}

Value filter_tojson(const Call& call) {
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

Value filter_int(const Call& call) {
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

Value filter_float(const Call& call) {
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

Value filter_abs(const Call& call) {
  if (!call.value.is_number())
    template_error("bad operand type for abs(): '", call.value.type_name(), "'");
  if (call.value.is<double>()) return std::abs(call.value.number());
  return call.value.integer() < 0 ? binary_operation("-", 0, call.value, call.budget) : call.value;
}

Value filter_round(const Call& call) {
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

// ---- of sequences ----

Value filter_length(const Call& call) {
  const Parameters none = call.parameters({});
  if (call.value.is_undefined()) return 0;
  if (call.value.is_string()) {
    call.budget.steps(call.value.text().size() / 64);
    return count_codepoints(call.value.text());
  }
  if (call.value.is_list()) return call.value.list().items.size();
  if (call.value.is_dict()) return call.value.dict().items.size();
  template_error("object of type '", call.value.type_name(), "' has no len()");
}

Value filter_list(const Call& call) {
  return make_list(iterate(call.value, call.budget), call.budget);
}

Value filter_items(const Call& call) {
  if (call.value.is_undefined()) return make_list({}, call.budget);
  if (!call.value.is_dict()) template_error("Can only get item pairs from a mapping.");
  return call_method(call.interpreter, call.value, "items", {});
}

Value filter_first_last(const Call& call) {
  const std::vector<Value> items = iterate(call.value, call.budget);
  if (items.empty()) {
    return Value::undefined(str("No ", call.name, " item, sequence was empty."));
  }
  return call.name == "first" ? items.front() : items.back();
}

Value filter_default(const Call& call) {
  const Parameters p = call.parameters({"default_value", "boolean"});
  const bool missing = call.value.is_undefined() || (p.boolean(1, false) && !call.value.truthy());
  return missing ? (p[0] != nullptr ? *p[0] : Value("")) : call.value;
}

Value filter_join(const Call& call) {
  const Parameters p = call.parameters({"d", "attribute"});
  const std::string separator = p[0] != nullptr ? to_text(*p[0], call.budget) : "";
  std::string out;
  bool first = true;
  for (const Value& item : iterate(call.value, call.budget)) {
    if (!first) out += separator;
    call.budget.bytes(separator.size());
    out += to_text(p[1] != nullptr ? dig(call, item, *p[1]) : item, call.budget);
    first = false;
  }
  return Value(std::move(out));
}

Value filter_reverse(const Call& call) {
  std::vector<Value> items = iterate(call.value, call.budget);
  std::reverse(items.begin(), items.end());
  if (!call.value.is_string()) return make_list(std::move(items), call.budget);
  std::string text;
  for (const Value& item : items) text += item.text();
  return made(std::move(text), call.budget);
}

// What sorting and uniqueness look at: an attribute, and the lower case of text unless told
// otherwise.
Value sort_key(const Call& call, const Value& item, const Value* attribute, bool case_sensitive) {
  Value key = attribute != nullptr && !attribute->is_none() ? dig(call, item, *attribute) : item;
  if (case_sensitive || !key.is_string()) return key;
  return made(lower(key.text()), call.budget);
}

struct Keyed {
  Value key;
  Value item;
};

void sort_keyed(std::vector<Keyed>& items, bool reverse, Budget& budget) {
  // A merge sort that may be left by an exception in the middle: the comparison throws on mixed
  // types.
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? compare(b.key, a.key, "<", budget) == -1
                   : compare(a.key, b.key, "<", budget) == -1;
  });
}

Value filter_sort(const Call& call) {
  const Parameters p = call.parameters({"reverse", "case_sensitive", "attribute"});
  std::vector<Keyed> keyed;
  for (Value& item : iterate(call.value, call.budget)) {
    Value key = sort_key(call, item, p[2], p.boolean(1, false));
    keyed.push_back({std::move(key), std::move(item)});
  }
  sort_keyed(keyed, p.boolean(0, false), call.budget);
  std::vector<Value> items;
  for (Keyed& entry : keyed) items.push_back(std::move(entry.item));
  return make_list(std::move(items), call.budget);
}

Value filter_dictsort(const Call& call) {
  const Parameters p = call.parameters({"case_sensitive", "by", "reverse"});
  if (!call.value.is_dict()) template_error("dictsort needs a mapping");
  const bool by_value = p.text(1) != nullptr && *p.text(1) == "value";
  std::vector<Keyed> keyed;
  for (const auto& [key, value] : call.value.dict().items) {
    keyed.push_back({sort_key(call, by_value ? value : key, nullptr, p.boolean(0, false)),
                     make_list({key, value}, call.budget, true)});
  }
  sort_keyed(keyed, p.boolean(2, false), call.budget);
  std::vector<Value> items;
  for (Keyed& entry : keyed) items.push_back(std::move(entry.item));
  return make_list(std::move(items), call.budget);
}

Value filter_unique(const Call& call) {
  const Parameters p = call.parameters({"case_sensitive", "attribute"});
  std::vector<Value> seen, items;
  for (Value& item : iterate(call.value, call.budget)) {
    Value key = sort_key(call, item, p[1], p.boolean(0, false));
    const auto is_same = [&](const Value& other) { return equal(key, other, call.budget); };
    if (std::any_of(seen.begin(), seen.end(), is_same)) continue;
    seen.push_back(std::move(key));
    items.push_back(std::move(item));
  }
  return make_list(std::move(items), call.budget);
}

Value filter_extreme(const Call& call) {
  const Parameters p = call.parameters({"case_sensitive", "attribute"});
  Value best, best_key;
  const int wanted = call.name == "min" ? -1 : 1;
  for (Value& item : iterate(call.value, call.budget)) {
    Value key = sort_key(call, item, p[1], p.boolean(0, false));
    if (best_key.is_undefined() || compare(key, best_key, "<", call.budget) == wanted) {
      best_key = std::move(key);
      best = std::move(item);
    }
  }
  return best;
}

Value filter_sum(const Call& call) {
  const Parameters p = call.parameters({"attribute", "start"});
  Value sum = p[1] != nullptr ? *p[1] : Value(0);
  for (const Value& item : iterate(call.value, call.budget)) {
    const bool has_attribute = p[0] != nullptr && !p[0]->is_none();
    sum = binary_operation("+", sum, has_attribute ? dig(call, item, *p[0]) : item, call.budget);
  }
  return sum;
}

Value filter_batch(const Call& call) {
  const Parameters p = call.parameters({"linecount", "fill_with"});
  const int64_t count = p.integer(0, 0);
  if (count < 1) template_error("batch() needs a positive count");
  std::vector<Value> batches, batch;
  for (Value& item : iterate(call.value, call.budget)) {
    batch.push_back(std::move(item));
    if (std::ssize(batch) < count) continue;
    batches.push_back(make_list(std::move(batch), call.budget));
    batch.clear();
  }
  if (!batch.empty()) {
    if (p[1] != nullptr && !p[1]->is_none()) {
      call.budget.bytes(static_cast<size_t>(std::min<int64_t>(count, int64_t{1} << 40)) *
                        sizeof(Value));
      batch.resize(static_cast<size_t>(count), *p[1]);
    }
    batches.push_back(make_list(std::move(batch), call.budget));
  }
  return make_list(std::move(batches), call.budget);
}

// map(attribute="a", default=b) or map("filter", arguments...).
Value filter_map(const Call& call) {
  std::vector<Value> items = iterate(call.value, call.budget);
  const auto& positional = call.arguments.positional;
  if (positional.empty()) {
    const Parameters p = call.parameters({"attribute", "default"});
    for (Value& item : items) {
      item = dig(call, std::move(item), p.required(0));
      if (item.is_undefined() && p[1] != nullptr) item = *p[1];
    }
    return make_list(std::move(items), call.budget);
  }
  if (!positional[0].is_string()) template_error("map requires a filter argument");
  const Arguments rest{{positional.begin() + 1, positional.end()}, call.arguments.named};
  for (Value& item : items) item = call.interpreter.apply_filter(positional[0].text(), item, rest);
  return make_list(std::move(items), call.budget);
}

// select, reject ([test, arguments...]); selectattr, rejectattr (attribute [, test, arguments...]).
Value filter_select(const Call& call) {
  const bool by_attribute = call.name.ends_with("attr");
  const bool wanted = call.name.starts_with("select");
  const auto& positional = call.arguments.positional;
  const size_t test_at = by_attribute ? 1 : 0;
  if (by_attribute && positional.empty()) template_error(call.name, " needs an attribute");
  Arguments rest{{}, call.arguments.named};
  if (positional.size() > test_at) {
    if (!positional[test_at].is_string()) template_error(call.name, " needs the name of a test");
    rest.positional.assign(positional.begin() + static_cast<std::ptrdiff_t>(test_at) + 1,
                           positional.end());
  }
  std::vector<Value> kept;
  for (Value& item : iterate(call.value, call.budget)) {
    const Value tested = by_attribute ? dig(call, item, positional[0]) : item;
    const bool holds = positional.size() > test_at
                           ? call.interpreter.apply_test(positional[test_at].text(), tested, rest)
                           : tested.truthy();
    if (holds == wanted) kept.push_back(std::move(item));
  }
  return make_list(std::move(kept), call.budget);
}

Value filter_attr(const Call& call) {
  const Parameters p = call.parameters({"name"});
  p.required(0);
  const std::string* name = p.text(0);
  return name == nullptr ? Value() : call.interpreter.attribute(call.value, *name);
}

Value filter_groupby(const Call& call) {
  const Parameters p = call.parameters({"attribute", "default", "case_sensitive"});
  std::vector<Keyed> keyed;
  for (Value& item : iterate(call.value, call.budget)) {
    Value key = dig(call, item, p.required(0));
    if (key.is_undefined() && p[1] != nullptr) key = *p[1];
    keyed.push_back({std::move(key), std::move(item)});
  }
  sort_keyed(keyed, false, call.budget);
  std::vector<Value> groups, members;
  for (size_t i = 0; i < keyed.size(); ++i) {
    members.push_back(keyed[i].item);
    if (i + 1 < keyed.size() && equal(keyed[i].key, keyed[i + 1].key, call.budget)) continue;
    groups.push_back(
        make_list({keyed[i].key, make_list(std::move(members), call.budget)}, call.budget, true));
    members.clear();
  }
  return make_list(std::move(groups), call.budget);
}

const std::unordered_map<std::string_view, Filter>& filters() {
  static const std::unordered_map<std::string_view, Filter> table = {
      {"trim", filter_trim},        {"upper", filter_case},        {"lower", filter_case},
      {"capitalize", filter_case},  {"title", filter_case},        {"replace", filter_replace},
      {"indent", filter_indent},    {"escape", filter_escape},     {"e", filter_escape},
      {"string", filter_string},    {"safe", filter_string},       {"format", filter_format},
      {"tojson", filter_tojson},    {"int", filter_int},           {"float", filter_float},
      {"abs", filter_abs},          {"round", filter_round},       {"length", filter_length},
      {"count", filter_length},     {"list", filter_list},         {"items", filter_items},
      {"first", filter_first_last}, {"last", filter_first_last},   {"default", filter_default},
      {"d", filter_default},        {"join", filter_join},         {"reverse", filter_reverse},
      {"sort", filter_sort},        {"dictsort", filter_dictsort}, {"unique", filter_unique},
      {"min", filter_extreme},      {"max", filter_extreme},       {"sum", filter_sum},
      {"batch", filter_batch},      {"map", filter_map},           {"select", filter_select},
      {"reject", filter_select},    {"selectattr", filter_select}, {"rejectattr", filter_select},
      {"attr", filter_attr},        {"groupby", filter_groupby},   {"forceescape", filter_escape},
  };
  return table;
}

}  // namespace

Value Interpreter::apply_filter(std::string_view name, const Value& value,
                                const Arguments& arguments) {
  budget_.steps(value.is_string() ? value.text().size() / 64 + 1 : 1);
  const auto found = filters().find(name);
  if (found == filters().end()) {
    fail(ErrorCode::kUnsupported, "chat template: no filter named '", name.substr(0, 100), "'");
  }
  // map() and its like call filters in turn.
  if (depth_ >= 500) fail(ErrorCode::kUnsupported, "chat template: filters nested too deep");
  ++depth_;
  struct Leave {
    int& depth;
    ~Leave() { --depth; }
  } leave{depth_};
  return found->second({*this, budget_, name, value, arguments});
}

}  // namespace lathe::jinja
