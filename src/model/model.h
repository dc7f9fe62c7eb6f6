// A loaded model and its forward pass over flat rows. One decoder runs every architecture, from the
// description in ModelConfig.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "cache/kv_cache.h"
#include "formats/checkpoint.h"
#include "kernels/linear/linear.h"

namespace lathe {

struct ModelOptions {
  DType dense_dtype =
      DType::kBF16;  // of weights that are not quantized; kF32 for exact comparisons
  ComputeType compute = ComputeType::kAuto;
};

// The rows of one step: prefill chunks, decode rows and verify windows alike.
struct ForwardBatch {
  std::span<const int32_t> token_ids;   // [num_rows]
  std::span<const int64_t> positions;   // [num_rows]
  std::span<const KvRows> sequences;    // consecutive runs that cover all rows
  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, increasing
};

class Model {
 public:
  static std::unique_ptr<Model> load(const Checkpoint& checkpoint, const ModelOptions& options,
                                     Exec& exec);
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  // Bytes of weights that one decode step reads.
  virtual int64_t weight_bytes() const = 0;
  // Writes logits [logit_rows.size(), vocab_size]. Appends the rows to the cache and commits them.
  // `hidden` (optional): final hidden states after the last norm, [logit_rows.size(), hidden_size].
  virtual void forward(const ForwardBatch& batch, KvCache& cache, float* logits, float* hidden,
                       Exec& exec) = 0;
};

}  // namespace lathe
