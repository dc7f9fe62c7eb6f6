// Which states of a lexeme's table no short text tells apart. A pattern such as ^.{1,300}$ has
// states for each number of characters that may still come, and all that are far from the end allow
// the same tokens.
//
// Moore's refinement (1956): the first classes are by whether a state accepts; each round splits
// them by the classes that the bytes lead to. States in one class of round i agree on every text of
// up to i bytes: whether it stays in the lexeme, and whether the lexeme is complete behind it.
#pragma once
#include <cstdint>
#include <vector>

#include "grammar/grammar.h"

namespace lathe {

class StateClasses {
 public:
  // Goes on until every state is alone, nothing changes any more, or max_rounds.
  // Takes O(rounds * states * (byte classes + log states)).
  StateClasses(const Grammar& grammar, const Grammar::Table& table, int32_t max_rounds);

  int32_t num_rounds() const { return static_cast<int32_t>(counts_.size()); }
  int32_t num_classes(int32_t round) const { return counts_[static_cast<std::size_t>(round - 1)]; }
  // round: 1 to num_rounds(). state: local to the table. From 0.
  int32_t class_of(int32_t round, int32_t state) const {
    return classes_[static_cast<std::size_t>(round - 1) * num_states_ +
                    static_cast<std::size_t>(state)];
  }

 private:
  std::size_t num_states_;
  std::vector<int32_t> classes_;  // [num_rounds, num_states]
  std::vector<int32_t> counts_;
};

}  // namespace lathe
