// What Model::learn_key_means() does on any device: the step over the texts, and the means of what
// it leaves.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "model/model.h"
#include "tensor/tensor.h"

namespace lathe {

// The texts as one step, each a sequence of its own. Borrows them.
class KeyMeanTexts {
 public:
  // Throws kInvalidArgument for a text without tokens.
  explicit KeyMeanTexts(std::span<const std::vector<int32_t>> texts);
  KeyMeanTexts(const KeyMeanTexts&) = delete;
  KeyMeanTexts& operator=(const KeyMeanTexts&) = delete;

  // What a cache without sinks needs to hold them.
  int64_t cache_tokens() const { return cache_tokens_; }
  int64_t longest() const { return longest_; }
  // Room for all of them in an empty cache of that size, which must have been made for sequences of
  // longest() tokens.
  void reserve(KvCache& cache);
  void release(KvCache& cache);
  ForwardBatch batch() const;                                        // without logits
  std::span<const int64_t> positions() const { return positions_; }  // of its rows
  std::span<const KvSequence> sequences() const { return sequences_; }

 private:
  std::vector<KvSequence> sequences_;
  std::vector<int32_t> token_ids_;
  std::vector<int64_t> positions_;
  std::vector<KvRows> rows_;
  int64_t cache_tokens_ = 0;
  int64_t longest_ = 0;
};

struct KeyMeans {
  std::vector<Tensor> layers;  // f32 [kv_size]
  bool is_finite = true;       // not where no row counted, either

  // The next layer's, of keys before RoPE [positions.size(), kv_size] with this row stride. A row
  // counts if its position is none of the first kLiveSinks (their keys are like no others, and live
  // codes keep them exactly) nor negative (no token's row).
  void add_layer(std::span<const int64_t> positions, const float* keys, int64_t stride,
                 int64_t kv_size);
};

}  // namespace lathe
