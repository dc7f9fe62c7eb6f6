#include "grammar/json_rules.h"

#include <string>

#include "grammar/json_text.h"
#include "grammar/pattern.h"

namespace lathe {

RuleId JsonRules::string(int64_t min_length, int64_t max_length) {
  const auto [found, is_new] = strings_.emplace(std::pair(min_length, max_length), -1);
  if (is_new) found->second = builder_.add_string(min_length, max_length);
  return found->second;
}

RuleId JsonRules::words(const std::vector<std::string>& texts) {
  return builder_.add_lexeme(words_of(texts, kByteEnd));
}

StateId JsonRules::after_blanks(StateId from) {
  const StateId to = after_some_blanks(from, Guard::kNone);
  if (to < 0) return from;
  builder_.add_epsilon(from, to);
  return to;
}

StateId JsonRules::after_some_blanks(StateId from, Guard guard) {
  if (whitespace_ == Whitespace::kNone) return -1;
  if (blanks_ < 0) {
    // As models write JSON, on one line or indented; bounded, or a model could write blanks
    // forever.
    Nfa nfa;
    const int32_t start = nfa.add_state(), end = nfa.add_state();
    nfa.add_edge(start, {' ', ' '}, end);
    int32_t at = nfa.add_state();
    nfa.add_edge(start, {'\n', '\n'}, at);
    for (int i = 0; i < 40; ++i) {
      const int32_t next = nfa.add_state();
      nfa.add_epsilon(at, end);
      nfa.add_edge(at, {' ', ' '}, next);
      nfa.add_edge(at, {'\t', '\t'}, next);
      at = next;
    }
    nfa.add_epsilon(at, end);
    blanks_ = builder_.add_lexeme(determinize(nfa, start, end, kByteEnd));
  }
  const StateId to = builder_.add_state();
  builder_.add_call(from, blanks_, to, /*counts=*/false, guard);
  return to;
}

StateId JsonRules::after_text(StateId from, std::string_view text) {
  const StateId to = builder_.add_state();
  builder_.add_text(from, text, to);
  return to;
}

StateId JsonRules::after_call(StateId from, RuleId rule, bool counts) {
  const StateId to = builder_.add_state();
  builder_.add_call(from, rule, to, counts);
  return to;
}

RuleId JsonRules::any_value() {
  if (any_value_ >= 0) return any_value_;
  any_value_ = builder_.add_rule();
  const StateId start = builder_.start(any_value_);
  const StateId end = builder_.add_state();
  builder_.set_accepts(end);
  builder_.add_call(start, string(0, -1), end);
  builder_.add_call(start, builder_.add_lexeme(json_numbers({})), end);
  builder_.add_call(start, words({"true", "false", "null"}), end);
  builder_.add_call(start, any_object(), end);
  builder_.add_call(start, any_array(), end);
  return any_value_;
}

RuleId JsonRules::any_object() {
  if (any_object_ >= 0) return any_object_;
  any_object_ = builder_.add_rule();
  const StateId first = after_blanks(after_text(builder_.start(any_object_), "{"));
  const StateId key = builder_.add_state();
  builder_.add_epsilon(first, key);
  const StateId value = after_blanks(after_text(after_call(key, string(0, -1)), ":"));
  const StateId behind = after_call(value, any_value());
  builder_.add_epsilon(after_blanks(after_text(behind, ",")), key);
  const StateId end = builder_.add_state();
  builder_.add_byte(first, '}', end);
  builder_.add_byte(after_blanks(behind), '}', end);
  builder_.set_accepts(end);
  return any_object_;
}

RuleId JsonRules::any_array() {
  if (any_array_ >= 0) return any_array_;
  any_array_ = builder_.add_rule();
  const StateId first = after_blanks(after_text(builder_.start(any_array_), "["));
  const StateId item = builder_.add_state();
  builder_.add_epsilon(first, item);
  const StateId behind = after_call(item, any_value());
  builder_.add_epsilon(after_blanks(after_text(behind, ",")), item);
  const StateId end = builder_.add_state();
  builder_.add_byte(first, ']', end);
  builder_.add_byte(after_blanks(behind), ']', end);
  builder_.set_accepts(end);
  return any_array_;
}

}  // namespace lathe
