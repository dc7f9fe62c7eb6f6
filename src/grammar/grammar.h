// A context-free grammar over bytes, in the form that the matcher runs.
//
// Every rule is an automaton. Most are *lexemes* (a string, a number, a keyword): deterministic, a
// table over bytes. The others hold the structure: their edges read a byte or call a rule.
//
//   object  = "{" . member ("," member)* "}"      edges: byte '{', call member, byte ',', byte '}'
//   member  = string ":" value                    calls of lexemes and rules
//
// A rule may count (items of an array, characters of a string) and allow an edge only below its
// maximum or from its minimum on, so a bound of 10,000 costs no states.
//
// Built by GrammarBuilder, immutable afterwards: any number of matchers may share one.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "grammar/automaton.h"

namespace lathe {

using RuleId = int32_t;
using StateId = int32_t;

class ByteSet {
 public:
  void add(int first, int last) {
    for (int b = first; b <= last; ++b) words_[static_cast<std::size_t>(b >> 6)] |= bit(b);
  }
  void add(const ByteSet& other) {
    for (std::size_t i = 0; i < 4; ++i) words_[i] |= other.words_[i];
  }
  bool empty() const { return (words_[0] | words_[1] | words_[2] | words_[3]) == 0; }
  bool contains(uint8_t b) const { return (words_[b >> 6] & bit(b)) != 0; }

 private:
  static uint64_t bit(int b) { return uint64_t{1} << (b & 63); }
  std::array<uint64_t, 4> words_{};
};

enum class Guard : uint8_t { kNone, kBelowMax, kAtLeastMin };

class Grammar {
 public:
  struct Edge {
    uint8_t first, last;
    Guard guard;
    StateId to;
  };
  struct Call {
    RuleId rule;
    StateId to;
    bool counts;  // one more when the call returns
    Guard guard = Guard::kNone;
  };
  struct State {
    int32_t edges_begin = 0, edges_end = 0;
    int32_t calls_begin = 0, calls_end = 0;
    bool accepts = false;
  };
  // A lexeme's table; several rules may share one.
  struct Table {
    std::array<uint8_t, 256> class_of{};
    int32_t num_classes = 0;
    StateId first_state = 0;
    int32_t num_states = 0;
    std::vector<StateId> next;  // [num_states, num_classes], global ids; -1: no
    int32_t body = -1;          // of a counted string, local: between two characters
    bool may_stop = false;  // the text may end in a state that does not accept, whatever is open
  };
  struct Rule {
    StateId start = 0;
    bool counts_characters = false;
    int64_t min = 0, max = 0;  // of the count; max < 0: none
  };

  RuleId root() const { return root_; }
  const std::vector<Rule>& rules() const { return rules_; }
  // States below this number belong to rules with edges, the others to tables.
  StateId num_plain_states() const { return static_cast<StateId>(states_.size()); }
  int64_t num_states() const { return std::ssize(first_bytes_); }
  const State& state(StateId s) const { return states_[static_cast<std::size_t>(s)]; }
  const std::vector<Edge>& edges() const { return edges_; }
  const std::vector<Call>& calls() const { return calls_; }
  const std::vector<Table>& tables() const { return tables_; }
  const Table& table_of(StateId s) const {
    return tables_[static_cast<std::size_t>(
        table_of_[static_cast<std::size_t>(s) - states_.size()])];
  }
  bool table_accepts(StateId s) const {
    return table_accepts_[static_cast<std::size_t>(s) - states_.size()] != 0;
  }
  // Bytes that an edge of the state reads, guards left aside.
  const ByteSet& first_bytes(StateId s) const { return first_bytes_[static_cast<std::size_t>(s)]; }

 private:
  friend class GrammarBuilder;
  RuleId root_ = 0;
  std::vector<Rule> rules_;
  std::vector<State> states_;
  std::vector<Edge> edges_;
  std::vector<Call> calls_;
  std::vector<Table> tables_;
  std::vector<int32_t> table_of_;
  std::vector<uint8_t> table_accepts_;
  std::vector<ByteSet> first_bytes_;
};

class GrammarBuilder {
 public:
  // Limits against hostile schemas; beyond them kUnsupported.
  static constexpr int64_t kMaxRules = 20000;
  static constexpr int64_t kMaxStates = 400000;
  static constexpr int64_t kMaxEdges = 2000000;

  // A rule with edges; its start state exists, nothing accepts yet. It may be used before it is
  // finished, which is how rules are recursive.
  RuleId add_rule();
  StateId start(RuleId rule) const { return starts_[static_cast<std::size_t>(rule)]; }
  StateId add_state();
  void set_accepts(StateId state);
  void add_byte(StateId from, uint8_t byte, StateId to, Guard guard = Guard::kNone);
  void add_text(StateId from, std::string_view text, StateId to);
  // A rule that may be empty must not be called with counts or a guard.
  void add_call(StateId from, RuleId rule, StateId to, bool counts = false,
                Guard guard = Guard::kNone);
  void add_epsilon(StateId from, StateId to);
  void set_bounds(RuleId rule, int64_t min, int64_t max);

  // A rule that is one automaton over bytes, which is not empty and does not accept the empty word.
  // may_stop: the text may end inside, before the lexeme is complete.
  RuleId add_lexeme(const Dfa& bytes, bool may_stop = false);
  // Any JSON string of min to max characters (code points); max < 0: no limit. An escape is one.
  RuleId add_string(int64_t min, int64_t max);

  // Removes what can never be finished (a reference that leads only to itself). Throws
  // kInvalidArgument when nothing is left. The builder is used up.
  std::shared_ptr<const Grammar> build(RuleId root);

 private:
  struct State {
    std::vector<Grammar::Edge> edges;
    std::vector<Grammar::Call> calls;
    std::vector<StateId> epsilons;
    bool accepts = false;
  };
  int32_t add_table(const Dfa& bytes, bool may_stop);
  void close_epsilons();
  std::vector<bool> nullable_rules() const;
  void skip_nullable_calls();
  void remove_unproductive();
  void check_size(int64_t more) const;

  std::vector<State> states_;
  std::vector<Grammar::Rule> rules_;
  std::vector<StateId> starts_;      // by rule; -1: a lexeme
  std::vector<int32_t> rule_table_;  // by rule; -1: a rule with edges
  std::vector<Grammar::Table> tables_;
  std::vector<std::vector<bool>> table_accepts_;
  int64_t num_table_states_ = 0;
  int32_t string_table_ = -1;
};

}  // namespace lathe
