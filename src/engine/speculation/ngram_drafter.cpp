#include "engine/speculation/ngram_drafter.h"

#include <algorithm>

namespace lathe {

std::span<const int32_t> ngram_continuation(std::span<const int32_t> tokens, int64_t max_tokens,
                                            const NgramOptions& options) {
  const auto size = static_cast<int64_t>(tokens.size());
  int64_t best_size = options.min_match - 1;
  int64_t best_end = -1;
  // `end`: where an earlier occurrence of the last tokens ends, the latest first.
  for (int64_t end = size - 1; end > best_size; --end) {
    const int64_t most = std::min(options.max_match, end);
    int64_t match = 0;
    while (match < most && tokens[static_cast<std::size_t>(end - 1 - match)] ==
                               tokens[static_cast<std::size_t>(size - 1 - match)]) {
      ++match;
    }
    if (match <= best_size) continue;
    best_size = match;
    best_end = end;
    if (match == options.max_match) break;
  }
  if (best_end < 0) return {};
  return tokens.subspan(static_cast<std::size_t>(best_end),
                        static_cast<std::size_t>(std::min(max_tokens, size - best_end)));
}

void NgramDrafter::propose(std::span<const DraftJob> jobs) {
  for (const DraftJob& job : jobs) {
    for (const int32_t token : ngram_continuation(job.sequence->tokens, job.max_tokens, options_)) {
      job.sequence->draft.add(token);
      if (job.sequence->is_end_token(token)) break;
    }
  }
}

}  // namespace lathe
