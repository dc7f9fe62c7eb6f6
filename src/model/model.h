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
#include "model/step_profile.h"

namespace lathe {

struct ModelOptions {
  DType dense_dtype =
      DType::kBF16;  // of weights that are not quantized; kF32 for exact comparisons
  ComputeType compute = ComputeType::kAuto;
  bool int8_head = true;  // with kAuto, a dense output head runs as int8 (model/output_head.h)
  // The longest sequence that will be run; longrope and dynamic rope scaling depend on it. 0: what
  // the model allows (max_position_embeddings).
  int64_t max_sequence_tokens = 0;
  // Progress of loading, after each layer.
  std::function<void(int64_t layers_done, int64_t num_layers)> on_layer_loaded = nullptr;
};

// The rows of one step: prefill chunks, decode rows and verify windows alike.
struct ForwardBatch {
  std::span<const int32_t> token_ids;   // [num_rows]
  std::span<const int64_t> positions;   // [num_rows]
  std::span<const KvRows> sequences;    // consecutive runs that cover all rows, in order
  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, in the order of output
};

class Model {
 public:
  static std::unique_ptr<Model> load(const Checkpoint& checkpoint, const ModelOptions& options,
                                     Exec& exec);
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  // Bytes of weights that one decode step reads.
  virtual int64_t weight_bytes() const = 0;
  // One line per kind of linear layer: which kernel runs it.
  virtual std::string kernels() const = 0;
  // Adds the time of each stage to *profile from now on; null: stops.
  virtual void set_profile(StepProfile* profile) = 0;
  // Writes logits [logit_rows.size(), vocab_size] (null: not computed). The rows must have been
  // reserved in the cache; they are appended and committed. `hidden` (optional): final hidden
  // states after the last norm, [logit_rows.size(), hidden_size]. Rows are independent: a row's
  // bits do not depend on the others. Does not allocate after warm-up. Throws kInvalidArgument on a
  // batch that contradicts itself; nothing is committed then.
  virtual void forward(const ForwardBatch& batch, KvCache& cache, float* logits, float* hidden,
                       Exec& exec) = 0;
};

}  // namespace lathe
