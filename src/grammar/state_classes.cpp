#include "grammar/state_classes.h"

#include <algorithm>
#include <numeric>
#include <span>

namespace lathe {

StateClasses::StateClasses(const Grammar& grammar, const Grammar::Table& table, int32_t max_rounds)
    : num_states_(static_cast<std::size_t>(table.num_states)) {
  const auto num_bytes = static_cast<std::size_t>(table.num_classes);
  const std::size_t width = 1 + num_bytes;
  std::vector<int32_t> current(num_states_);
  for (std::size_t s = 0; s < num_states_; ++s) {
    current[s] = grammar.table_accepts(table.first_state + static_cast<StateId>(s)) ? 1 : 0;
  }
  std::vector<int32_t> keys(num_states_ * width);  // a state's class, then those behind each byte
  const auto key = [&](int32_t s) {
    return std::span(keys).subspan(static_cast<std::size_t>(s) * width, width);
  };
  std::vector<int32_t> order(num_states_);
  std::iota(order.begin(), order.end(), 0);
  int32_t previous_count = 0;
  for (int32_t round = 1; round <= max_rounds; ++round) {
    for (std::size_t s = 0; s < num_states_; ++s) {
      keys[s * width] = current[s];
      for (std::size_t b = 0; b < num_bytes; ++b) {
        const StateId to = table.next[s * num_bytes + b];
        keys[s * width + 1 + b] =
            to < 0 ? -1 : current[static_cast<std::size_t>(to - table.first_state)];
      }
    }
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return std::lexicographical_compare(key(a).begin(), key(a).end(), key(b).begin(),
                                          key(b).end());
    });
    int32_t count = 0;
    for (std::size_t i = 0; i < num_states_; ++i) {
      if (i > 0 &&
          !std::equal(key(order[i]).begin(), key(order[i]).end(), key(order[i - 1]).begin())) {
        ++count;
      }
      current[static_cast<std::size_t>(order[i])] = count;
    }
    ++count;
    if (count == previous_count) break;
    previous_count = count;
    classes_.insert(classes_.end(), current.begin(), current.end());
    counts_.push_back(count);
    if (count == table.num_states) break;
  }
}

}  // namespace lathe
