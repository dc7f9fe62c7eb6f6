// Where draft tokens come from (spec: Leviathan et al. 2023, Chen et al. 2023): a small model, a
// coarser copy of the model itself, or the text so far.
#pragma once
#include <cstdint>
#include <span>

#include "engine/sequence.h"

namespace lathe {

struct DraftJob {
  Sequence* sequence = nullptr;  // decoding: its last token has not been computed yet
  int64_t max_tokens = 0;        // 1 to kMaxDraftTokens
};

class Drafter {
 public:
  virtual ~Drafter() = default;
  // Fills sequence->draft (empty before) of every job with up to max_tokens tokens; fewer, or
  // none, where it has nothing to propose. Whatever it proposes will be judged: a drafter must not
  // drop a token it has drawn because of what the token is, or the output's distribution changes.
  // Penalty counts and constraints of the sequences are as before when it returns.
  virtual void propose(std::span<const DraftJob> jobs) = 0;
  // The sequence ends: whatever is kept for it goes.
  virtual void retire(Sequence& sequence) = 0;
  // Whether it can tell what its tokens were chosen by; false: it looks them up.
  virtual bool has_logits() const { return false; }
  // Whether propose() fills DraftWindow::logits too, where it has any.
  virtual void keep_logits(bool) {}
  // Seconds of one more drafted token for so many sequences at once, measured when made; 0 for a
  // drafter that costs nothing.
  virtual double seconds(double num_sequences) const = 0;
};

}  // namespace lathe
