#include "grammar/grammar.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "grammar/json_text.h"

namespace lathe {

void GrammarBuilder::check_size(int64_t more) const {
  if (std::ssize(states_) + num_table_states_ + more > kMaxStates ||
      std::ssize(rules_) >= kMaxRules) {
    fail(ErrorCode::kUnsupported, "the grammar is too large (more than ", kMaxStates, " states or ",
         kMaxRules, " rules); simplify the schema");
  }
}

RuleId GrammarBuilder::add_rule() {
  check_size(1);
  rules_.push_back({.start = 0, .counts_characters = false, .min = 0, .max = -1});
  rule_table_.push_back(-1);
  starts_.push_back(add_state());
  return static_cast<RuleId>(rules_.size()) - 1;
}

StateId GrammarBuilder::add_state() {
  check_size(1);
  states_.emplace_back();
  return static_cast<StateId>(states_.size()) - 1;
}

void GrammarBuilder::set_accepts(StateId state) {
  states_[static_cast<std::size_t>(state)].accepts = true;
}

void GrammarBuilder::add_byte(StateId from, uint8_t byte, StateId to, Guard guard) {
  states_[static_cast<std::size_t>(from)].edges.push_back({byte, byte, guard, to});
}

void GrammarBuilder::add_text(StateId from, std::string_view text, StateId to) {
  if (text.empty()) return add_epsilon(from, to);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const StateId next = i + 1 == text.size() ? to : add_state();
    add_byte(from, static_cast<uint8_t>(text[i]), next);
    from = next;
  }
}

void GrammarBuilder::add_call(StateId from, RuleId rule, StateId to, bool counts, Guard guard) {
  states_[static_cast<std::size_t>(from)].calls.push_back({rule, to, counts, guard});
}

void GrammarBuilder::add_epsilon(StateId from, StateId to) {
  states_[static_cast<std::size_t>(from)].epsilons.push_back(to);
}

void GrammarBuilder::set_bounds(RuleId rule, int64_t min, int64_t max) {
  rules_[static_cast<std::size_t>(rule)].min = min;
  rules_[static_cast<std::size_t>(rule)].max = max;
}

int32_t GrammarBuilder::add_table(const Dfa& bytes, bool may_stop) {
  LATHE_CHECK(!bytes.is_empty() && !bytes.accepts[0] && bytes.symbol_end == kByteEnd);
  check_size(bytes.num_states());
  Grammar::Table table;
  table.num_classes = static_cast<int32_t>(bytes.num_classes());
  for (int64_t k = 0; k < bytes.num_classes(); ++k) {
    for (uint32_t b = bytes.class_starts[static_cast<std::size_t>(k)]; b <= bytes.class_last(k);
         ++b) {
      table.class_of[b] = static_cast<uint8_t>(k);
    }
  }
  table.num_states = static_cast<int32_t>(bytes.num_states());
  table.next = bytes.next;  // local ids until build()
  table.may_stop = may_stop;
  num_table_states_ += bytes.num_states();
  tables_.push_back(std::move(table));
  table_accepts_.push_back(bytes.accepts);
  return static_cast<int32_t>(tables_.size()) - 1;
}

RuleId GrammarBuilder::add_lexeme(const Dfa& bytes, bool may_stop) {
  check_size(0);
  rule_table_.push_back(add_table(bytes, may_stop));
  rules_.push_back({.start = 0, .counts_characters = false, .min = 0, .max = -1});
  starts_.push_back(-1);
  return static_cast<RuleId>(rules_.size()) - 1;
}

RuleId GrammarBuilder::add_string(int64_t min, int64_t max) {
  check_size(0);
  if (string_table_ < 0) {
    const Dfa string = any_json_string();
    string_table_ = add_table(string, false);
    tables_.back().body = any_json_string_body(string);
  }
  rule_table_.push_back(string_table_);
  rules_.push_back({.start = 0, .counts_characters = min > 0 || max >= 0, .min = min, .max = max});
  starts_.push_back(-1);
  return static_cast<RuleId>(rules_.size()) - 1;
}

