#include "text/jinja_interpreter.h"

#include <algorithm>

namespace lathe::jinja {
namespace {

// Levels of statements, expressions and macro calls together. One takes 1 to 2 KiB of stack,
// several times that under a sanitizer; a recursive macro that prints a JSON schema uses about 12
// per level.
constexpr int kMaxDepth = 500;

}  // namespace

Interpreter::DepthGuard::DepthGuard(Interpreter& interpreter) : interpreter_(interpreter) {
  interpreter_.budget_.steps(1);
  if (interpreter_.depth_ >= kMaxDepth) {
    fail(ErrorCode::kUnsupported, "chat template: nested deeper than ", kMaxDepth);
  }
  ++interpreter_.depth_;
}

class Interpreter::ScopeGuard {
 public:
  ScopeGuard(Interpreter& interpreter, size_t parent)
      : interpreter_(interpreter), previous_(interpreter.current_) {
    interpreter_.scopes_.push_back({parent, interpreter_.next_scope_id_++, {}});
    interpreter_.current_ = interpreter_.scopes_.size() - 1;
  }
  ~ScopeGuard() {
    interpreter_.scopes_.pop_back();
    interpreter_.current_ = previous_;
  }

 private:
  Interpreter& interpreter_;
  size_t previous_;
};

Interpreter::Interpreter(Budget& budget, std::time_t now) : budget_(budget), now_(now) {}

std::string Interpreter::run(const Body& body,
                             std::vector<std::pair<std::string, Value>> variables) {
  std::string out;
  scopes_.push_back({0, next_scope_id_++, std::move(variables)});
  execute_capturing(body, out);
  return out;
}

Object* Interpreter::keep(std::unique_ptr<Object> object) {
  budget_.bytes(256);
  objects_.push_back(std::move(object));
  return objects_.back().get();
}

// ---- variables ----

const Value* Interpreter::find(std::string_view name) {
  for (size_t at = current_;; at = scopes_[at].parent) {
    const auto& variables = scopes_[at].variables;
    budget_.steps(variables.size() / 16);
    for (const auto& [known, value] : variables) {
      if (known == name) return &value;
    }
    if (at == 0) return nullptr;
  }
}

void Interpreter::set(std::string_view name, Value value) {
  auto& variables = scopes_[current_].variables;
  budget_.steps(variables.size() / 16);
  for (auto& [known, old] : variables) {
    if (known != name) continue;
    old = std::move(value);
    return;
  }
  variables.emplace_back(std::string(name), std::move(value));
}

void Interpreter::assign(const Statement::Target& target, const Value& value) {
  if (!target.attribute.empty()) {
    const Value* holder = find(target.names[0]);
    auto* space = holder == nullptr ? nullptr : dynamic_cast<Namespace*>(holder->object());
    if (space == nullptr) template_error("cannot assign attribute on non-namespace object");
    budget_.steps(space->attributes.size() / 16);
    budget_.bytes(sizeof(Value));
    space->set(target.attribute, value);
    return;
  }
  if (!target.is_tuple) return set(target.names[0], value);
  require_defined(value);
  std::vector<Value> items = iterate(value, budget_);
  if (items.size() != target.names.size()) {
    template_error("cannot unpack ", items.size(), " values into ", target.names.size(), " names");
  }
  for (size_t i = 0; i < items.size(); ++i) set(target.names[i], std::move(items[i]));
}

// ---- statements ----

void Interpreter::print(std::string_view text) {
  budget_.bytes(text.size());
  out_->append(text);
}

Interpreter::Flow Interpreter::execute_capturing(const Body& body, std::string& out) {
  struct Restore {
    std::string*& slot;
    std::string* old;
    ~Restore() { slot = old; }
  } restore{out_, out_};
  out_ = &out;
  return execute(body);
}

Interpreter::Flow Interpreter::execute(const Body& body) {
  for (const auto& statement : body) {
    if (const Flow flow = execute(*statement); flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute(const Statement& statement) {
  using Kind = Statement::Kind;
  const DepthGuard guard(*this);
  switch (statement.kind) {
    case Kind::kText:
      print(statement.text);
      return Flow::kNormal;
    case Kind::kPrint: {
      const Value value = evaluate(*statement.expr);
      value.is_string() ? print(value.text()) : print(to_text(value, budget_));
      return Flow::kNormal;
    }
    case Kind::kIf:
      for (const auto& branch : statement.branches) {
        if (branch.condition == nullptr || evaluate(*branch.condition).truthy()) {
          return execute(branch.body);
        }
      }
      return Flow::kNormal;
    case Kind::kFor:
      return execute_for(statement);
    case Kind::kSet:
      assign(statement.target, evaluate(*statement.expr));
      return Flow::kNormal;
    case Kind::kMacro:
      set(statement.text, macro_value(statement));
      return Flow::kNormal;
    case Kind::kSetBlock:
    case Kind::kFilterBlock: {
      std::string text;
      Flow flow;
      {
        const ScopeGuard scope(*this, current_);
        flow = execute_capturing(statement.body, text);
      }
      Value value(std::move(text));
      if (statement.expr != nullptr) value = filter_chain(*statement.expr, std::move(value));
      statement.kind == Kind::kSetBlock ? assign(statement.target, value)
                                        : print(to_text(value, budget_));
      return flow;
    }
    case Kind::kCallBlock: {
      // The call sees its block as the argument `caller`.
      Arguments arguments = evaluate_arguments(*statement.expr);
      const Value callee = evaluate(*statement.expr->children[0]);
      arguments.named.emplace_back("caller", macro_value(statement));
      print(to_text(call(callee, arguments), budget_));
      return Flow::kNormal;
    }
    case Kind::kWith: {
      std::vector<Value> values;
      for (const auto& [target, expr] : statement.assignments) values.push_back(evaluate(*expr));
      const ScopeGuard scope(*this, current_);
      for (size_t i = 0; i < values.size(); ++i) {
        assign(statement.assignments[i].first, values[i]);
      }
      return execute(statement.body);
    }
    case Kind::kScope: {
      const ScopeGuard scope(*this, current_);
      return execute(statement.body);
    }
    case Kind::kBreak:
      return Flow::kBreak;
    case Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute_for(const Statement& statement) {
  std::vector<Value> items = iterate(evaluate(*statement.expr), budget_);
  if (statement.condition != nullptr) {
    std::vector<Value> kept;
    for (Value& item : items) {
      const ScopeGuard scope(*this, current_);
      assign(statement.target, item);
      if (evaluate(*statement.condition).truthy()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    const ScopeGuard scope(*this, current_);
    return execute(statement.else_body);
  }
  auto owned = std::make_unique<Loop>();
  Loop& loop = *owned;
  loop.items = std::move(items);
  const Value loop_value(keep(std::move(owned)));
  for (; loop.index < loop.items.size(); ++loop.index) {
    const ScopeGuard scope(*this, current_);
    set("loop", loop_value);
    assign(statement.target, loop.items[loop.index]);
    if (execute(statement.body) == Flow::kBreak) break;
  }
  return Flow::kNormal;
}

Value Interpreter::macro_value(const Statement& statement) {
  auto callable = std::make_shared<Callable>();
  callable->kind = Callable::Kind::kMacro;
  callable->name = statement.kind == Statement::Kind::kMacro ? statement.text : "caller";
  callable->macro = &statement;
  callable->scope = current_;
  callable->scope_id = scopes_[current_].id;
  return std::shared_ptr<const Callable>(std::move(callable));
}

Value Interpreter::call_macro(const Callable& callable, const Arguments& arguments) {
  // Scopes come and go like a stack: a macro that outlived its own sees the template's variables.
  const bool alive =
      callable.scope < scopes_.size() && scopes_[callable.scope].id == callable.scope_id;
  const ScopeGuard scope(*this, alive ? callable.scope : 0);
  const auto& parameters = callable.macro->parameters;
  if (arguments.positional.size() > parameters.size()) {
    template_error("macro '", callable.name, "' takes not more than ", parameters.size(),
                   " argument(s)");
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    set(parameters[i].name, arguments.positional[i]);
  }
  for (const auto& argument : arguments.named) {
    const std::string& name = argument.first;  // no bindings: clang 14 cannot capture them
    const auto is_named = [&](const auto& parameter) { return parameter.name == name; };
    const bool known = std::any_of(parameters.begin(), parameters.end(), is_named);
    if (!known && name != "caller") {
      template_error("macro '", callable.name, "' takes no keyword argument '", name, "'");
    }
    set(name, argument.second);
  }
  for (size_t i = arguments.positional.size(); i < parameters.size(); ++i) {
    const std::string& name = parameters[i].name;
    const auto given = [&](const auto& argument) { return argument.first == name; };
    if (std::any_of(arguments.named.begin(), arguments.named.end(), given)) continue;
    set(name, parameters[i].otherwise == nullptr
                  ? Value::undefined("parameter '" + name + "' was not provided")
                  : evaluate(*parameters[i].otherwise));
  }
  std::string text;
  execute_capturing(callable.macro->body, text);
  return Value(std::move(text));
}

// ---- expressions ----

Value Interpreter::evaluate(const Expr& expr) {
  using Kind = Expr::Kind;
  const DepthGuard guard(*this);
  switch (expr.kind) {
    case Kind::kConst:
      return expr.constant;
    case Kind::kName:
      return evaluate_name(expr);
    case Kind::kList:
    case Kind::kTuple:
      return evaluate_list(expr);
    case Kind::kDict:
      return evaluate_dict(expr);
    case Kind::kAttribute:
      return attribute(evaluate(*expr.children[0]), expr.text);
    case Kind::kItem:
      return evaluate_item(expr);
    case Kind::kSlice:
      template_error("a slice outside of a subscript");
    case Kind::kCall:
      return evaluate_call(expr);
    case Kind::kFilter:
      return evaluate_filter(expr);
    case Kind::kTest:
      return apply_test(expr.text, evaluate(*expr.children[0]), evaluate_arguments(expr));
    case Kind::kNot:
      return !evaluate(*expr.children[0]).truthy();
    case Kind::kNegate:
      return binary_operation("-", 0, evaluate(*expr.children[0]), budget_);
    case Kind::kPlus:
      return binary_operation("+", 0, evaluate(*expr.children[0]), budget_);
    case Kind::kBinary:
      return evaluate_binary(expr);
    case Kind::kConcat:
      return evaluate_concat(expr);
    case Kind::kCompare:
      return evaluate_compare(expr);
    case Kind::kAnd:
    case Kind::kOr: {
      Value left = evaluate(*expr.children[0]);
      return left.truthy() == (expr.kind == Kind::kOr) ? left : evaluate(*expr.children[1]);
    }
    case Kind::kCondition:
      if (evaluate(*expr.children[1]).truthy()) return evaluate(*expr.children[0]);
      return expr.children[2] != nullptr
                 ? evaluate(*expr.children[2])
                 : Value::undefined(
                       "the inline if-expression evaluated to false and no else "
                       "section was defined.");
  }
  return {};
}

Value Interpreter::evaluate_name(const Expr& expr) {
  if (const Value* found = find(expr.text)) return *found;
  if (has_function(expr.text)) {
    auto callable = std::make_shared<Callable>();
    callable->name = expr.text;
    return std::shared_ptr<const Callable>(std::move(callable));
  }
  return Value::undefined("'" + expr.text + "' is undefined");
}

Value Interpreter::evaluate_list(const Expr& expr) {
  std::vector<Value> items;
  items.reserve(expr.children.size());
  for (const auto& child : expr.children) items.push_back(evaluate(*child));
  return make_list(std::move(items), budget_, expr.kind == Expr::Kind::kTuple);
}

Value Interpreter::evaluate_dict(const Expr& expr) {
  std::vector<std::pair<Value, Value>> items;
  for (size_t i = 0; i < expr.children.size(); i += 2) {
    Value key = evaluate(*expr.children[i]);
    items.emplace_back(std::move(key), evaluate(*expr.children[i + 1]));
  }
  return make_dict(std::move(items), budget_);
}

Value Interpreter::evaluate_concat(const Expr& expr) {
  std::string text;
  for (const auto& child : expr.children) {
    const Value part = evaluate(*child);
    if (part.is_string()) {
      budget_.bytes(part.text().size());
      text += part.text();
    } else {
      text += to_text(part, budget_);
    }
  }
  return Value(std::move(text));
}

Value Interpreter::evaluate_compare(const Expr& expr) {
  Value left = evaluate(*expr.children[0]);
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    const std::string& op = expr.operators[i];
    Value right = evaluate(*expr.children[i + 1]);
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = equal(left, right, budget_) == (op == "==");
    } else if (op == "in" || op == "notin") {
      holds = contains(right, left, budget_) == (op == "in");
    } else {
      const int order = compare(left, right, op, budget_);
      holds = order != 2 && (op == "<"    ? order < 0
                             : op == "<=" ? order <= 0
                             : op == ">"  ? order > 0
                                          : order >= 0);
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::evaluate_binary(const Expr& expr) {
  const Value left = evaluate(*expr.children[0]);
  const Value right = evaluate(*expr.children[1]);
  return binary_operation(expr.text, left, right, budget_);
}

Value Interpreter::evaluate_item(const Expr& expr) {
  const Value value = evaluate(*expr.children[0]);
  const Expr& index = *expr.children[1];
  if (index.kind != Expr::Kind::kSlice) return item(value, evaluate(index));
  Value parts[3] = {None{}, None{}, None{}};
  for (size_t i = 0; i < 3; ++i) {
    if (index.children[i] != nullptr) parts[i] = evaluate(*index.children[i]);
  }
  return slice(value, parts[0], parts[1], parts[2], budget_);
}

Arguments Interpreter::evaluate_arguments(const Expr& expr) {
  Arguments arguments;
  for (size_t i = 0; i < expr.keywords.size(); ++i) {
    const std::string& keyword = expr.keywords[i];
    Value value = evaluate(*expr.children[i + 1]);
    if (keyword.empty()) {
      arguments.positional.push_back(std::move(value));
    } else if (keyword == "*") {
      for (Value& item : iterate(value, budget_)) arguments.positional.push_back(std::move(item));
    } else if (keyword == "**") {
      if (!value.is_dict()) template_error("argument after ** must be a mapping");
      for (const auto& [name, item] : value.dict().items) {
        if (!name.is_string()) template_error("keywords must be strings");
        arguments.named.emplace_back(name.text(), item);
      }
    } else {
      arguments.named.emplace_back(keyword, std::move(value));
    }
  }
  return arguments;
}

Value Interpreter::evaluate_call(const Expr& expr) {
  const Value callee = evaluate(*expr.children[0]);
  return call(callee, evaluate_arguments(expr));
}

Value Interpreter::evaluate_filter(const Expr& expr) {
  const Value value = evaluate(*expr.children[0]);
  return apply_filter(expr.text, value, evaluate_arguments(expr));
}

Value Interpreter::filter_chain(const Expr& chain, Value input) {
  const DepthGuard guard(*this);
  if (chain.children[0] != nullptr) input = filter_chain(*chain.children[0], std::move(input));
  return apply_filter(chain.text, input, evaluate_arguments(chain));
}

}  // namespace lathe::jinja
