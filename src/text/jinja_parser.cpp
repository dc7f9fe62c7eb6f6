#include <array>
#include <optional>
#include <utility>

#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace lathe::jinja {
namespace {

// Deepest tree of expressions, and deepest nesting of brackets and blocks. Walking a level takes
// below 1 KiB of stack (more under a sanitizer); published templates stay below 30.
constexpr int kMaxDepth = 200;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize_template(source)) {}

  Body run() {
    Body body = parse_body({});
    if (current().kind != Token::Kind::kEnd) error("unexpected end of a block");
    return body;
  }

 private:
  using Kind = Token::Kind;
  using Names = std::vector<std::string_view>;

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
    explicit Nesting(Parser& owner) : parser(owner) {
      if (parser.nesting_ >= kMaxDepth) parser.too_deep();
      ++parser.nesting_;
    }
    ~Nesting() { --parser.nesting_; }
    Parser& parser;
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

  // ---- statements ----
  // Until one of the names opens a block tag; the name is then the current token.
  Body parse_body(const Names& ends) {
    const Nesting nesting(*this);
    Body body;
    for (;;) {
      if (current().kind == Kind::kEnd) {
        if (!ends.empty())
          error("unexpected end of template: missing {% " + std::string(ends.back()) + " %}");
        return body;
      }
      if (current().kind == Kind::kText) {
        Statement& text = add(body, Statement::Kind::kText);
        text.text = next().text;
      } else if (current().kind == Kind::kVariableBegin) {
        Statement& print = add(body, Statement::Kind::kPrint);
        next();
        print.expr = parse_tuple();
        expect(Kind::kVariableEnd);
      } else {
        expect(Kind::kBlockBegin);
        for (const std::string_view end : ends) {
          if (at_name(end)) return body;
        }
        parse_statement(body);
        expect(Kind::kBlockEnd);
      }
    }
  }

  // A body and its end tag's name, up to but not including "%}".
  Body parse_block(std::string_view end) {
    expect(Kind::kBlockEnd);
    Body body = parse_body({end});
    next();
    return body;
  }

  Statement& add(Body& body, Statement::Kind kind) {
    body.push_back(std::make_unique<Statement>());
    body.back()->kind = kind;
    body.back()->line = current().line;
    return *body.back();
  }

  void parse_statement(Body& body) {
    using S = Statement::Kind;
    if (current().kind != Kind::kName) unexpected();
    if (skip_name("if")) {
      parse_if(add(body, S::kIf));
    } else if (skip_name("for")) {
      parse_for(add(body, S::kFor));
    } else if (skip_name("set")) {
      parse_set(add(body, S::kSet));
    } else if (skip_name("macro")) {
      Statement& macro = add(body, S::kMacro);
      macro.text = expect_any_name();
      macro.parameters = parse_parameters();
      macro.body = parse_block("endmacro");
    } else if (skip_name("call")) {
      Statement& call = add(body, S::kCallBlock);
      if (at_operator("(")) call.parameters = parse_parameters();
      call.expr = parse_expression();
      if (call.expr->kind != Expr::Kind::kCall) error("expected a call");
      call.body = parse_block("endcall");
    } else if (skip_name("filter")) {
      Statement& filter = add(body, S::kFilterBlock);
      filter.expr = parse_filters(nullptr, true);
      filter.body = parse_block("endfilter");
    } else if (skip_name("with")) {
      parse_with(add(body, S::kWith));
    } else if (skip_name("generation")) {
      add(body, S::kScope).body = parse_block("endgeneration");
    } else if (skip_name("break")) {
      add_loop_control(body, S::kBreak);
    } else if (skip_name("continue")) {
      add_loop_control(body, S::kContinue);
    } else if (skip_name("print")) {
      add(body, S::kPrint).expr = parse_expression();
    } else {
      for (const char* known :
           {"include", "import", "from", "extends", "block", "autoescape", "do"}) {
        if (at_name(known)) {
          fail(ErrorCode::kUnsupported, "chat template, line ", current().line, ": {% ", known,
               " %} is not supported");
        }
      }
      error("unknown tag '" + current().text.substr(0, 50) + "'");
    }
  }

  void add_loop_control(Body& body, Statement::Kind kind) {
    if (loop_depth_ == 0) error("break or continue outside of a loop");
    add(body, kind);
  }

  void parse_if(Statement& statement) {
    for (bool is_else = false;;) {
      Statement::Branch branch;
      if (!is_else) branch.condition = parse_tuple(false);
      expect(Kind::kBlockEnd);
      branch.body = is_else ? parse_body({"endif"}) : parse_body({"elif", "else", "endif"});
      statement.branches.push_back(std::move(branch));
      const std::string end = next().text;
      if (end == "endif") return;
      is_else = end == "else";
    }
  }

  void parse_for(Statement& loop) {
    loop.target = parse_target(false);
    expect_name("in");
    loop.expr = parse_tuple(false);
    if (skip_name("if")) loop.condition = parse_expression();
    if (at_name("recursive")) {
      fail(ErrorCode::kUnsupported, "chat template, line ", current().line,
           ": recursive loops are not supported");
    }
    expect(Kind::kBlockEnd);
    ++loop_depth_;
    loop.body = parse_body({"else", "endfor"});
    --loop_depth_;
    if (next().text == "else") loop.else_body = parse_block("endfor");
  }

  void parse_set(Statement& set) {
    set.target = parse_target(true);
    if (skip_operator("=")) {
      set.expr = parse_tuple();
      return;
    }
    set.kind = Statement::Kind::kSetBlock;
    set.expr = parse_filters(nullptr, false);
    set.body = parse_block("endset");
  }

  void parse_with(Statement& with) {
    while (current().kind != Kind::kBlockEnd) {
      if (!with.assignments.empty()) expect_operator(",");
      Statement::Target target;
      target.names.push_back(expect_any_name());
      expect_operator("=");
      with.assignments.emplace_back(std::move(target), parse_expression());
    }
    with.body = parse_block("endwith");
  }

  Statement::Target parse_target(bool with_namespace) {
    Statement::Target target;
    const bool parenthesised = skip_operator("(");
    for (;;) {
      const std::string name = expect_any_name();
      if (name == "true" || name == "false" || name == "none" || name == "True" ||
          name == "False" || name == "None") {
        error("cannot assign to '" + name + "'");
      }
      target.names.push_back(name);
      if (with_namespace && target.names.size() == 1 && skip_operator(".")) {
        target.attribute = expect_any_name();
        return target;
      }
      if (!skip_operator(",")) break;
      target.is_tuple = true;
      if (current().kind != Kind::kName || at_name("in")) break;  // a comma at the end
    }
    if (parenthesised) expect_operator(")");
    return target;
  }

  std::vector<Statement::Parameter> parse_parameters() {
    std::vector<Statement::Parameter> parameters;
    expect_operator("(");
    while (!at_operator(")")) {
      if (!parameters.empty()) expect_operator(",");
      Statement::Parameter parameter;
      parameter.name = expect_any_name();
      if (skip_operator("=")) {
        parameter.otherwise = parse_expression();
      } else if (!parameters.empty() && parameters.back().otherwise != nullptr) {
        error("a parameter without a default behind one with a default");
      }
      parameters.push_back(std::move(parameter));
    }
    next();
    return parameters;
  }

  // ---- expressions, loosest binding first ----
  ExprPtr parse_expression(bool with_condition = true) {
    const Nesting nesting(*this);
    return with_condition ? parse_condition() : parse_or();
  }

  ExprPtr parse_condition() {
    ExprPtr value = parse_or();
    while (skip_name("if")) {
      ExprPtr test = parse_or();
      ExprPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
      value = make_from(Expr::Kind::kCondition, "", std::move(value), std::move(test),
                        std::move(otherwise));
    }
    return value;
  }

  ExprPtr parse_or() {
    ExprPtr left = parse_and();
    while (skip_name("or")) left = make_from(Expr::Kind::kOr, "", std::move(left), parse_and());
    return left;
  }

  ExprPtr parse_and() {
    ExprPtr left = parse_not();
    while (skip_name("and")) left = make_from(Expr::Kind::kAnd, "", std::move(left), parse_not());
    return left;
  }

  ExprPtr parse_not() {
    const Nesting nesting(*this);
    if (skip_name("not")) return make_from(Expr::Kind::kNot, "", parse_not());
    return parse_compare();
  }

  ExprPtr parse_compare() {
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

  ExprPtr parse_sum() {
    ExprPtr left = parse_concat();
    while (at_operator("+") || at_operator("-")) {
      const std::string op = next().text;
      left = make_from(Expr::Kind::kBinary, op, std::move(left), parse_concat());
    }
    return left;
  }

  ExprPtr parse_concat() {
    std::vector<ExprPtr> parts;
    parts.push_back(parse_product());
    while (skip_operator("~")) parts.push_back(parse_product());
    if (parts.size() == 1) return std::move(parts[0]);
    return make(Expr::Kind::kConcat, std::move(parts));
  }

  ExprPtr parse_product() {
    ExprPtr left = parse_power();
    while (at_operator("*") || at_operator("/") || at_operator("//") || at_operator("%")) {
      const std::string op = next().text;
      left = make_from(Expr::Kind::kBinary, op, std::move(left), parse_power());
    }
    return left;
  }

  ExprPtr parse_power() {
    ExprPtr left = parse_unary(true);
    while (skip_operator("**")) {
      left = make_from(Expr::Kind::kBinary, "**", std::move(left), parse_unary(true));
    }
    return left;
  }

  ExprPtr parse_unary(bool with_filter) {
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

  ExprPtr parse_primary() {
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

  // Expressions with commas between them are a tuple, also without parentheses.
  ExprPtr parse_tuple(bool with_condition = true, bool may_be_empty = false) {
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

  bool at_tuple_end() const {
    return current().kind == Kind::kVariableEnd || current().kind == Kind::kBlockEnd ||
           current().kind == Kind::kEnd || at_operator(")");
  }

  ExprPtr parse_postfix(ExprPtr expr) {
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

  ExprPtr parse_subscript() {
    ExprPtr parts[3];
    if (!at_operator(":")) {
      parts[0] = parse_expression();
      if (!at_operator(":")) return std::move(parts[0]);
    }
    for (int i = 1; i < 3 && skip_operator(":"); ++i) {
      if (!at_operator(":") && !at_operator("]") && !at_operator(","))
        parts[i] = parse_expression();
    }
    return make_from(Expr::Kind::kSlice, "", std::move(parts[0]), std::move(parts[1]),
                     std::move(parts[2]));
  }

  // "(a, b=c, *d, **e)" behind what is called.
  ExprPtr parse_call(ExprPtr callee) {
    ExprPtr call = make_from(Expr::Kind::kCall, "", std::move(callee));
    parse_arguments(*call);
    return call;
  }

  void parse_arguments(Expr& call) {
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

  ExprPtr parse_filters_and_tests(ExprPtr expr) {
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

  // "| a | b(c)" behind expr, which is null in a block; inline: the first has no "|".
  ExprPtr parse_filters(ExprPtr expr, bool is_inline) {
    while (is_inline || skip_operator("|")) {
      is_inline = false;
      std::string name = expect_any_name();
      expr = make_from(Expr::Kind::kFilter, std::move(name), std::move(expr));
      if (at_operator("(")) parse_arguments(*expr);
    }
    return expr;
  }

  ExprPtr parse_test(ExprPtr expr) {
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

  bool starts_test_argument() const {
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

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int nesting_ = 0;
  int loop_depth_ = 0;
};

}  // namespace

Body parse_template(std::string_view source) { return Parser(source).run(); }

}  // namespace lathe::jinja
