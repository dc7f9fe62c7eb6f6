#include "grammar/automaton.h"

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "text/unicode.h"

namespace lathe {
namespace {

[[noreturn]] void too_large() {
  fail(ErrorCode::kUnsupported, "the pattern needs an automaton of more than ", kMaxDfaStates,
       " states; write it simpler, or with smaller bounds");
}

struct VectorHash {
  std::size_t operator()(const std::vector<int32_t>& v) const {
    uint64_t hash = 0xCBF29CE484222325;
    for (const int32_t x : v) hash = (hash ^ static_cast<uint32_t>(x)) * 0x100000001B3;
    return hash ^ hash >> 29;
  }
};

class SubsetConstruction {
 public:
  SubsetConstruction(const Nfa& nfa, int32_t final_state, uint32_t symbol_end)
      : nfa_(nfa), final_(final_state), seen_(nfa.states().size(), 0) {
    dfa_.symbol_end = symbol_end;
    dfa_.class_starts.push_back(0);
    for (const Nfa::State& state : nfa.states()) {
      for (const Nfa::Edge& edge : state.edges) {
        dfa_.class_starts.push_back(edge.range.first);
        if (edge.range.last + 1 < symbol_end) dfa_.class_starts.push_back(edge.range.last + 1);
      }
    }
    std::sort(dfa_.class_starts.begin(), dfa_.class_starts.end());
    dfa_.class_starts.erase(std::unique(dfa_.class_starts.begin(), dfa_.class_starts.end()),
                            dfa_.class_starts.end());
  }

  Dfa run(int32_t start) {
    std::vector<int32_t> set = {start};
    close(set, /*at_start=*/true, /*at_end=*/false);
    state_of(set, /*at_start=*/true);
    const auto num_classes = static_cast<std::size_t>(dfa_.num_classes());
    std::vector<std::vector<int32_t>> targets(num_classes);
    for (std::size_t s = 0; s < sets_.size(); ++s) {
      for (auto& t : targets) t.clear();
      count_work(dfa_.num_classes());
      for (const int32_t q : *sets_[s]) {
        for (const Nfa::Edge& edge : nfa_.states()[static_cast<std::size_t>(q)].edges) {
          const auto first = std::lower_bound(dfa_.class_starts.begin(), dfa_.class_starts.end(),
                                              edge.range.first);
          for (auto k = static_cast<std::size_t>(first - dfa_.class_starts.begin());
               k < num_classes && dfa_.class_starts[k] <= edge.range.last; ++k) {
            targets[k].push_back(edge.to);
            count_work(1);
          }
        }
      }
      for (std::size_t k = 0; k < num_classes; ++k) {
        int32_t target = -1;
        if (!targets[k].empty()) {
          close(targets[k], false, false);
          target = state_of(targets[k], false);
        }
        dfa_.next.push_back(target);
      }
    }
    dfa_.work = work_;
    return std::move(dfa_);
  }

 private:
  void count_work(int64_t amount) {
    work_ += amount;
    if (work_ > kMaxAutomatonWork) too_large();
  }

  // Adds what can be reached without a symbol; sorted, each state once.
  void close(std::vector<int32_t>& set, bool at_start, bool at_end) {
    ++stamp_;
    std::size_t size = 0;
    for (const int32_t q : set) {
      if (std::exchange(seen_[static_cast<std::size_t>(q)], stamp_) != stamp_) set[size++] = q;
    }
    set.resize(size);
    for (std::size_t i = 0; i < set.size(); ++i) {
      for (const Nfa::Epsilon& e : nfa_.states()[static_cast<std::size_t>(set[i])].epsilons) {
        if (e.when == Nfa::When::kAtStart && !at_start) continue;
        if (e.when == Nfa::When::kAtEnd && !at_end) continue;
        if (std::exchange(seen_[static_cast<std::size_t>(e.to)], stamp_) != stamp_) {
          set.push_back(e.to);
        }
      }
    }
    count_work(static_cast<int64_t>(set.size()));
    std::sort(set.begin(), set.end());
  }

