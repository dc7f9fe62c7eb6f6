// What speculative decoding gains on real text: a few fixed prompts, answered greedily with and
// without drafts by the same engine options, and compared token for token before a speed counts.
#pragma once
#include <cstdint>

#include "cli/draft_flags.h"
#include "cli/loaded_model.h"

namespace lathe {

struct DraftSpeedOptions {
  int64_t decode_tokens = 128;  // of each answer
  int64_t batch = 1;            // answers at once
  int repetitions = 3;
};

struct DraftSpeed {
  double plain = 0;        // tokens per second while answering, prompts included; the median
  double speculative = 0;  // likewise
  SpeculationUsage usage;  // of one repetition
};

// Answers max(batch, 6) prompts. Throws kInternal when the answers differ on a CPU, where they must
// not; on a GPU, where rows may move with the batch, and with a coded cache they are not compared.
DraftSpeed measure_draft_speed(const LoadedModel& loaded, const LoadedDraft& draft,
                               const DraftSpeedOptions& options, Exec& exec);

}  // namespace lathe