// Afterwards every state has the edges and calls of all that it reached without reading.
void GrammarBuilder::close_epsilons() {
  std::vector<StateId> reached;
  std::vector<int64_t> seen(states_.size(), -1);
  std::vector<State> closed(states_.size());
  int64_t num_edges = 0;
  for (std::size_t s = 0; s < states_.size(); ++s) {
    reached.assign(1, static_cast<StateId>(s));
    seen[s] = static_cast<int64_t>(s);
    for (std::size_t i = 0; i < reached.size(); ++i) {
      const State& from = states_[static_cast<std::size_t>(reached[i])];
      State& to = closed[s];
      to.edges.insert(to.edges.end(), from.edges.begin(), from.edges.end());
      to.calls.insert(to.calls.end(), from.calls.begin(), from.calls.end());
      to.accepts = to.accepts || from.accepts;
      for (const StateId e : from.epsilons) {
        if (std::exchange(seen[static_cast<std::size_t>(e)], static_cast<int64_t>(s)) !=
            static_cast<int64_t>(s)) {
          reached.push_back(e);
        }
      }
    }
    num_edges += std::ssize(closed[s].edges) + std::ssize(closed[s].calls);
    if (num_edges > kMaxEdges) {
      fail(ErrorCode::kUnsupported, "the grammar is too large (more than ", kMaxEdges,
           " edges); use fewer optional properties or alternatives in one place");
    }
  }
  states_ = std::move(closed);
}

std::vector<bool> GrammarBuilder::nullable_rules() const {
  std::vector<bool> nullable(rules_.size(), false);
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t r = 0; r < rules_.size(); ++r) {
      if (nullable[r] || starts_[r] < 0) continue;
      // States reached from the start by calls of nullable rules alone.
      std::vector<StateId> reached = {starts_[r]};
      for (std::size_t i = 0; i < reached.size() && !nullable[r]; ++i) {
        const State& state = states_[static_cast<std::size_t>(reached[i])];
        if (state.accepts) nullable[r] = changed = true;
        for (const Grammar::Call& call : state.calls) {
          if (nullable[static_cast<std::size_t>(call.rule)] && !call.counts &&
              std::find(reached.begin(), reached.end(), call.to) == reached.end()) {
            reached.push_back(call.to);
          }
        }
      }
    }
  }
  return nullable;
}

// The matcher never lets a call return where it began; a rule that may be empty is skipped instead.
void GrammarBuilder::skip_nullable_calls() {
  const std::vector<bool> nullable = nullable_rules();
  bool any = false;
  for (State& state : states_) {
    for (const Grammar::Call& call : state.calls) {
      if (!nullable[static_cast<std::size_t>(call.rule)]) continue;
      LATHE_CHECK(!call.counts && call.guard == Guard::kNone);
      state.epsilons.push_back(call.to);
      any = true;
    }
  }
  if (any) close_epsilons();
}