  int32_t state_of(const std::vector<int32_t>& set, bool at_start) {
    const auto [found, is_new] = ids_.emplace(set, static_cast<int32_t>(sets_.size()));
    if (!is_new) return found->second;
    if (std::ssize(sets_) >= kMaxDfaStates) too_large();
    sets_.push_back(&found->first);
    std::vector<int32_t> at_end = set;
    close(at_end, at_start, /*at_end=*/true);
    dfa_.accepts.push_back(std::binary_search(at_end.begin(), at_end.end(), final_));
    return found->second;
  }

  const Nfa& nfa_;
  int32_t final_;
  Dfa dfa_;
  std::unordered_map<std::vector<int32_t>, int32_t, VectorHash> ids_;
  std::vector<const std::vector<int32_t>*> sets_;  // keys of ids_, by state
  std::vector<uint32_t> seen_;
  uint32_t stamp_ = 0;
  int64_t work_ = 0;
};

// Removes states that reach no accepting one, and those that the start does not reach.
Dfa trim(const Dfa& dfa) {
  const auto num_states = static_cast<std::size_t>(dfa.num_states());
  const auto num_classes = static_cast<std::size_t>(dfa.num_classes());
  std::vector<std::vector<int32_t>> sources(num_states);
  for (std::size_t s = 0; s < num_states; ++s) {
    int32_t last = -1;
    for (std::size_t k = 0; k < num_classes; ++k) {
      const int32_t t = dfa.next[s * num_classes + k];
      if (t >= 0 && t != last)
        sources[static_cast<std::size_t>(t)].push_back(static_cast<int32_t>(s));
      last = t;
    }
  }
  std::vector<bool> useful(dfa.accepts);
  std::vector<int32_t> queue;
  for (std::size_t s = 0; s < num_states; ++s) {
    if (useful[s]) queue.push_back(static_cast<int32_t>(s));
  }
  for (std::size_t i = 0; i < queue.size(); ++i) {
    for (const int32_t s : sources[static_cast<std::size_t>(queue[i])]) {
      if (!useful[static_cast<std::size_t>(s)]) {
        useful[static_cast<std::size_t>(s)] = true;
        queue.push_back(s);
      }
    }
  }
  Dfa out;
  out.class_starts = dfa.class_starts;
  out.symbol_end = dfa.symbol_end;
  out.work = dfa.work;
  if (num_states == 0 || !useful[0]) return out;
  std::vector<int32_t> new_id(num_states, -1);
  std::vector<int32_t> order = {0};
  new_id[0] = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto s = static_cast<std::size_t>(order[i]);
    for (std::size_t k = 0; k < num_classes; ++k) {
      const int32_t t = dfa.next[s * num_classes + k];
      if (t < 0 || !useful[static_cast<std::size_t>(t)]) {
        out.next.push_back(-1);
        continue;
      }
      if (new_id[static_cast<std::size_t>(t)] < 0) {
        new_id[static_cast<std::size_t>(t)] = static_cast<int32_t>(order.size());
        order.push_back(t);
      }
      out.next.push_back(new_id[static_cast<std::size_t>(t)]);
    }
    out.accepts.push_back(dfa.accepts[s]);
  }
  return out;
}

// Pairs of states reached by the same word. keep_without_b: a pair (s, -1) goes on.
Dfa product(const Dfa& a, const Dfa& b, bool is_subtraction) {
  Dfa out;
  out.symbol_end = a.symbol_end;
  std::set_union(a.class_starts.begin(), a.class_starts.end(), b.class_starts.begin(),
                 b.class_starts.end(), std::back_inserter(out.class_starts));
  if (a.is_empty() || (b.is_empty() && !is_subtraction)) return out;
  const auto class_of = [](const Dfa& dfa, uint32_t symbol) {
    return std::upper_bound(dfa.class_starts.begin(), dfa.class_starts.end(), symbol) -
           dfa.class_starts.begin() - 1;
  };
  std::vector<std::pair<int64_t, int64_t>> classes;
  for (const uint32_t symbol : out.class_starts) {
    classes.emplace_back(class_of(a, symbol), class_of(b, symbol));
  }
  std::map<std::pair<int32_t, int32_t>, int32_t> ids;
  std::vector<std::pair<int32_t, int32_t>> order;
  const auto id_of = [&](std::pair<int32_t, int32_t> pair) {
    const auto [found, is_new] = ids.emplace(pair, static_cast<int32_t>(order.size()));
    if (is_new) {
      if (std::ssize(order) >= kMaxDfaStates) too_large();
      if (std::ssize(order) * std::ssize(classes) > kMaxAutomatonWork) too_large();
      order.push_back(pair);
      const bool in_a = a.accepts[static_cast<std::size_t>(pair.first)];
      const bool in_b = pair.second >= 0 && b.accepts[static_cast<std::size_t>(pair.second)];
      out.accepts.push_back(in_a && in_b != is_subtraction);
    }
    return found->second;
  };
  id_of({0, b.is_empty() ? -1 : 0});
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto [s, t] = order[i];
    for (const auto& [ka, kb] : classes) {
      const int32_t next_a = a.next[static_cast<std::size_t>(s * a.num_classes() + ka)];
      const int32_t next_b =
          t < 0 ? -1 : b.next[static_cast<std::size_t>(t * b.num_classes() + kb)];
      const bool dead = next_a < 0 || (next_b < 0 && !is_subtraction);
      out.next.push_back(dead ? -1 : id_of({next_a, next_b}));
    }
  }
  out.work = std::ssize(order) * std::ssize(classes);
  return trim(out);
}

}  // namespace

