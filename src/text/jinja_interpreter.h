// Runs a parsed template. One Interpreter renders once, in one thread.
#pragma once
#include <ctime>
#include <deque>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_value.h"

namespace lathe::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// The arguments of a call in the order of a signature. Throws kInvalidArgument for too many and for
// names that the signature does not have.
class Parameters {
 public:
  Parameters(const Arguments& arguments, std::string_view function,
             std::initializer_list<std::string_view> names);
  // Null when the caller did not give it.
  const Value* operator[](size_t index) const { return values_[index]; }
  // Throw kInvalidArgument for another type.
  int64_t integer(size_t index, int64_t otherwise) const;
  bool boolean(size_t index, bool otherwise) const;
  const std::string* text(size_t index) const;  // null: not given, or None
  const Value& required(size_t index) const;

 private:
  std::string_view function_;
  std::vector<std::string_view> names_;
  std::vector<const Value*> values_;
};

// What can be called.
struct Callable {
  enum class Kind { kMacro, kFunction, kMethod };
  Kind kind = Kind::kFunction;
  std::string name = "";
  Value self = {};                   // kMethod
  const Statement* macro = nullptr;  // kMacro: parameters and body (also of a call block)
  size_t scope = 0;                  // kMacro: where it was defined, if that is still alive
  uint64_t scope_id = 0;
};

class Interpreter {
 public:
  Interpreter(Budget& budget, std::time_t now);
  std::string run(const Body& body, std::vector<std::pair<std::string, Value>> variables);

  Budget& budget() { return budget_; }
  std::time_t now() const { return now_; }

  Value call(const Value& callee, const Arguments& arguments);
  Value apply_filter(std::string_view name, const Value& value, const Arguments& arguments);
  bool apply_test(std::string_view name, const Value& value, const Arguments& arguments);
  // value.name and value[key]; undefined where there is no such thing.
  Value attribute(const Value& value, std::string_view name);
  Value item(const Value& value, const Value& key);

  // Takes ownership until the end of the rendering.
  Object* keep(std::unique_ptr<Object> object);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  struct Scope {
    size_t parent;
    uint64_t id;
    std::vector<std::pair<std::string, Value>> variables;
  };
  // Opens a scope under `parent` and makes it the current one.
  class ScopeGuard;
  // Pays for one step and counts one level; throws kUnsupported when there are too many.
  class DepthGuard;

  Flow execute(const Body& body);
  Flow execute(const Statement& statement);
  Flow execute_for(const Statement& loop);
  Flow execute_capturing(const Body& body, std::string& out);
  Value macro_value(const Statement& statement);
  Value call_macro(const Callable& callable, const Arguments& arguments);
  void assign(const Statement::Target& target, const Value& value);
  void set(std::string_view name, Value value);
  const Value* find(std::string_view name);
  void print(std::string_view text);

  Value evaluate(const Expr& expr);
  Value evaluate_name(const Expr& expr);
  Value evaluate_list(const Expr& expr);
  Value evaluate_dict(const Expr& expr);
  Value evaluate_concat(const Expr& expr);
  Value evaluate_compare(const Expr& expr);
  Value evaluate_binary(const Expr& expr);
  Value evaluate_call(const Expr& expr);
  Value evaluate_filter(const Expr& expr);
  Value evaluate_item(const Expr& expr);
  Value filter_chain(const Expr& chain, Value input);
  Arguments evaluate_arguments(const Expr& expr);

  Budget& budget_;
  std::time_t now_;
  std::deque<Scope> scopes_;
  size_t current_ = 0;
  uint64_t next_scope_id_ = 0;
  int depth_ = 0;
  std::string* out_ = nullptr;
  std::vector<std::unique_ptr<Object>> objects_;
};

class Interpreter::DepthGuard {
 public:
  explicit DepthGuard(Interpreter& interpreter);
  ~DepthGuard() { --interpreter_.depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  Interpreter& interpreter_;
};

// The variable `loop`.
struct Loop : Object {
  std::vector<Value> items;
  size_t index = 0;
  mutable Value last_changed;

  const char* type_name() const override { return "LoopContext"; }
  bool get(std::string_view name, Value& value) const override;
};

// namespace(): attributes that templates set.
struct Namespace : Object {
  const char* type_name() const override { return "Namespace"; }
  bool get(std::string_view name, Value& value) const override;
  void set(std::string_view name, Value value);
  std::vector<std::pair<std::string, Value>> attributes;
};

// jinja_operators.cpp
Value binary_operation(std::string_view op, const Value& left, const Value& right, Budget& budget);
bool contains(const Value& container, const Value& item, Budget& budget);
std::optional<Value> element(const Value& list_or_text, int64_t index, Budget& budget);
Value slice(const Value& value, const Value& begin, const Value& end, const Value& step,
            Budget& budget);
// Throws what an operation on an undefined value throws; returns for all others.
void require_defined(const Value& value);

// jinja_methods.cpp
bool has_method(const Value& value, std::string_view name);
Value call_method(Interpreter& interpreter, const Value& self, std::string_view name,
                  const Arguments& arguments);
// str.replace; count < 0: all.
std::string replace_text(const std::string& text, const std::string& from, const std::string& to,
                         int64_t count, Budget& budget);
// jinja_functions.cpp
bool has_function(std::string_view name);
Value call_function(Interpreter& interpreter, std::string_view name, const Arguments& arguments);

}  // namespace lathe::jinja
