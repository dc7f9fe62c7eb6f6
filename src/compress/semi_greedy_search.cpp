#include "compress/semi_greedy_search.h"

#include "base/check.h"

namespace lathe {

bool SemiGreedySearch::find_next(std::span<const int32_t> draft_choices) {
  LATHE_CHECK(draft_choices.size() >= current_.size());
  for (auto t = static_cast<std::size_t>(next_); t < current_.size(); ++t) {
    if (current_[t] == draft_choices[t]) continue;
    position_ = static_cast<int64_t>(t);
    draft_token_ = draft_choices[t];
    return true;
  }
  return false;
}

std::vector<int32_t> SemiGreedySearch::tried_prefix() const {
  std::vector<int32_t> prefix(current_.begin(), current_.begin() + position_);
  prefix.push_back(draft_token_);
  return prefix;
}

void SemiGreedySearch::report(std::vector<int32_t> alternative, const Outcome& outcome,
                              bool truncated) {
  const bool important = truncated || !outcome || *outcome != outcome_;
  records_.push_back({.position = position_,
                      .important = important,
                      .target_token = current_[static_cast<std::size_t>(position_)],
                      .draft_token = draft_token_,
                      .truncated = truncated});
  if (!important) current_ = std::move(alternative);
  next_ = position_ + 1;
}

}  // namespace lathe
