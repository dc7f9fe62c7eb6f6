// Statements of templates.
#include <utility>

#include "text/jinja_ast.h"
#include "text/jinja_expression_parser.h"

namespace lathe::jinja {
namespace {

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(source) {}

  Body run() {
    Body body = parse_body({});
    if (current().kind != Token::Kind::kEnd) error("unexpected end of a block");
    return body;
  }

 private:
  using Names = std::vector<std::string_view>;

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

  int loop_depth_ = 0;
};

}  // namespace

Body parse_template(std::string_view source) { return Parser(source).run(); }

}  // namespace lathe::jinja