int32_t Nfa::add_state() {
  if (std::ssize(states_) >= kMaxNfaStates) {
    fail(ErrorCode::kUnsupported, "the pattern is too large when its repetitions are written out (",
         kMaxNfaStates, " states); use smaller bounds");
  }
  states_.emplace_back();
  return static_cast<int32_t>(states_.size()) - 1;
}

void Nfa::add_edge(int32_t from, SymbolRange range, int32_t to) {
  states_[static_cast<std::size_t>(from)].edges.push_back({range, to});
}

void Nfa::add_epsilon(int32_t from, int32_t to, When when) {
  states_[static_cast<std::size_t>(from)].epsilons.push_back({to, when});
}

void Nfa::add_text(int32_t from, std::string_view text, int32_t to) {
  if (text.empty()) return add_epsilon(from, to);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const int32_t next = i + 1 == text.size() ? to : add_state();
    const auto byte = static_cast<uint8_t>(text[i]);
    add_edge(from, {byte, byte}, next);
    from = next;
  }
}

int32_t Dfa::step(int32_t state, uint32_t symbol) const {
  if (state < 0) return -1;
  const auto after = std::upper_bound(class_starts.begin(), class_starts.end(), symbol);
  const int64_t k = after - class_starts.begin() - 1;
  return next[static_cast<std::size_t>(state * num_classes() + k)];
}

Dfa determinize(const Nfa& nfa, int32_t start, int32_t final_state, uint32_t symbol_end) {
  return trim(SubsetConstruction(nfa, final_state, symbol_end).run(start));
}

Dfa intersect(const Dfa& a, const Dfa& b) { return product(a, b, false); }
Dfa subtract(const Dfa& a, const Dfa& b) { return product(a, b, true); }

Dfa words_of_length(int64_t min, int64_t max, uint32_t symbol_end) {
  Dfa out;
  out.class_starts = {0};
  out.symbol_end = symbol_end;
  if (max >= 0 && max < min) return out;
  const int64_t last = max >= 0 ? max : min;
  if (last >= kMaxDfaStates) too_large();
  for (int64_t n = 0; n <= last; ++n) {
    out.accepts.push_back(n >= min);
    out.next.push_back(static_cast<int32_t>(n < last ? n + 1 : max >= 0 ? -1 : n));
  }
  return out;
}

Dfa words_of(const std::vector<std::string>& words, uint32_t symbol_end) {
  Nfa nfa;
  const int32_t start = nfa.add_state();
  const int32_t end = nfa.add_state();
  std::map<std::pair<int32_t, char32_t>, int32_t> children;  // a tree: prefixes are shared
  for (const std::string& word : words) {
    int32_t at = start;
    for (std::size_t pos = 0; pos < word.size();) {
      const char32_t c =
          symbol_end == kByteEnd ? static_cast<uint8_t>(word[pos++]) : next_codepoint(word, pos);
      const auto found = children.find({at, c});
      if (found != children.end()) {
        at = found->second;
        continue;
      }
      const int32_t next = nfa.add_state();
      nfa.add_edge(at, {c, c}, next);
      children[{at, c}] = next;
      at = next;
    }
    nfa.add_epsilon(at, end);
  }
  return determinize(nfa, start, end, symbol_end);
}

}  // namespace lathe
