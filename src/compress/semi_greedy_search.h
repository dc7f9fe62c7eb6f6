// Which of the tokens in which a draft model differs from the target matter to the answer
// (AutoJudge, arXiv 2504.20039, the semi-greedy search): walk along the target's answer; where the
// draft would have chosen another token, put that token there, let the target go on, and ask the
// checker. The same outcome: unimportant, and the walk goes on along the new answer. Another:
// important, and the target's token stays.
//
// Invariants at the end, which tests check: positions increase strictly; the final answer has the
// reference's outcome; at every position the final answer has the draft's choice, or the position
// is recorded as important; if the draft's own greedy answer has another outcome, at least one
// position is important.
//
// This is the search alone, one step at a time: the caller runs the models, in whatever order and
// company, and the result depends on their answers only.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lathe {

struct MinedToken {
  int64_t position = 0;  // in the generated part
  bool important = false;
  int32_t target_token = 0;
  int32_t draft_token = 0;
  bool truncated = false;  // important because the continuation hit the limit of length
};

// Outcomes are equal when the checker says so: here, as strings. nullopt: none (no answer, or cut
// off), which equals nothing.
using Outcome = std::optional<std::string>;

class SemiGreedySearch {
 public:
  // answer: the target's greedy answer, with its end token if it has one, and its outcome.
  SemiGreedySearch(std::vector<int32_t> answer, std::string outcome)
      : current_(std::move(answer)), outcome_(std::move(outcome)) {}

  // The answer that is walked along.
  const std::vector<int32_t>& current() const { return current_; }
  // The next position to try, given the draft's greedy choice at every position of current()
  // (teacher-forced: choice t after current()[0..t)). False when there is none: the search ends.
  bool find_next(std::span<const int32_t> draft_choices);
  int64_t position() const { return position_; }
  int32_t draft_token() const { return draft_token_; }
  // The tried answer up to and with the draft's token.
  std::vector<int32_t> tried_prefix() const;
  // What the target made of it: tried_prefix() and what followed, and its outcome.
  void report(std::vector<int32_t> alternative, const Outcome& outcome, bool truncated);

  const std::vector<MinedToken>& records() const { return records_; }
  const std::string& outcome() const { return outcome_; }

 private:
  std::vector<int32_t> current_;
  std::string outcome_;
  int64_t next_ = 0;
  int64_t position_ = -1;
  int32_t draft_token_ = -1;
  std::vector<MinedToken> records_;
};

}  // namespace lathe
