// Values inside a running chat template, with Python's semantics where templates can see them:
// strings are counted in code points, lists and dicts are shared and immutable (transformers
// renders in a sandbox that refuses append and update), printing follows str() and repr().
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace lathe::jinja {

// What a template may spend. A template comes with a model, so it is as hostile as any file: every
// loop, every copy and every comparison pays here, and an Error (kUnsupported) ends the rendering.
class Budget {
 public:
  Budget(int64_t max_steps, int64_t max_bytes) : steps_(max_steps), bytes_(max_bytes) {}
  void steps(size_t count);
  void bytes(size_t count);  // made by the template: strings, lists, output

 private:
  int64_t steps_;
  int64_t bytes_;
};

class Value;
struct List;
struct Dict;
struct Callable;

// A thing with attributes that can change: namespace(), loop. Owned by the running template, so
// that cycles between namespaces and lists are freed with it.
struct Object {
  virtual ~Object() = default;
  virtual const char* type_name() const = 0;
  virtual bool get(std::string_view name, Value& value) const = 0;  // false: no such attribute
};

struct Undefined {
  // What an error says, for example "'dict object' has no attribute 'name'"; null: nothing special.
  std::shared_ptr<const std::string> reason;
};
struct None {};

class Value {
 public:
  // Strings, lists and dicts are shared: Python's names alias one object, and copying a
  // conversation at each look-up would be quadratic.
  using String = std::shared_ptr<const std::string>;
  using Storage =
      std::variant<Undefined, None, bool, int64_t, double, String, std::shared_ptr<const List>,
                   std::shared_ptr<const Dict>, std::shared_ptr<const Callable>, Object*>;

  Value() = default;  // undefined
  Value(None none) : storage_(none) {}
  Value(bool value) : storage_(value) {}
  Value(int value) : storage_(int64_t{value}) {}
  Value(int64_t value) : storage_(value) {}
  Value(size_t value) : storage_(static_cast<int64_t>(value)) {}
  Value(double value) : storage_(value) {}
  Value(std::string text) : storage_(std::make_shared<const std::string>(std::move(text))) {}
  Value(std::string_view text) : Value(std::string(text)) {}
  Value(const char* text) : Value(std::string(text)) {}
  Value(std::shared_ptr<const List> list) : storage_(std::move(list)) {}
  Value(std::shared_ptr<const Dict> dict) : storage_(std::move(dict)) {}
  Value(std::shared_ptr<const Callable> callable) : storage_(std::move(callable)) {}
  Value(Object* object) : storage_(object) {}
  static Value undefined(std::string reason);

  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(storage_);
  }
  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_string() const { return is<String>(); }
  bool is_list() const { return is<std::shared_ptr<const List>>(); }
  bool is_dict() const { return is<std::shared_ptr<const Dict>>(); }
  bool is_integer() const { return is<int64_t>() || is<bool>(); }  // a bool is an int in Python
  bool is_number() const { return is_integer() || is<double>(); }

  // Each asks for the right kind first; they are unchecked otherwise.
  const std::string& text() const { return *std::get<String>(storage_); }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(storage_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(storage_); }
  const Callable* callable() const;  // null for other kinds
  Object* object() const;            // null for other kinds
  int64_t integer() const {
    return is<bool>() ? std::get<bool>(storage_) : std::get<int64_t>(storage_);
  }
  double number() const {
    return is<double>() ? std::get<double>(storage_) : static_cast<double>(integer());
  }
  const Storage& storage() const { return storage_; }

  bool truthy() const;
  // How Python's errors call the type: "str", "int", "NoneType", "dict".
  std::string_view type_name() const;
  int depth() const;  // of nested lists and dicts; 0 for scalars

 private:
  Storage storage_;
};

inline constexpr int kMaxValueDepth = 200;

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  int depth = 1;
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;          // in order of insertion
  std::unordered_map<std::string_view, size_t> index;  // of string keys
  int depth = 1;

  const Value* find(std::string_view key) const;
  const Value* find(const Value& key, Budget& budget) const;
};

// Throw kUnsupported when nested too deep.
Value make_list(std::vector<Value> items, Budget& budget, bool is_tuple = false);
// A key that comes again replaces the value of the first.
Value make_dict(std::vector<std::pair<Value, Value>> items, Budget& budget);

Value from_json(const nlohmann::ordered_json& json, Budget& budget);

// str(value) and repr(value).
std::string to_text(const Value& value, Budget& budget);
std::string to_repr(const Value& value, Budget& budget);

struct JsonStyle {
  bool ensure_ascii = false;
  int indent = -1;  // -1: one line; else json.dumps has "," between items
  bool sort_keys = false;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
// json.dumps(value). Throws kInvalidArgument for what JSON cannot say.
std::string to_json(const Value& value, const JsonStyle& style, Budget& budget);

bool equal(const Value& a, const Value& b, Budget& budget);
// -1, 0, 1; 2 for an unordered pair (NaN). Throws kInvalidArgument for kinds that Python does not
// order.
int compare(const Value& a, const Value& b, std::string_view operation, Budget& budget);

// The items that a loop goes over: of a list, the keys of a dict, the characters of a string; none
// of undefined. Throws kInvalidArgument for what cannot be iterated.
std::vector<Value> iterate(const Value& value, Budget& budget);

// [[noreturn]] helper: an Error that speaks of the template.
template <typename... Parts>
[[noreturn]] void template_error(const Parts&... parts);

}  // namespace lathe::jinja

#include "base/error.h"

namespace lathe::jinja {
template <typename... Parts>
void template_error(const Parts&... parts) {
  fail(ErrorCode::kInvalidArgument, "chat template: ", parts...);
}
}  // namespace lathe::jinja
