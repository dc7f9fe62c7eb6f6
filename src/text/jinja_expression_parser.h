// Expressions of templates: a recursive-descent parser with Jinja's precedences.
#pragma once
#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace lathe::jinja {

// The token stream and the rules for expressions; the rules for statements are built on it
// (jinja_parser.cpp).
class ExpressionParser {
 protected:
  explicit ExpressionParser(std::string_view source) : tokens_(tokenize_template(source)) {}

  // Deepest tree of expressions, and deepest nesting of brackets and blocks. Walking a level takes
  // below 1 KiB of stack (more under a sanitizer); published templates stay below 30.
  static constexpr int kMaxDepth = 200;

  using Kind = Token::Kind;

  // ---- tokens ----
  const Token& current() const { return tokens_[pos_]; }
  const Token& look() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  const Token& next() { return tokens_[pos_ + 1 < tokens_.size() ? pos_++ : pos_]; }
  bool at_operator(std::string_view op) const {
    return current().kind == Kind::kOperator && current().text == op;
  }
  bool at_name(std::string_view name) const {
    return current().kind == Kind::kName && current().text == name;
  }
  bool skip_operator(std::string_view op) { return at_operator(op) && (next(), true); }
  bool skip_name(std::string_view name) { return at_name(name) && (next(), true); }

  [[noreturn]] void error(std::string_view what) const {
    fail(ErrorCode::kCorruptData, "chat template, line ", current().line, ": ", what);
  }
  [[noreturn]] void unexpected() const {
    switch (current().kind) {
      case Kind::kEnd:
        error("unexpected end of template");
      case Kind::kBlockEnd:
      case Kind::kVariableEnd:
        error("unexpected end of a tag");
      default:
        error("unexpected '" + current().text.substr(0, 50) + "'");
    }
  }
  void expect_operator(std::string_view op) {
    if (!skip_operator(op)) unexpected();
  }
  void expect(Kind kind) {
    if (current().kind != kind) unexpected();
    next();
  }
  std::string expect_any_name() {
    if (current().kind != Kind::kName) unexpected();
    return next().text;
  }
  void expect_name(std::string_view name) {
    if (!skip_name(name)) unexpected();
  }

  // Guards the recursion of the parser itself.
  struct Nesting {
    explicit Nesting(ExpressionParser& owner) : parser(owner) {
      if (parser.nesting_ >= kMaxDepth) parser.too_deep();
      ++parser.nesting_;
    }
    ~Nesting() { --parser.nesting_; }
    ExpressionParser& parser;
  };
  [[noreturn]] void too_deep() const {
    fail(ErrorCode::kUnsupported, "chat template, line ", current().line, ": nested deeper than ",
         kMaxDepth);
  }

  ExprPtr make(Expr::Kind kind, std::vector<ExprPtr> children = {}, std::string text = "") {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = current().line;
    expr->text = std::move(text);
    for (const ExprPtr& child : children) {
      if (child != nullptr) expr->depth = std::max(expr->depth, child->depth + 1);
    }
    if (expr->depth > kMaxDepth) too_deep();
    expr->children = std::move(children);
    return expr;
  }
  template <typename... Children>
  ExprPtr make_from(Expr::Kind kind, std::string text, Children... children) {
    std::vector<ExprPtr> list;
    (list.push_back(std::move(children)), ...);
    return make(kind, std::move(list), std::move(text));
  }
  ExprPtr constant(Value value) {
    ExprPtr expr = make(Expr::Kind::kConst);
    expr->constant = std::move(value);
    return expr;
  }

  // ---- rules, loosest binding first ----
  ExprPtr parse_expression(bool with_condition = true);
  ExprPtr parse_condition();
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filter);
  ExprPtr parse_primary();
  // Expressions with commas between them are a tuple, also without parentheses.
  ExprPtr parse_tuple(bool with_condition = true, bool may_be_empty = false);
  bool at_tuple_end() const;
  ExprPtr parse_postfix(ExprPtr expr);
  ExprPtr parse_subscript();
  // "(a, b=c, *d, **e)" behind what is called.
  ExprPtr parse_call(ExprPtr callee);
  void parse_arguments(Expr& call);
  ExprPtr parse_filters_and_tests(ExprPtr expr);
  // "| a | b(c)" behind expr, which is null in a block; inline: the first has no "|".
  ExprPtr parse_filters(ExprPtr expr, bool is_inline);
  ExprPtr parse_test(ExprPtr expr);
  bool starts_test_argument() const;

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int nesting_ = 0;
};

}  // namespace lathe::jinja
