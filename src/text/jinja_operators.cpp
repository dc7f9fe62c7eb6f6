// Arithmetic, membership and slices, with Python's rules.
#include <algorithm>
#include <cmath>

#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"
#include "text/unicode.h"

namespace lathe::jinja {
namespace {

[[noreturn]] void bad_operands(std::string_view op, const Value& left, const Value& right) {
  template_error("unsupported operand type(s) for ", op, ": '", left.type_name(), "' and '",
                 right.type_name(), "'");
}

void check_overflow(bool overflow) {
  if (overflow) template_error("integer out of the range of 64 bits");
}

int64_t integer_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) check_overflow(__builtin_mul_overflow(result, base, &result));
    if (exponent > 1) check_overflow(__builtin_mul_overflow(base, base, &base));
  }
  return result;
}

Value integer_operation(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "+" || op == "-" || op == "*") {
    check_overflow(op == "+"   ? __builtin_add_overflow(a, b, &result)
                   : op == "-" ? __builtin_sub_overflow(a, b, &result)
                               : __builtin_mul_overflow(a, b, &result));
    return result;
  }
  if (op == "**") {
    if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
    return integer_power(a, b);
  }
  if (b == 0) template_error("division by zero");
  if (op == "/") return static_cast<double>(a) / static_cast<double>(b);
  if (b == -1) return op == "%" ? Value(0) : integer_operation("-", 0, a);
  // C++ rounds to zero, Python down.
  const int64_t remainder = a % b;
  const bool adjust = remainder != 0 && (remainder < 0) != (b < 0);
  return op == "%" ? remainder + (adjust ? b : 0) : a / b - (adjust ? 1 : 0);
}

Value float_operation(std::string_view op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") return std::pow(a, b);
  if (b == 0) template_error("float division by zero");
  if (op == "/") return a / b;
  if (op == "//") return std::floor(a / b);
  const double remainder = std::fmod(a, b);
  return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}

Value repeat(const Value& value, int64_t count, Budget& budget) {
  count = std::max<int64_t>(count, 0);
  const auto charge = [&](size_t bytes_each) {
    size_t total = 0;
    const bool overflow = __builtin_mul_overflow(bytes_each, static_cast<size_t>(count), &total);
    budget.bytes(overflow ? SIZE_MAX : total);
  };
  if (value.is_string()) {
    const std::string& text = value.text();
    if (text.empty()) return value;
    charge(text.size());
    std::string out;
    for (int64_t i = 0; i < count; ++i) out += text;
    return Value(std::move(out));
  }
  const auto& items = value.list().items;
  if (items.empty()) return value;
  charge(items.size() * sizeof(Value));
  std::vector<Value> out;
  for (int64_t i = 0; i < count; ++i) out.insert(out.end(), items.begin(), items.end());
  return make_list(std::move(out), budget, value.list().is_tuple);
}

// "text %s" % arguments, for %s %r %d %i %x %f %% and a precision.
Value format_percent(const std::string& format, const Value& arguments, Budget& budget) {
  std::vector<Value> list;
  if (arguments.is_list() && arguments.list().is_tuple) {
    list = arguments.list().items;
  } else {
    list.push_back(arguments);
  }
  budget.steps(format.size() / 4 + 1);
  std::string out;
  size_t used = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    int precision = 6;
    if (++i < format.size() && format[i] == '.') {
      precision = 0;
      for (++i; i < format.size() && format[i] >= '0' && format[i] <= '9'; ++i) {
        precision = std::min(precision * 10 + (format[i] - '0'), 100);
      }
    }
    const char kind = i < format.size() ? format[i] : '\0';
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (used >= list.size()) template_error("not enough arguments for format string");
    const Value& argument = list[used++];
    if (kind == 's') {
      out += to_text(argument, budget);
    } else if (kind == 'r') {
      out += to_repr(argument, budget);
    } else if ((kind == 'd' || kind == 'i') && argument.is_number()) {
      if (!argument.is_integer() && !(std::abs(argument.number()) < 9e18))
        bad_operands("%", format, argument);
      out += std::to_string(argument.is_integer() ? argument.integer()
                                                  : static_cast<int64_t>(argument.number()));
    } else if ((kind == 'x' || kind == 'f') && argument.is_number()) {
      char buffer[512];
      if (kind == 'x' && argument.is_integer()) {
        snprintf(buffer, sizeof buffer, "%llx",
                 static_cast<unsigned long long>(argument.integer()));
      } else {
        snprintf(buffer, sizeof buffer, "%.*f", precision, argument.number());
      }
      out += buffer;
    } else {
      fail(ErrorCode::kUnsupported, "chat template: format '%", std::string(1, kind), "' of a ",
           argument.type_name(), " is not supported");
    }
  }
  if (used < list.size() && !arguments.is_dict()) {
    template_error("not all arguments converted during string formatting");
  }
  budget.bytes(out.size());
  return Value(std::move(out));
}

}  // namespace

void require_defined(const Value& value) {
  if (const auto* undefined = std::get_if<Undefined>(&value.storage())) {
    template_error(undefined->reason ? *undefined->reason : "value is undefined");
  }
}

