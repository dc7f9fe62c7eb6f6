// Runs a model over one sequence, for tests.
#pragma once
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "formats/checkpoint.h"
#include "model/model.h"
#include "support/kernel_cases.h"

namespace lathe {

// A model in fp32 throughout.
struct LoadedModel {
  explicit LoadedModel(const std::string& path, int num_threads = 2)
      : LoadedModel(Checkpoint::open(path), num_threads) {}
  explicit LoadedModel(std::unique_ptr<Checkpoint> from, int num_threads = 2)
      : owned(num_threads),
        checkpoint(std::move(from)),
        model(Model::load(*checkpoint, {.dense_dtype = DType::kF32, .compute = ComputeType::kF32},
                          owned.exec)) {}
  const ModelConfig& config() const { return model->config(); }

  OwnedExec owned;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Model> model;
};

// One sequence in a cache of its own.
class SequenceRunner {
 public:
  SequenceRunner(LoadedModel& loaded, int64_t max_tokens, KvFormat format = KvFormat::kF32)
      : loaded_(loaded),
        cache_(loaded.model->make_cache(format, max_tokens, max_tokens)),
        sequence_(cache_->new_sequence()) {}
  ~SequenceRunner() { cache_->release(sequence_); }

  // Feeds tokens and returns the logits of all of them, [ids.size(), vocab_size], and their final
  // hidden states.
  struct Result {
    std::vector<float> logits;
    std::vector<float> hidden;
  };
  Result feed(std::span<const int32_t> ids) {
    const auto n = static_cast<int64_t>(ids.size());
    std::vector<int64_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), sequence_.num_tokens);
    std::vector<int32_t> logit_rows(ids.size());
    std::iota(logit_rows.begin(), logit_rows.end(), 0);
    Result result;
    result.logits.resize(ids.size() * static_cast<std::size_t>(loaded_.config().vocab_size));
    result.hidden.resize(ids.size() * static_cast<std::size_t>(loaded_.config().hidden_size));
    EXPECT_TRUE(cache_->reserve(sequence_, n));
    const KvRows rows{.sequence = &sequence_, .row_begin = 0, .num_rows = n};
    loaded_.model->forward({.token_ids = ids,
                            .positions = positions,
                            .sequences = {&rows, 1},
                            .logit_rows = logit_rows},
                           *cache_, result.logits.data(), result.hidden.data(), loaded_.owned.exec);
    return result;
  }

 private:
  LoadedModel& loaded_;
  std::unique_ptr<KvCache> cache_;
  KvSequence sequence_;
};

}  // namespace lathe
