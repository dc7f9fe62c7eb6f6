// The tree of a parsed template. One struct for all expressions and one for all statements: the
// interpreter is a switch over `kind`, and what the fields mean for each kind stands beside it.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "text/jinja_value.h"

namespace lathe::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  enum class Kind {
    kConst,      // constant
    kName,       // text
    kList,       // children
    kTuple,      // children
    kDict,       // children: key, value, key, value, ...
    kAttribute,  // children[0].text
    kItem,       // children[0][children[1]]
    kSlice,      // only as children[1] of kItem: begin, end, step; each may be null
    kCall,       // children[0](arguments); arguments are children[1..]
    kFilter,     // children[0] | text(arguments); children[0] is null in filter blocks
    kTest,       // children[0] is text(arguments)
    kNot,
    kNegate,
    kPlus,
    kBinary,   // children[0] text children[1], text one of + - * / // % **
    kConcat,   // children joined by ~
    kCompare,  // children[0] operators[0] children[1] operators[1] children[2] ...
    kAnd,      // children[0] and children[1]
    kOr,
    kCondition,  // children[0] if children[1] else children[2] (null: undefined)
  };
  Kind kind = Kind::kConst;
  int line = 1;
  int depth = 1;  // of the tree below, at least; bounded by the parser
  std::string text = "";
  Value constant = {};
  std::vector<ExprPtr> children = {};
  // kCall, kFilter, kTest: one per argument; "" positional, "*" and "**" unpack, else a name.
  std::vector<std::string> keywords = {};
  std::vector<std::string> operators = {};  // kCompare: == != < <= > >= in notin
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

struct Statement {
  enum class Kind {
    kText,         // text
    kPrint,        // expr
    kIf,           // branches
    kFor,          // target in expr if condition: body, else_body
    kSet,          // target = expr
    kSetBlock,     // target = body | expr (a chain of filters, or null)
    kMacro,        // text(parameters): body
    kCallBlock,    // expr is the call, body its caller with parameters
    kFilterBlock,  // expr is the chain of filters
    kWith,         // targets = values, then body
    kScope,        // body in a scope of its own (generation)
    kBreak,
    kContinue,
  };
  struct Branch {
    ExprPtr condition;  // null: else
    Body body;
  };
  struct Parameter {
    std::string name;
    ExprPtr otherwise;  // null: none
  };
  // A name, a name's attribute, or a tuple of names.
  struct Target {
    std::vector<std::string> names;
    std::string attribute;  // of names[0], a namespace; "": none
    bool is_tuple = false;
  };
  Kind kind = Kind::kText;
  int line = 1;
  std::string text = "";
  ExprPtr expr = nullptr;
  ExprPtr condition = nullptr;
  Target target = {};
  std::vector<Branch> branches = {};
  std::vector<Parameter> parameters = {};
  std::vector<std::pair<Target, ExprPtr>> assignments = {};  // kWith
  Body body = {};
  Body else_body = {};
};

// Throws kCorruptData for what is not a template, kUnsupported for Jinja that chat templates do not
// use (include, extends, import) and for trees too deep to walk.
Body parse_template(std::string_view source);

}  // namespace lathe::jinja