// A rule is productive when some finite text completes it. Calls of others go, and so do the states
// from which nothing accepts any more.
void GrammarBuilder::remove_unproductive() {
  const std::size_t num_states = states_.size();
  struct Need {
    StateId from;  // becomes useful when both the target and the rule are
    StateId to;
    RuleId rule;
  };
  std::vector<std::vector<std::size_t>> by_state(num_states), by_rule(rules_.size());
  std::vector<Need> needs;
  std::vector<bool> useful(num_states, false), productive(rules_.size(), false);
  std::vector<std::vector<RuleId>> starts_here(num_states);
  std::vector<StateId> queue;
  for (std::size_t r = 0; r < rules_.size(); ++r) {
    if (starts_[r] < 0) {
      productive[r] = true;
    } else {
      starts_here[static_cast<std::size_t>(starts_[r])].push_back(static_cast<RuleId>(r));
    }
  }
  for (std::size_t s = 0; s < num_states; ++s) {
    for (const Grammar::Edge& edge : states_[s].edges) {
      by_state[static_cast<std::size_t>(edge.to)].push_back(needs.size());
      needs.push_back({static_cast<StateId>(s), edge.to, -1});
    }
    for (const Grammar::Call& call : states_[s].calls) {
      by_state[static_cast<std::size_t>(call.to)].push_back(needs.size());
      by_rule[static_cast<std::size_t>(call.rule)].push_back(needs.size());
      needs.push_back({static_cast<StateId>(s), call.to, call.rule});
    }
    if (states_[s].accepts) useful[s] = true, queue.push_back(static_cast<StateId>(s));
  }
  const auto try_need = [&](std::size_t n) {
    const Need& need = needs[n];
    if (useful[static_cast<std::size_t>(need.from)] || !useful[static_cast<std::size_t>(need.to)])
      return;
    if (need.rule >= 0 && !productive[static_cast<std::size_t>(need.rule)]) return;
    useful[static_cast<std::size_t>(need.from)] = true;
    queue.push_back(need.from);
  };
  for (std::size_t i = 0; i < queue.size(); ++i) {
    const auto s = static_cast<std::size_t>(queue[i]);
    for (const std::size_t n : by_state[s]) try_need(n);
    for (const RuleId r : starts_here[s]) {
      productive[static_cast<std::size_t>(r)] = true;
      for (const std::size_t n : by_rule[static_cast<std::size_t>(r)]) try_need(n);
    }
  }
  for (State& state : states_) {
    std::erase_if(state.edges, [&](const Grammar::Edge& edge) {
      return !useful[static_cast<std::size_t>(edge.to)];
    });
    std::erase_if(state.calls, [&](const Grammar::Call& call) {
      return !useful[static_cast<std::size_t>(call.to)] ||
             !productive[static_cast<std::size_t>(call.rule)];
    });
  }
  for (std::size_t r = 0; r < rules_.size(); ++r) {
    if (!productive[r]) rules_[r].start = -1;
  }
}

std::shared_ptr<const Grammar> GrammarBuilder::build(RuleId root) {
  close_epsilons();
  skip_nullable_calls();
  remove_unproductive();
  if (rules_[static_cast<std::size_t>(root)].start < 0) {
    fail(ErrorCode::kInvalidArgument,
         "no finite text satisfies it (a reference leads to itself, or the parts contradict each "
         "other)");
  }
  auto grammar = std::make_shared<Grammar>();
  grammar->root_ = root;
  for (State& state : states_) {
    Grammar::State out;
    out.edges_begin = static_cast<int32_t>(grammar->edges_.size());
    grammar->edges_.insert(grammar->edges_.end(), state.edges.begin(), state.edges.end());
    out.edges_end = static_cast<int32_t>(grammar->edges_.size());
    out.calls_begin = static_cast<int32_t>(grammar->calls_.size());
    grammar->calls_.insert(grammar->calls_.end(), state.calls.begin(), state.calls.end());
    out.calls_end = static_cast<int32_t>(grammar->calls_.size());
    out.accepts = state.accepts;
    grammar->states_.push_back(out);
    ByteSet first;
    for (const Grammar::Edge& edge : state.edges) first.add(edge.first, edge.last);
    grammar->first_bytes_.push_back(first);
  }
  auto next_state = static_cast<StateId>(states_.size());
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    Grammar::Table& table = tables_[t];
    table.first_state = next_state;
    next_state += table.num_states;
    for (StateId& target : table.next) {
      if (target >= 0) target += table.first_state;
    }
    for (int32_t s = 0; s < table.num_states; ++s) {
      grammar->table_of_.push_back(static_cast<int32_t>(t));
      grammar->table_accepts_.push_back(table_accepts_[t][static_cast<std::size_t>(s)]);
      ByteSet first;
      for (int b = 0; b < 256; ++b) {
        const auto k = table.class_of[static_cast<std::size_t>(b)];
        if (table.next[static_cast<std::size_t>(s * table.num_classes + k)] >= 0) first.add(b, b);
      }
      grammar->first_bytes_.push_back(first);
    }
  }
  grammar->tables_ = std::move(tables_);
  for (std::size_t r = 0; r < rules_.size(); ++r) {
    Grammar::Rule rule = rules_[r];
    if (rule.start >= 0) {
      rule.start = starts_[r] >= 0
                       ? starts_[r]
                       : grammar->tables_[static_cast<std::size_t>(rule_table_[r])].first_state;
    }
    grammar->rules_.push_back(rule);
  }
  return grammar;
}

}  // namespace lathe
