#include "text/jinja_expression_parser.h"

#include <array>

namespace lathe::jinja {

ExprPtr ExpressionParser::parse_expression(bool with_condition) {
  const Nesting nesting(*this);
  return with_condition ? parse_condition() : parse_or();
}

ExprPtr ExpressionParser::parse_condition() {
  ExprPtr value = parse_or();
  while (skip_name("if")) {
    ExprPtr test = parse_or();
    ExprPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    value = make_from(Expr::Kind::kCondition, "", std::move(value), std::move(test),
                      std::move(otherwise));
  }
  return value;
}

ExprPtr ExpressionParser::parse_or() {
  ExprPtr left = parse_and();
  while (skip_name("or")) left = make_from(Expr::Kind::kOr, "", std::move(left), parse_and());
  return left;
}

ExprPtr ExpressionParser::parse_and() {
  ExprPtr left = parse_not();
  while (skip_name("and")) left = make_from(Expr::Kind::kAnd, "", std::move(left), parse_not());
  return left;
}

ExprPtr ExpressionParser::parse_not() {
  const Nesting nesting(*this);
  if (skip_name("not")) return make_from(Expr::Kind::kNot, "", parse_not());
  return parse_compare();
}

ExprPtr ExpressionParser::parse_compare() {
  std::vector<ExprPtr> operands;
  std::vector<std::string> operators;
  operands.push_back(parse_sum());
  for (;;) {
    static constexpr std::array kComparisons = {"==", "!=", "<=", ">=", "<", ">"};
    std::string op;
    for (const char* comparison : kComparisons) {
      if (at_operator(comparison)) op = comparison;
    }
    if (!op.empty()) {
      next();
    } else if (skip_name("in")) {
      op = "in";
    } else if (at_name("not") && look().kind == Kind::kName && look().text == "in") {
      next();
      next();
      op = "notin";
    } else {
      break;
    }
    operators.push_back(op);
    operands.push_back(parse_sum());
  }
  if (operators.empty()) return std::move(operands[0]);
  ExprPtr expr = make(Expr::Kind::kCompare, std::move(operands));
  expr->operators = std::move(operators);
  return expr;
}

ExprPtr ExpressionParser::parse_sum() {
  ExprPtr left = parse_concat();
  while (at_operator("+") || at_operator("-")) {
    const std::string op = next().text;
    left = make_from(Expr::Kind::kBinary, op, std::move(left), parse_concat());
  }
  return left;
}

ExprPtr ExpressionParser::parse_concat() {
  std::vector<ExprPtr> parts;
  parts.push_back(parse_product());
  while (skip_operator("~")) parts.push_back(parse_product());
  if (parts.size() == 1) return std::move(parts[0]);
  return make(Expr::Kind::kConcat, std::move(parts));
}

ExprPtr ExpressionParser::parse_product() {
  ExprPtr left = parse_power();
  while (at_operator("*") || at_operator("/") || at_operator("//") || at_operator("%")) {
    const std::string op = next().text;
    left = make_from(Expr::Kind::kBinary, op, std::move(left), parse_power());
  }
  return left;
}

ExprPtr ExpressionParser::parse_power() {
  ExprPtr left = parse_unary(true);
  while (skip_operator("**")) {
    left = make_from(Expr::Kind::kBinary, "**", std::move(left), parse_unary(true));
  }
  return left;
}

ExprPtr ExpressionParser::parse_unary(bool with_filter) {
  const Nesting nesting(*this);
  ExprPtr expr;
  if (skip_operator("-")) {
    expr = make_from(Expr::Kind::kNegate, "", parse_unary(false));
  } else if (skip_operator("+")) {
    expr = make_from(Expr::Kind::kPlus, "", parse_unary(false));
  } else {
    expr = parse_primary();
  }
  expr = parse_postfix(std::move(expr));
  return with_filter ? parse_filters_and_tests(std::move(expr)) : std::move(expr);
}

ExprPtr ExpressionParser::parse_primary() {
  const Token& token = current();
  switch (token.kind) {
    case Kind::kName: {
      const std::string name = next().text;
      if (name == "true" || name == "True") return constant(true);
      if (name == "false" || name == "False") return constant(false);
      if (name == "none" || name == "None") return constant(None{});
      return make(Expr::Kind::kName, {}, name);
    }
    case Kind::kString: {
      std::string text;
      while (current().kind == Kind::kString) text += next().text;
      return constant(std::move(text));
    }
    case Kind::kInteger:
      return constant(next().integer);
    case Kind::kFloat:
      return constant(next().number);
    default:
      break;
  }
  if (skip_operator("(")) {
    ExprPtr expr = parse_tuple(true, true);
    expect_operator(")");
    return expr;
  }
  if (skip_operator("[")) {
    std::vector<ExprPtr> items;
    while (!at_operator("]")) {
      if (!items.empty()) expect_operator(",");
      if (at_operator("]")) break;
      items.push_back(parse_expression());
    }
    next();
    return make(Expr::Kind::kList, std::move(items));
  }
  if (skip_operator("{")) {
    std::vector<ExprPtr> items;
    while (!at_operator("}")) {
      if (!items.empty()) expect_operator(",");
      if (at_operator("}")) break;
      items.push_back(parse_expression());
      expect_operator(":");
      items.push_back(parse_expression());
    }
    next();
    return make(Expr::Kind::kDict, std::move(items));
  }
  unexpected();
}

ExprPtr ExpressionParser::parse_tuple(bool with_condition, bool may_be_empty) {
  std::vector<ExprPtr> items;
  bool is_tuple = false;
  for (;;) {
    if (at_tuple_end()) break;
    items.push_back(parse_expression(with_condition));
    if (!skip_operator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) {
    if (items.size() == 1) return std::move(items[0]);
    if (!may_be_empty) unexpected();
  }
  return make(Expr::Kind::kTuple, std::move(items));
}

bool ExpressionParser::at_tuple_end() const {
  return current().kind == Kind::kVariableEnd || current().kind == Kind::kBlockEnd ||
         current().kind == Kind::kEnd || at_operator(")");
}

ExprPtr ExpressionParser::parse_postfix(ExprPtr expr) {
  for (;;) {
    if (skip_operator(".")) {
      if (current().kind == Kind::kInteger) {
        ExprPtr index = constant(next().integer);
        expr = make_from(Expr::Kind::kItem, "", std::move(expr), std::move(index));
      } else {
        std::string name = expect_any_name();
        expr = make_from(Expr::Kind::kAttribute, std::move(name), std::move(expr));
      }
    } else if (skip_operator("[")) {
      ExprPtr index = parse_subscript();
      if (at_operator(",")) {
        std::vector<ExprPtr> items;
        items.push_back(std::move(index));
        while (skip_operator(",")) items.push_back(parse_subscript());
        for (const ExprPtr& item : items) {
          if (item->kind == Expr::Kind::kSlice) error("slices in a tuple");
        }
        index = make(Expr::Kind::kTuple, std::move(items));
      }
      expect_operator("]");
      expr = make_from(Expr::Kind::kItem, "", std::move(expr), std::move(index));
    } else if (at_operator("(")) {
      expr = parse_call(std::move(expr));
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::parse_subscript() {
  ExprPtr parts[3];
  if (!at_operator(":")) {
    parts[0] = parse_expression();
    if (!at_operator(":")) return std::move(parts[0]);
  }
  for (int i = 1; i < 3 && skip_operator(":"); ++i) {
    if (!at_operator(":") && !at_operator("]") && !at_operator(",")) parts[i] = parse_expression();
  }
  return make_from(Expr::Kind::kSlice, "", std::move(parts[0]), std::move(parts[1]),
                   std::move(parts[2]));
}

ExprPtr ExpressionParser::parse_call(ExprPtr callee) {
  ExprPtr call = make_from(Expr::Kind::kCall, "", std::move(callee));
  parse_arguments(*call);
  return call;
}

void ExpressionParser::parse_arguments(Expr& call) {
  expect_operator("(");
  bool seen_keyword = false;
  while (!at_operator(")")) {
    if (!call.keywords.empty()) {
      expect_operator(",");
      if (at_operator(")")) break;
    }
    std::string keyword;
    if (skip_operator("**")) {
      keyword = "**";
    } else if (skip_operator("*")) {
      keyword = "*";
    } else if (current().kind == Kind::kName && look().kind == Kind::kOperator &&
               look().text == "=") {
      keyword = next().text;
      next();
    } else if (seen_keyword) {
      error("a positional argument behind a keyword argument");
    }
    seen_keyword = seen_keyword || (!keyword.empty() && keyword != "*");
    ExprPtr value = parse_expression();
    call.depth = std::max(call.depth, value->depth + 1);
    if (call.depth > kMaxDepth) too_deep();
    call.keywords.push_back(std::move(keyword));
    call.children.push_back(std::move(value));
  }
  next();
}

ExprPtr ExpressionParser::parse_filters_and_tests(ExprPtr expr) {
  for (;;) {
    if (at_operator("|")) {
      expr = parse_filters(std::move(expr), false);
    } else if (at_name("is")) {
      expr = parse_test(std::move(expr));
    } else if (at_operator("(")) {
      expr = parse_call(std::move(expr));
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::parse_filters(ExprPtr expr, bool is_inline) {
  while (is_inline || skip_operator("|")) {
    is_inline = false;
    std::string name = expect_any_name();
    expr = make_from(Expr::Kind::kFilter, std::move(name), std::move(expr));
    if (at_operator("(")) parse_arguments(*expr);
  }
  return expr;
}

ExprPtr ExpressionParser::parse_test(ExprPtr expr) {
  next();
  const bool negated = skip_name("not");
  std::string name = expect_any_name();
  expr = make_from(Expr::Kind::kTest, std::move(name), std::move(expr));
  if (at_operator("(")) {
    parse_arguments(*expr);
  } else if (starts_test_argument()) {
    if (at_name("is")) error("tests cannot be chained with is");
    ExprPtr argument = parse_postfix(parse_primary());
    expr->depth = std::max(expr->depth, argument->depth + 1);
    if (expr->depth > kMaxDepth) too_deep();
    expr->keywords.emplace_back();
    expr->children.push_back(std::move(argument));
  }
  return negated ? make_from(Expr::Kind::kNot, "", std::move(expr)) : std::move(expr);
}

bool ExpressionParser::starts_test_argument() const {
  switch (current().kind) {
    case Kind::kName:
      return !at_name("else") && !at_name("or") && !at_name("and");
    case Kind::kString:
    case Kind::kInteger:
    case Kind::kFloat:
      return true;
    default:
      return at_operator("[") || at_operator("{");
  }
}

}  // namespace lathe::jinja
