// Drafts by a second model: smaller, or a coarser copy of the target. It has a cache of its own, in
// which each sequence is kept up to date lazily: what it lacks (a prompt, the tokens of the last
// cycle) is computed when it is next asked to draft, together with the first draft position. Drafts
// that were rejected are truncated away then.
#pragma once
#include <memory>
#include <vector>

#include "engine/device_sampling.h"
#include "engine/prefix_cache.h"
#include "engine/sampler.h"
#include "engine/speculation/draft_plan.h"
#include "engine/speculation/drafter.h"
#include "model/model.h"

namespace lathe {

struct ModelDrafterOptions {
  int64_t max_num_seqs = 64;
  // Rows of one step of the draft model. While several sequences decode, also the most that one
  // propose() spends on catching up with long prompts, so that nobody's tokens stall.
  int64_t max_batch_tokens = 512;
  int64_t max_mixed_prefill_tokens = 128;
  bool prefix_cache = true;
};

class ModelDrafter final : public Drafter {
 public:
  // cache: empty, the draft model's own. target_vocab_size: tokens beyond the smaller of the two
  // vocabularies are never drafted. Borrows model and exec.
  ModelDrafter(Model& model, std::unique_ptr<KvCache> cache, int64_t target_vocab_size,
               const ModelDrafterOptions& options, Exec& exec);
  ~ModelDrafter() override;

  void propose(std::span<const DraftJob> jobs) override;
  void retire(Sequence& sequence) override;
  bool has_logits() const override { return true; }
  void keep_logits(bool keep) override { keeps_logits_ = keep; }
  double seconds(double num_sequences) const override { return times_.at(num_sequences); }
  // Takes the times that seconds() tells. Not while sequences are being drafted for.
  void measure();

 private:
  struct Drafting {
    Sequence* sequence;
    int64_t max_tokens;
    int64_t num_rows;  // in the step in progress
    int64_t row = -1;  // of its logits; -1: none in this step
    int32_t token = -1;
    bool goes_on = true;
  };
  void draft_all(std::span<const DraftJob> jobs);
  bool begin(Sequence& sequence);
  bool make_room(Sequence& sequence, int64_t num_rows);
  void share_prefix(Sequence& sequence);
  void run_step();
  bool chooses_on_device() const;
  void choose_tokens();
  void choose_from_logits();

  Model& model_;
  std::unique_ptr<KvCache> cache_;
  int64_t target_vocab_size_;
  ModelDrafterOptions options_;
  Exec& exec_;
  PrefixCache prefixes_;
  bool keeps_logits_ = false;
  StepTimes times_{{1}, {0}};
  std::vector<Sampler> samplers_;  // one per thread that samples
  std::vector<Sequence*> known_;   // with something in the cache

  // The step in progress.
  std::vector<Drafting> drafting_;
  std::vector<int32_t> token_ids_;
  std::vector<int64_t> positions_;
  std::vector<KvRows> kv_rows_;
  std::vector<int32_t> logit_rows_;
  bool chose_on_device_ = false;
  DeviceSampling device_sampling_;
  Buffer logits_;         // [logit rows, vocabulary of the draft model]
  Buffer padded_logits_;  // [samplers, target vocabulary], where the two differ
};

// Seconds of one step of `model` over so many rows (ascending), the better of two: for those that
// fit into `cache` (empty), and no further than needed to see how they grow.
StepTimes measure_step_times(Model& model, KvCache& cache, std::span<const int64_t> rows,
                             Exec& exec);

}  // namespace lathe