Value binary_operation(std::string_view op, const Value& left, const Value& right, Budget& budget) {
  require_defined(left);
  require_defined(right);
  if (left.is_integer() && right.is_integer()) {
    return integer_operation(op, left.integer(), right.integer());
  }
  if (left.is_number() && right.is_number()) {
    return float_operation(op, left.number(), right.number());
  }
  if (op == "+" && left.is_string() && right.is_string()) {
    budget.bytes(left.text().size() + right.text().size());
    return Value(left.text() + right.text());
  }
  if (op == "+" && left.is_list() && right.is_list() &&
      left.list().is_tuple == right.list().is_tuple) {
    std::vector<Value> items;
    budget.bytes((left.list().items.size() + right.list().items.size()) * sizeof(Value));
    items = left.list().items;
    items.insert(items.end(), right.list().items.begin(), right.list().items.end());
    return make_list(std::move(items), budget, left.list().is_tuple);
  }
  if (op == "*") {
    const bool left_repeats = left.is_string() || left.is_list();
    const bool right_repeats = right.is_string() || right.is_list();
    if (left_repeats && right.is_integer()) return repeat(left, right.integer(), budget);
    if (right_repeats && left.is_integer()) return repeat(right, left.integer(), budget);
  }
  if (op == "%" && left.is_string()) return format_percent(left.text(), right, budget);
  if (op == "+" && left.is_string()) {
    template_error("can only concatenate str (not \"", right.type_name(), "\") to str");
  }
  bad_operands(op, left, right);
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (container.is_string()) {
    require_defined(item);
    if (!item.is_string()) {
      template_error("'in <string>' requires string as left operand, not ", item.type_name());
    }
    // memmem-like search is linear in practice; a bad case costs needle times haystack.
    budget.steps(container.text().size() / 16 + 1);
    if (item.text().size() > 64) budget.steps(container.text().size() / 4);
    return container.text().find(item.text()) != std::string::npos;
  }
  if (container.is_list()) {
    const auto& items = container.list().items;
    return std::any_of(items.begin(), items.end(),
                       [&](const Value& other) { return equal(item, other, budget); });
  }
  if (container.is_dict()) return container.dict().find(item, budget) != nullptr;
  if (container.is_undefined()) return false;
  template_error("argument of type '", container.type_name(), "' is not iterable");
}

std::optional<Value> element(const Value& value, int64_t index, Budget& budget) {
  if (value.is_list()) {
    const auto& items = value.list().items;
    if (index < 0) index += std::ssize(items);
    if (index < 0 || index >= std::ssize(items)) return std::nullopt;
    return items[index];
  }
  const std::string_view text = value.text();
  budget.steps(text.size() / 16);
  if (index < 0) index += count_codepoints(text);
  if (index < 0) return std::nullopt;
  size_t end = codepoint_offset(text, index);
  if (end >= text.size()) return std::nullopt;
  const size_t begin = end;
  next_codepoint(text, end);
  return Value(text.substr(begin, end - begin));
}

Value slice(const Value& value, const Value& begin, const Value& end, const Value& step,
            Budget& budget) {
  require_defined(value);
  if (!value.is_list() && !value.is_string()) {
    return Value::undefined(str("'", value.type_name(), "' object cannot be sliced"));
  }
  const auto bound = [&](const Value& given, int64_t otherwise) {
    if (given.is_none()) return otherwise;
    require_defined(given);
    if (!given.is_integer()) template_error("slice indices must be integers or None");
    return given.integer();
  };
  if (value.is_string()) budget.steps(value.text().size() / 8);
  const int64_t count =
      value.is_list() ? std::ssize(value.list().items) : count_codepoints(value.text());
  const int64_t stride = bound(step, 1);
  if (stride == 0) template_error("slice step cannot be zero");
  // As Python's slice.indices: negative bounds count from the end, then both are clamped.
  const int64_t low = stride > 0 ? 0 : -1;
  const int64_t high = stride > 0 ? count : count - 1;
  const auto clamp = [&](int64_t at) {
    return std::clamp(at < 0 ? std::max(at + count, low) : at, low, high);
  };
  const int64_t first = begin.is_none() ? (stride > 0 ? low : high) : clamp(bound(begin, 0));
  const int64_t last = end.is_none() ? (stride > 0 ? high : low) : clamp(bound(end, 0));

  if (value.is_string() && stride == 1) {
    const std::string_view text = value.text();
    const size_t from = codepoint_offset(text, first);
    const std::string_view part =
        text.substr(from, codepoint_offset(text.substr(from), std::max<int64_t>(0, last - first)));
    budget.bytes(part.size());
    return Value(part);
  }
  const std::vector<Value> characters =
      value.is_string() ? iterate(value, budget) : std::vector<Value>();
  const std::vector<Value>& items = value.is_string() ? characters : value.list().items;
  std::vector<Value> picked;
  for (int64_t at = first; stride > 0 ? at < last : at > last;) {
    picked.push_back(items[at]);
    if (__builtin_add_overflow(at, stride, &at)) break;
  }
  if (value.is_list()) return make_list(std::move(picked), budget, value.list().is_tuple);
  std::string text;
  for (const Value& character : picked) text += character.text();
  budget.bytes(text.size());
  return Value(std::move(text));
}

}  // namespace lathe::jinja
