// Tests: `value is NAME`.
#include <functional>
#include <unordered_map>

#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace lathe::jinja {
namespace {

using Test = std::function<bool(const Value&)>;

const std::unordered_map<std::string_view, Test>& plain_tests() {
  static const std::unordered_map<std::string_view, Test> tests = {
      {"defined", [](const Value& v) { return !v.is_undefined(); }},
      {"undefined", [](const Value& v) { return v.is_undefined(); }},
      {"none", [](const Value& v) { return v.is_none(); }},
      {"boolean", [](const Value& v) { return v.is<bool>(); }},
      {"true", [](const Value& v) { return v.is<bool>() && v.truthy(); }},
      {"false", [](const Value& v) { return v.is<bool>() && !v.truthy(); }},
      {"integer", [](const Value& v) { return v.is<int64_t>(); }},
      {"float", [](const Value& v) { return v.is<double>(); }},
      {"number", [](const Value& v) { return v.is_number(); }},
      {"string", [](const Value& v) { return v.is_string(); }},
      {"mapping", [](const Value& v) { return v.is_dict(); }},
      {"sequence", [](const Value& v) { return v.is_string() || v.is_list() || v.is_dict(); }},
      {"iterable",
       [](const Value& v) {
         return v.is_string() || v.is_list() || v.is_dict() || v.is_undefined();
       }},
      {"callable", [](const Value& v) { return v.callable() != nullptr; }},
      {"lower", [](const Value& v) { return v.is_string() && all_of_kind(v.text(), "islower"); }},
      {"upper", [](const Value& v) { return v.is_string() && all_of_kind(v.text(), "isupper"); }},
      {"escaped", [](const Value&) { return false; }},
  };
  return tests;
}

// Names of the tests that compare with an argument, and the comparison that each is.
std::string_view comparison_of(std::string_view name) {
  static const std::unordered_map<std::string_view, std::string_view> names = {
      {"eq", "=="}, {"equalto", "=="},  {"==", "=="}, {"ne", "!="},         {"!=", "!="},
      {"lt", "<"},  {"lessthan", "<"},  {"<", "<"},   {"le", "<="},         {"<=", "<="},
      {"gt", ">"},  {">", ">"},         {"ge", ">="}, {"greaterthan", ">"}, {">=", ">="},
      {"in", "in"}, {"sameas", "same"},
  };
  const auto found = names.find(name);
  return found == names.end() ? std::string_view() : found->second;
}

bool compare_test(std::string_view op, const Value& value, const Value& other, Budget& budget) {
  if (op == "==" || op == "!=") return equal(value, other, budget) == (op == "==");
  if (op == "in") return contains(other, value, budget);
  if (op == "same") {  // the same object: for what templates compare so, type and value
    return value.storage().index() == other.storage().index() && equal(value, other, budget);
  }
  const int order = compare(value, other, op, budget);
  return order != 2 && (op == "<"    ? order < 0
                        : op == "<=" ? order <= 0
                        : op == ">"  ? order > 0
                                     : order >= 0);
}

}  // namespace

bool Interpreter::apply_test(std::string_view name, const Value& value,
                             const Arguments& arguments) {
  budget_.steps(value.is_string() ? value.text().size() / 64 + 1 : 1);
  const auto plain = plain_tests().find(name);
  if (plain != plain_tests().end()) {
    const Parameters none(arguments, name, {});
    return plain->second(value);
  }
  if (const std::string_view op = comparison_of(name); !op.empty()) {
    const Parameters p(arguments, name, {"other"});
    return compare_test(op, value, p.required(0), budget_);
  }
  if (name == "odd" || name == "even" || name == "divisibleby") {
    const Parameters p(arguments, name, {"num"});
    const Value divisor = name == "divisibleby" ? p.required(0) : Value(2);
    const Value remainder = binary_operation("%", value, divisor, budget_);
    return equal(remainder, name == "odd" ? 1 : 0, budget_);
  }
  fail(ErrorCode::kUnsupported, "chat template: no test named '", name.substr(0, 100), "'");
}

}  // namespace lathe::jinja
