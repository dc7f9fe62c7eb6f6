#include "text/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace lathe {
namespace {

struct Range {
  size_t begin, end;
  bool is_match;
};

// Text between matches and the matches themselves, in order and without gaps.
std::vector<Range> find_ranges(const Regex& pattern, std::string_view text, bool invert) {
  std::vector<Range> ranges;
  size_t done = 0, begin = 0, end = 0;
  for (Regex::Scanner scanner(pattern, text); scanner.next(begin, end); done = end) {
    if (done < begin) ranges.push_back({done, begin, invert});
    ranges.push_back({begin, end, !invert});
  }
  if (done < text.size()) ranges.push_back({done, text.size(), invert});
  return ranges;
}

// Joins ranges as the behaviour asks. A match joins its neighbour unless that is a match as well.
std::vector<Range> merge_ranges(std::vector<Range> ranges, SplitBehavior behavior) {
  std::vector<Range> merged;
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return ranges;
    case SplitBehavior::kRemoved:
      std::erase_if(ranges, [](const Range& range) { return range.is_match; });
      return ranges;
    case SplitBehavior::kContiguous:
      for (const Range& range : ranges) {
        if (!merged.empty() && merged.back().is_match == range.is_match) {
          merged.back().end = range.end;
        } else {
          merged.push_back(range);
        }
      }
      return merged;
    case SplitBehavior::kMergedWithPrevious: {
      bool previous_match = false;
      for (const Range& range : ranges) {
        if (range.is_match && !previous_match && !merged.empty()) {
          merged.back().end = range.end;
        } else {
          merged.push_back(range);
        }
        previous_match = range.is_match;
      }
      return merged;
    }
    case SplitBehavior::kMergedWithNext: {
      bool next_match = false;
      for (auto range = ranges.rbegin(); range != ranges.rend(); ++range) {
        if (range->is_match && !next_match && !merged.empty()) {
          merged.back().begin = range->begin;
        } else {
          merged.push_back(*range);
        }
        next_match = range->is_match;
      }
      std::reverse(merged.begin(), merged.end());
      return merged;
    }
  }
  return ranges;
}

}  // namespace

PreTokenizer::PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {
  // Each step is one level of recursion with its own copy of a piece at worst.
  if (steps_.size() > 32) {
    fail(ErrorCode::kUnsupported, "pre-tokenizer has ", steps_.size(),
         " steps; at most 32 are supported");
  }
  patterns_.resize(steps_.size());
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (steps_[i].kind == PreTokenizerStep::Kind::kSplit) {
      patterns_[i].emplace(steps_[i].pattern, steps_[i].literal);
    }
  }
}

void PreTokenizer::split(std::string_view text, bool at_start, const Emit& emit) const {
  run(0, text, at_start, emit);
}

void PreTokenizer::run(size_t step_idx, std::string_view text, bool at_start,
                       const Emit& emit) const {
  if (text.empty()) return;
  if (step_idx == steps_.size()) return emit(text);
  switch (steps_[step_idx].kind) {
    case PreTokenizerStep::Kind::kSplit:
      return split_step(step_idx, text, at_start, emit);
    case PreTokenizerStep::Kind::kMetaspace:
      return metaspace_step(step_idx, text, at_start, emit);
    case PreTokenizerStep::Kind::kPrefixSpace:
      if (text.front() == ' ') return run(step_idx + 1, text, at_start, emit);
      return run(step_idx + 1, ' ' + std::string(text), at_start, emit);
  }
}

void PreTokenizer::split_step(size_t step_idx, std::string_view text, bool at_start,
                              const Emit& emit) const {
  const PreTokenizerStep& step = steps_[step_idx];
  const Regex& pattern = *patterns_[step_idx];
  const auto pass_on = [&](size_t begin, size_t end) {
    run(step_idx + 1, text.substr(begin, end - begin), at_start && begin == 0, emit);
  };
  if (step.behavior == SplitBehavior::kIsolated) {  // the usual case, without a list of ranges
    size_t done = 0, begin = 0, end = 0;
    for (Regex::Scanner scanner(pattern, text); scanner.next(begin, end); done = end) {
      if (done < begin) pass_on(done, begin);
      pass_on(begin, end);
    }
    if (done < text.size()) pass_on(done, text.size());
    return;
  }
  for (const Range& range : merge_ranges(find_ranges(pattern, text, step.invert), step.behavior)) {
    pass_on(range.begin, range.end);
  }
}

void PreTokenizer::metaspace_step(size_t step_idx, std::string_view text, bool at_start,
                                  const Emit& emit) const {
  const PreTokenizerStep& step = steps_[step_idx];
  std::string spaced;
  spaced.reserve(text.size() + text.size() / 2);
  for (const char c : text) {
    if (c == ' ') {
      spaced += step.pattern;
    } else {
      spaced.push_back(c);
    }
  }
  using Prepend = PreTokenizerStep::Prepend;
  const bool wanted =
      step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && at_start);
  if (wanted && !spaced.starts_with(step.pattern)) spaced.insert(0, step.pattern);

  const std::string_view view = spaced;
  size_t begin = 0;
  while (step.split && begin < view.size()) {
    const bool marked = view.substr(begin).starts_with(step.pattern);
    const size_t next = view.find(step.pattern, begin + (marked ? step.pattern.size() : 0));
    if (next == std::string_view::npos) break;
    run(step_idx + 1, view.substr(begin, next - begin), at_start && begin == 0, emit);
    begin = next;
  }
  run(step_idx + 1, view.substr(begin), at_start && begin == 0, emit);
}

}  // namespace lathe
