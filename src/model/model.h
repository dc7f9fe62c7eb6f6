// A loaded model and its forward pass over flat rows. One decoder runs every architecture, from the
// description in ModelConfig.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/coded_kv_cache.h"
#include "cache/kv_cache.h"
#include "cache/piece_parker.h"
#include "formats/checkpoint.h"
#include "formats/kv_codec_file.h"
#include "kernels/linear/linear.h"
#include "kernels/sampling/sampling_cuda.h"
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
  // Ranks that share every layer (model/tensor_parallel.h); 1: the model is not divided.
  int tensor_parallel = 1;
  // Progress of loading, after each layer.
  std::function<void(int64_t layers_done, int64_t num_layers)> on_layer_loaded = nullptr;
};

// Of every layer, and the memory of their tables.
struct KvRopes {
  std::vector<KvRope> layers;
  std::vector<Buffer> memory;
};

// The rows of one step: prefill chunks, decode rows and verify windows alike.
struct ForwardBatch {
  std::span<const int32_t> token_ids;   // [num_rows]
  std::span<const int64_t> positions;   // [num_rows]
  std::span<const KvRows> sequences;    // consecutive runs that cover all rows, in order
  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, in the order of output
};

// How the next tokens are chosen where the logits are, on a GPU. sampling_cuda.h has the meaning of
// everything here; the spans must stay valid until forward_and_sample() returns.
struct SampleBatch {
  std::span<const SamplingRow> rows = {};  // [logit_rows.size()]
  std::span<const SamplingCount> counts = {};
  std::span<const SamplingBias> biases = {};
  std::span<const SamplingProb> probs = {};
  std::span<const uint64_t> masks = {};
  int64_t max_logprobs = 0;  // columns of top_tokens and top_logprobs
};
struct SampledBatch {
  std::span<int32_t> tokens = {};       // [logit_rows.size()]; -1: the largest logit was not finite
  std::span<float> logprobs = {};       // likewise, or empty when no row wants any
  std::span<SampledDraft> drafts = {};  // likewise, or empty when no row has a draft
  std::span<int32_t> top_tokens = {};   // [logit_rows.size(), max_logprobs]
  std::span<float> top_logprobs = {};
};

// Throws kInvalidArgument on a batch that contradicts itself.
void check_batch(const ForwardBatch& batch);

class Model {
 public:
  // On the CPU (model/decoder.h), or on GPU exec.cuda_device (model/cuda_decoder.h) and, with
  // options.tensor_parallel, the ones behind it.
  static std::unique_ptr<Model> load(const Checkpoint& checkpoint, const ModelOptions& options,
                                     Exec& exec);
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  // Bytes of weights that one decode step reads.
  virtual int64_t weight_bytes() const = 0;
  // One line per kind of linear layer: which kernel runs it.
  virtual std::string kernels() const = 0;
  // Bytes per second that this machine reads from the memory that holds the weights, measured now.
  virtual double measure_bandwidth(Exec& exec) const;
  // Adds the time of each stage to *profile from now on; null: stops.
  virtual void set_profile(StepProfile* profile) = 0;
  // Lets the caches that code keys (kv_drops_key_offset(), kernels/attention/kv_codes.h) leave out
  // each layer's mean key over these texts instead of its bias alone: what tells one key from
  // another is a fraction of a key, and so are the codes' errors then (decision 0027). The same
  // texts give the same means. Before any cache or parker is made; a second call does nothing.
  // Each of at least one token, together a step of the model, over a cache as exact as it has one.
  // Throws what forward() throws.
  virtual void learn_key_means(std::span<const std::vector<int32_t>> /*texts*/, Exec& /*exec*/) {}
  // An empty cache for this model, in the memory that its kernels read. Throws what make_kv_cache()
  // throws. The model must outlive it.
  virtual std::unique_ptr<KvCache> make_cache(KvFormat format, int64_t num_tokens,
                                              int64_t max_sequence_tokens) const {
    return make_kv_cache(config(), format, num_tokens, max_sequence_tokens);
  }
  // A cache whose older blocks are codes (cache/coded_kv_cache.h), with this model's rotations. The
  // codec must outlive it. Throws what CodedKvCache and CudaCodedKvCache throw.
  virtual std::unique_ptr<KvCache> make_coded_cache(const KvCodec& codec,
                                                    const CodedKvCacheOptions& options) const;
  // Those rotations, for positions up to the end of the last block of max_sequence_tokens.
  // kUnsupported on a GPU.
  virtual KvRopes kv_ropes(int64_t max_sequence_tokens) const;
  // What parks sequences of up to max_sequence_tokens of a cache of this model and wakes them: of
  // make_cache() in this codec, of make_coded_cache() in its own. file and codec are the same; the
  // codec, the cache and the model must outlive it. Throws kUnsupported for what a GPU cannot do
  // (coded caches among it), and what CodedKvCache::make_parker() throws.
  virtual std::unique_ptr<PieceParker> make_parker(KvCache& cache, const KvCodecFile& file,
                                                   const KvCodec& codec,
                                                   int64_t max_sequence_tokens) const;
  // Writes logits [logit_rows.size(), vocab_size] (null: not computed). The rows must have been
  // reserved in the cache; they are appended and committed. `hidden` (optional): final hidden
  // states after the last norm, [logit_rows.size(), hidden_size]. Rows are independent: a row's
  // bits do not depend on the others. Does not allocate after warm-up. Throws kInvalidArgument on a
  // batch that contradicts itself; nothing is committed then.
  virtual void forward(const ForwardBatch& batch, KvCache& cache, float* logits, float* hidden,
                       Exec& exec) = 0;
  // forward() that leaves the logits where they are, [logit_rows.size(), vocab_size] fp32 in the
  // memory of GPU exec.cuda_device: valid until the model's next step, finished at return. Null,
  // and nothing done, on a CPU.
  virtual const float* forward_on_device(const ForwardBatch&, KvCache&, Exec&) { return nullptr; }
  // Whether forward_and_sample() is there.
  virtual bool can_sample() const { return false; }
  // forward() of which only the chosen tokens, and hidden states, come back to the host.
  virtual void forward_and_sample(const ForwardBatch& batch, KvCache& cache,
                                  const SampleBatch& sampling, const SampledBatch& sampled,
                                  float* hidden, Exec& exec);
  // How far a row's logits may move with what else is in the step, as ||difference|| / ||logits||:
  // 0 on the CPU. A GPU takes other kernels for other numbers of rows.
  virtual double batch_tolerance() const { return 0; }
};

}  // namespace lathe
