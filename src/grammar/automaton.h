// Finite automata over symbols (code points or bytes), with the limits that hostile patterns need.
//
//   regular expression --Nfa--> determinize() --Dfa--> intersect(), subtract() --> bytes
//
// Every function that can grow exponentially has a limit and throws kUnsupported beyond it.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

inline constexpr uint32_t kCodePointEnd = 0x110000;  // one past the last code point
inline constexpr uint32_t kByteEnd = 256;
// What needs more is refused. An enum of a thousand names of twenty letters takes 20,000 states.
inline constexpr int64_t kMaxDfaStates = 32768;
inline constexpr int64_t kMaxNfaStates = 100000;

// Steps that one function may take: some tenths of a second.
inline constexpr int64_t kMaxAutomatonWork = 20'000'000;

struct SymbolRange {
  uint32_t first, last;  // both included; first <= last
};

// Nondeterministic automaton, built by hand. One start, one final state.
class Nfa {
 public:
  enum class When { kAlways, kAtStart, kAtEnd };  // of an edge without a symbol: ^ and $
  struct Edge {
    SymbolRange range;
    int32_t to;
  };
  struct Epsilon {
    int32_t to;
    When when;
  };
  struct State {
    std::vector<Edge> edges;
    std::vector<Epsilon> epsilons;
  };

  // Throws kUnsupported beyond kMaxNfaStates.
  int32_t add_state();
  void add_edge(int32_t from, SymbolRange range, int32_t to);
  void add_epsilon(int32_t from, int32_t to, When when = When::kAlways);
  // A path that spells the text, byte by byte.
  void add_text(int32_t from, std::string_view text, int32_t to);
  const std::vector<State>& states() const { return states_; }

 private:
  std::vector<State> states_;
};

// Deterministic automaton. State 0 is the start; a transition to -1 leaves the language. Every
// state can reach an accepting one (trimmed), so following it never runs into a dead end.
struct Dfa {
  std::vector<uint32_t> class_starts;  // class k: symbols [class_starts[k], class_starts[k + 1])
  uint32_t symbol_end = 0;             // end of the last class
  std::vector<int32_t> next;           // [num_states, num_classes]
  std::vector<bool> accepts;           // [num_states]; empty: the language is empty
  int64_t work = 0;  // steps that the function took which made it; see kMaxAutomatonWork

  int64_t num_states() const { return static_cast<int64_t>(accepts.size()); }
  int64_t num_classes() const { return static_cast<int64_t>(class_starts.size()); }
  bool is_empty() const { return accepts.empty(); }
  uint32_t class_last(int64_t k) const {
    return (k + 1 < num_classes() ? class_starts[static_cast<std::size_t>(k + 1)] : symbol_end) - 1;
  }
  // -1 from -1. symbol < symbol_end.
  int32_t step(int32_t state, uint32_t symbol) const;
};

// Subset construction. symbol_end: kCodePointEnd or kByteEnd.
Dfa determinize(const Nfa& nfa, int32_t start, int32_t final_state, uint32_t symbol_end);

// The words of both; of a but not of b. Both over the same symbols.
Dfa intersect(const Dfa& a, const Dfa& b);
Dfa subtract(const Dfa& a, const Dfa& b);

// All words of min to max symbols; max < 0: no limit.
Dfa words_of_length(int64_t min, int64_t max, uint32_t symbol_end);
// Exactly these words: of the code points of valid UTF-8, or (kByteEnd) of bytes.
Dfa words_of(const std::vector<std::string>& words, uint32_t symbol_end);

}  // namespace lathe
