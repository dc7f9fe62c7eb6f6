// Engines with drafters of every kind, for the tests of speculative decoding.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "engine/speculation/model_drafter.h"
#include "engine/speculation/ngram_drafter.h"
#include "engine/tiny_engine.h"

namespace lathe {

// Proposes what the test says.
class ScriptedDrafter final : public Drafter {
 public:
  using Script = std::function<std::vector<int32_t>(const Sequence&, int64_t max_tokens)>;
  explicit ScriptedDrafter(Script script) : script_(std::move(script)) {}
  void propose(std::span<const DraftJob> jobs) override {
    for (const DraftJob& job : jobs) {
      for (const int32_t token : script_(*job.sequence, job.max_tokens)) {
        job.sequence->draft.add(token);
      }
    }
  }
  void retire(Sequence&) override {}
  double seconds(double) const override { return 0; }

 private:
  Script script_;
};

inline std::unique_ptr<Drafter> random_drafter(uint64_t seed) {
  return std::make_unique<ScriptedDrafter>([rng = Rng(seed)](const Sequence&, int64_t n) mutable {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(rng.below(256)));
    return tokens;
  });
}

// Another model drafts, in a cache of cache_tokens.
struct DraftModel {
  explicit DraftModel(const char* name = "gemma3-sliding-global")
      : loaded(golden_path(std::string("tiny/") + name), 1) {}
  std::unique_ptr<Drafter> drafter(TinyEngine& tiny, int64_t cache_tokens = 16 * 128,
                                   bool prefix_cache = true) {
    return make(*loaded.model, tiny, cache_tokens, prefix_cache);
  }
  static std::unique_ptr<Drafter> make(Model& model, TinyEngine& tiny, int64_t cache_tokens,
                                       bool prefix_cache) {
    return std::make_unique<ModelDrafter>(
        model, model.make_cache(KvFormat::kF32, cache_tokens, 128), tiny.loaded.config().vocab_size,
        ModelDrafterOptions{.max_num_seqs = tiny.options.max_num_seqs,
                            .max_batch_tokens = 64,
                            .max_mixed_prefill_tokens = 32,
                            .prefix_cache = prefix_cache},
        tiny.loaded.owned.exec);
  }
  LoadedModel loaded;
};

// The target drafts for itself.
inline std::unique_ptr<Drafter> own_drafter(TinyEngine& tiny) {
  return DraftModel::make(*tiny.loaded.model, tiny, 16 * 128, true);
}

}  // namespace lathe
