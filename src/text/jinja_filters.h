// Filters: what one call of a filter is given, and those that work on sequences.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>

#include "text/jinja_interpreter.h"

namespace lathe::jinja {

struct FilterCall {
  Interpreter& interpreter;
  Budget& budget;
  std::string_view name;
  const Value& value;
  const Arguments& arguments;

  Parameters parameters(std::initializer_list<std::string_view> names) const {
    return {arguments, name, names};
  }
  // Most filters on text take anything and print it first.
  std::string text() const { return to_text(value, budget); }
};

using Filter = Value (*)(const FilterCall&);

// A new string, paid for.
Value made_text(std::string text, Budget& budget);

// jinja_sequence_filters.cpp: the filter of this name, or null.
Filter find_sequence_filter(std::string_view name);

}  // namespace lathe::jinja
