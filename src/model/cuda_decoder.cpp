#include "model/cuda_decoder.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "cache/cuda_coded_kv_cache.h"
#include "cache/cuda_kv_cache.h"
#include "cache/cuda_kv_parker.h"
#include "formats/sharded_checkpoint.h"
#include "kernels/activation/softcap_cuda.h"
#include "kernels/embedding/embedding_cuda.h"
#include "kernels/peaks/peaks_cuda.h"
#include "model/cuda_layer.h"
#include "model/key_means.h"
#include "model/output_head.h"
#include "model/step_buffers.h"
#include "model/timed_collective.h"
#include "tensor/cuda_check.h"
#include "tensor/pinned_copy.h"

namespace lathe {
namespace {

constexpr const char* kEmbeddingName = "model.embed_tokens.weight";

// Steps of at most so many rows whose logits are all wanted, one for each sequence or windows of
// drafts, are captured once per size and replayed.
constexpr int64_t kMaxGraphRows = 256;
constexpr int64_t kMinGraphContext = 512;
constexpr std::size_t kMaxGraphs = 256;  // the oldest one goes

// Sizes that steps are padded to, so that a few graphs serve all: 1, 2, 4, 8, 16, 24, 32, 48, 64,
// 96, ... At most a half of the rows is padding, a third from 16 on.
int64_t graph_rows(int64_t rows) {
  int64_t size = 1;
  while (size < rows) {
    if (size >= 16 && size + size / 2 >= rows) return size + size / 2;
    size *= 2;
  }
  return size;
}

// The same for the rows of one sequence.
int64_t graph_window(int64_t rows) { return rows == 1 ? 1 : rows <= 4 ? 4 : kAttentionDecodeRows; }

struct GraphDeleter {
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, GraphDeleter>;

class CudaDecoder final : public Model {
 public:
  CudaDecoder(const Checkpoint& checkpoint, const ModelOptions& options, Exec& exec,
              Collective* collective);

  const ModelConfig& config() const override { return config_; }
  int64_t weight_bytes() const override;
  std::string kernels() const override;
  double measure_bandwidth(Exec&) const override { return measure_cuda_read_bandwidth(*context_); }
  // Stages overlap on a GPU; only steps are counted, and sums between ranks timed.
  void set_profile(StepProfile* profile) override {
    profile_ = profile;
    if (collective_ == nullptr) return;
    timed_ = profile != nullptr ? std::make_unique<TimedCollective>(*collective_) : nullptr;
    ++own_generation_;  // graphs have the events in them, or do not
  }
  void learn_key_means(std::span<const std::vector<int32_t>> texts, Exec& exec) override;
  std::unique_ptr<KvCache> make_cache(KvFormat format, int64_t num_tokens,
                                      int64_t max_sequence_tokens) const override;
  std::unique_ptr<KvCache> make_coded_cache(const KvCodec& codec,
                                            const CodedKvCacheOptions& options) const override;
  std::unique_ptr<PieceParker> make_parker(KvCache& cache, const KvCodecFile& file,
                                           const KvCodec& codec,
                                           int64_t max_sequence_tokens) const override;
  void forward(const ForwardBatch& batch, KvCache& cache, float* logits, float* hidden,
               Exec& exec) override;
  const float* forward_on_device(const ForwardBatch& batch, KvCache& cache, Exec& exec) override {
    run_step(batch, cache, true, exec, [] {});
    return logits_.as<float>();
  }
  bool can_sample() const override { return true; }
  void forward_and_sample(const ForwardBatch& batch, KvCache& cache, const SampleBatch& sampling,
                          const SampledBatch& sampled, float* hidden, Exec& exec) override;
  // bf16 between the kernels, and FP8 inputs of MXFP4 layers in steps of more than 16 rows: those
  // are off by 2.6 % each (rms), of which random weights make 12 % in 32 layers of 4096 columns,
  // 23 % in 20 of 8192, and 35 to 41 % where a cache of 4-bit codes rounds what they shift. Logits
  // that have nothing to do with each other differ by 141 %.
  double batch_tolerance() const override { return element_ == CudaElement::kF32 ? 1e-4 : 0.5; }

 private:
  // What a graph remembers of the cache it reads.
  struct CachePlace {
    KvCudaElement element;
    const void* first;
    const void* last;
    int64_t id;
    bool operator==(const CachePlace&) const = default;
  };
  struct CapturedStep {
    StepShape shape;
    CachePlace cache;
    int64_t num_rebuilt;  // blocks
    int64_t generation;
    Graph graph;  // null: run once, so that memory has grown; capture the next time
  };

  // What forward() and forward_and_sample() share: enqueues the step; `finish` enqueues what reads
  // its results, and the host waits for both.
  template <typename Finish>
  void run_step(const ForwardBatch& batch, KvCache& cache, bool wants_logits, Exec& exec,
                const Finish& finish);
  void copy_hidden(int64_t num_logits, float* hidden);
  KvFormat live_format(KvFormat format) const;
  std::vector<KvRopeCuda> kv_ropes_on_device() const;
  RopeFrequencies frequencies(const RopeConfig& rope) const {
    return rope_frequencies(rope, config_.rotary_dim, config_.max_position_embeddings, max_tokens_);
  }
  void make_rotation_blocks();
  KeyMeans mean_keys(std::span<const KvSequence> sequences, CudaKvCache& cache);
  void reserve(const StepShape& shape, CudaKvLayers& cache);
  void run(const StepShape& shape, CudaKvLayers& cache, bool wants_logits);
  void run_layers(CudaKvLayers& cache, float* hidden);
  void run_head(const float* hidden, int64_t num_logits);
  void receive_logits(int64_t num_logits);
  bool is_first_rank() const { return collective_ == nullptr || collective_->rank() == 0; }
  bool can_replay(const StepShape& shape, CudaKvLayers& cache);
  void replay(const StepShape& shape, CudaKvLayers& cache);
  Graph capture(const StepShape& shape, CudaKvLayers& cache);
  CapturedStep& captured(const StepShape& shape, CudaKvLayers& cache);
  template <typename T>
  void copy_to_host(T* to, const void* from, int64_t count) {
    cuda_check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T),
                               cudaMemcpyDeviceToHost, context_->stream()),
               "copying results from the GPU");
  }
  // Into the workspace; null for nothing.
  template <typename T>
  const T* copy_to_device(std::span<const T> from) {
    if (from.empty()) return nullptr;
    T* to = context_->workspace().allocate_as<T>(static_cast<int64_t>(from.size()));
    cuda_check(cudaMemcpyAsync(to, from.data(), from.size_bytes(), cudaMemcpyHostToDevice,
                               context_->stream()),
               "copying to the GPU");
    return to;
  }
  int64_t generation() const {
    return steps_.generation() + context_->workspace().generation() + own_generation_;
  }

  ModelConfig config_;
  int64_t max_tokens_ = 0;  // of a sequence
  Collective* collective_;  // of the ranks that share the model; null: it is alone
  std::unique_ptr<CudaContext> context_;
  CudaElement element_ = CudaElement::kBF16;
  std::optional<CudaRope> rope_full_;
  std::optional<CudaRope> rope_sliding_;  // empty where it is the same
  // Where a layer's keys have an offset; the sliding ones empty where they are the same.
  std::optional<CudaRotationBlocks> blocks_full_, blocks_sliding_;
  int64_t num_block_tokens_ = 0;  // that those are for
  DeviceBuffer embedding_;
  CudaElement embedding_element_ = CudaElement::kBF16;
  std::vector<CudaDecoderLayer> layers_;
  bool has_key_means_ = false;
  DeviceBuffer final_norm_;
  CudaStackedLinear lm_head_;
  StepProfile* profile_ = nullptr;
  std::unique_ptr<TimedCollective> timed_;  // of collective_, while there is a profile

  // The step in progress, and what is kept from one to the next.
  StepBuffers steps_;
  DeviceBuffer attention_workspace_;
  DeviceBuffer hidden_;  // [num_rows, hidden_size] f32
  DeviceBuffer logits_;  // [num_logits, vocab_size] f32; rank 0's alone, others: their columns
  PinnedCopy logits_copy_;
  int64_t own_generation_ = 0;
  mutable int64_t num_coded_caches_ = 0;
  std::vector<CapturedStep> captured_;
};

CudaDecoder::CudaDecoder(const Checkpoint& checkpoint, const ModelOptions& options, Exec& exec,
                         Collective* collective)
    : config_(checkpoint.config()),
      max_tokens_(options.max_sequence_tokens > 0 ? options.max_sequence_tokens
                                                  : config_.max_position_embeddings),
      collective_(collective),
      context_(std::make_unique<CudaContext>(exec.cuda_device)) {
  if (collective_ != nullptr) context_->workspace().use_stream_order(context_->stream());
  rope_full_.emplace(frequencies(config_.rope));
  if (!(config_.rope == config_.rope_local)) rope_sliding_.emplace(frequencies(config_.rope_local));
  if (options.compute == ComputeType::kF32) element_ = CudaElement::kF32;

  const DType dense = options.dense_dtype;
  {
    const Tensor embedding = checkpoint.load(kEmbeddingName, dense);
    if (embedding.shape() != Shape{config_.vocab_size, config_.hidden_size}) {
      fail(ErrorCode::kCorruptData, checkpoint.path(), ": tensor '", kEmbeddingName, "' is ",
           to_string(embedding.shape()), ", the config asks for [", config_.vocab_size, ", ",
           config_.hidden_size, "]");
    }
    embedding_ = DeviceBuffer::from_host(embedding.data(), embedding.num_bytes());
    embedding_element_ = dense == DType::kF32 ? CudaElement::kF32 : CudaElement::kBF16;
  }
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    with_context(str("layer ", layer), [&] {
      layers_.push_back(make_cuda_layer(config_, load_layer_weights(checkpoint, layer, dense),
                                        options.compute, *context_));
    });
    checkpoint.release_pages();
    if (options.on_layer_loaded) options.on_layer_loaded(layer + 1, config_.num_layers);
  }
  if (std::any_of(layers_.begin(), layers_.end(),
                  [](const CudaDecoderLayer& layer) { return layer.key_offset.size() > 0; })) {
    make_rotation_blocks();
  }
  const Tensor norm = load_norm(checkpoint, "model.norm.weight");
  final_norm_ = DeviceBuffer::from_host(norm.data(), norm.num_bytes());
  LinearWeights head = checkpoint.load_linear("lm_head", dense);
  if (options.compute == ComputeType::kAuto && options.int8_head) {
    head = int8_output_head(std::move(head), exec);
  }
  const LinearWeights* part = &head;
  lm_head_ = CudaStackedLinear(stack_linears({&part, 1}), options.compute, *context_);
  check_output_head(config_, lm_head_.n(), lm_head_.k(), collective_);
  context_->synchronize();
}

void CudaDecoder::make_rotation_blocks() {
  num_block_tokens_ = blocks_for(max_tokens_) * kBlockSize;
  blocks_full_.emplace(frequencies(config_.rope), config_.head_dim, max_tokens_);
  if (rope_sliding_) {
    blocks_sliding_.emplace(frequencies(config_.rope_local), config_.head_dim, max_tokens_);
  }
}

void CudaDecoder::learn_key_means(std::span<const std::vector<int32_t>> texts, Exec& exec) {
  if (has_key_means_) return;
  KeyMeanTexts step(texts);
  const ForwardBatch batch = step.batch();
  check_batch(batch);
  context_->use();
  CudaKvCache cache(config_, live_format(KvFormat::kF32), step.cache_tokens(), step.longest(),
                    context_->stream());
  step.reserve(cache);
  forward(batch, cache, nullptr, nullptr, exec);
  const KeyMeans means = mean_keys(step.sequences(), cache);
  step.release(cache);
  has_key_means_ = true;
  if (!means.is_finite) return;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Tensor& mean = means.layers[i];
    layers_[i].key_offset = DeviceBuffer::from_host(mean.data(), mean.num_bytes());
  }
  make_rotation_blocks();
  ++own_generation_;  // graphs have what was there before
}

// Of all tokens of sequences whose keys a cache has whole: turned back, layer by layer.
KeyMeans CudaDecoder::mean_keys(std::span<const KvSequence> sequences, CudaKvCache& cache) {
  std::vector<int32_t> blocks, first_positions, table_positions;
  std::vector<int64_t> positions;  // of all rows of the blocks
  for (const KvSequence& sequence : sequences) {
    int64_t position = 0;
    for (const BlockId block : sequence.blocks) {
      blocks.push_back(block);
      first_positions.push_back(static_cast<int32_t>(position));
      for (const int64_t end = position + kBlockSize; position < end; ++position) {
        positions.push_back(position < sequence.num_tokens ? position : -1);
        if (static_cast<int64_t>(table_positions.size()) <= position) {
          table_positions.push_back(static_cast<int32_t>(position));
        }
      }
    }
  }
  const auto upload = [](const std::vector<int32_t>& ints) {
    return DeviceBuffer::from_host(ints.data(), static_cast<int64_t>(ints.size()) * 4);
  };
  const DeviceBuffer d_blocks = upload(blocks), d_first_positions = upload(first_positions),
                     d_table_positions = upload(table_positions);
  const auto num_rows = static_cast<int64_t>(positions.size());
  const auto num_angles = static_cast<int64_t>(table_positions.size());
  const int64_t half = config_.rotary_dim / 2;
  const CudaStream stream = context_->stream();
  DeviceBuffer angles(2 * num_angles * half * 4);
  float* cos = angles.as<float>();
  float* sin = cos + num_angles * half;
  DeviceBuffer keys(num_rows * config_.kv_size() * 4);
  std::vector<float> host(positions.size() * static_cast<std::size_t>(config_.kv_size()));
  KeyMeans means;
  for (const CudaDecoderLayer& layer : layers_) {
    const CudaRope& rope = layer.is_sliding && rope_sliding_ ? *rope_sliding_ : *rope_full_;
    rope_tables_cuda(rope.inverse_frequencies(), rope.attention_factor(), half,
                     d_table_positions.as<int32_t>(), num_angles, cos, sin, stream);
    load_live_rows_cuda({.layer = cache.layer(layer.index),
                         .blocks = d_blocks.as<int32_t>(),
                         .first_positions = d_first_positions.as<int32_t>(),
                         .cos = cos,
                         .sin = sin,
                         .rotary_dim = config_.rotary_dim},
                        config_.num_kv_heads, config_.head_dim, num_rows, keys.as<float>(), stream);
    keys.to_host(host.data(), keys.size(), stream);
    means.add_layer(positions, host.data(), config_.kv_size(), config_.kv_size());
  }
  return means;
}

int64_t CudaDecoder::weight_bytes() const {
  int64_t bytes = lm_head_.weight_bytes();
  for (const CudaDecoderLayer& layer : layers_) bytes += layer.weight_bytes(config_);
  return bytes;
}

std::string CudaDecoder::kernels() const {
  const CudaDecoderLayer& layer = layers_.front();
  return str(context_->name(), "\nqkv: ", layer.qkv.kernels(), "\no: ", layer.o.kernels(),
             "\ngate_up: ", layer.mlps.front().gate_up.kernels(),
             "\ndown: ", layer.mlps.front().down.kernels(), "\nlm_head: ", lm_head_.kernels(),
             "\n");
}

// What a cache of this model keeps where `format` is asked for.
KvFormat CudaDecoder::live_format(KvFormat format) const {
  if (element_ == CudaElement::kF32 && format != KvFormat::kF32) {
    fail(ErrorCode::kUnsupported, "a cache of ", kv_format_name(format),
         " with fp32 arithmetic on a GPU; use f32");
  }
  if (element_ != CudaElement::kF32 && format == KvFormat::kF32) return KvFormat::kBF16;
  return format;
}

std::unique_ptr<KvCache> CudaDecoder::make_cache(KvFormat format, int64_t num_tokens,
                                                 int64_t max_sequence_tokens) const {
  context_->use();
  return std::make_unique<CudaKvCache>(config_, live_format(format), num_tokens,
                                       max_sequence_tokens, context_->stream());
}

std::unique_ptr<KvCache> CudaDecoder::make_coded_cache(const KvCodec&,
                                                       const CodedKvCacheOptions& options) const {
  if (options.file == nullptr) {
    fail(ErrorCode::kUnsupported, "a coded cache on a GPU is made of a codec's file");
  }
  CodedKvCacheOptions own = options;
  own.live_format = live_format(options.live_format);
  return std::make_unique<CudaCodedKvCache>(config_, *options.file, kv_ropes_on_device(), own,
                                            ++num_coded_caches_, *context_);
}

std::vector<KvRopeCuda> CudaDecoder::kv_ropes_on_device() const {
  std::vector<KvRopeCuda> ropes;
  for (const CudaDecoderLayer& layer : layers_) {
    const CudaRope& rope = layer.is_sliding && rope_sliding_ ? *rope_sliding_ : *rope_full_;
    ropes.push_back(
        {.inverse_frequencies = rope.inverse_frequencies(),
         .attention_factor = rope.attention_factor(),
         .rotary_dim = config_.rotary_dim,
         .key_offset = layer.key_offset.size() > 0 ? layer.key_offset.as<float>() : nullptr});
  }
  return ropes;
}

std::unique_ptr<PieceParker> CudaDecoder::make_parker(KvCache& cache, const KvCodecFile& file,
                                                      const KvCodec&, int64_t) const {
  auto* live = dynamic_cast<CudaKvCache*>(&cache);
  if (live == nullptr) {
    fail(ErrorCode::kUnsupported,
         "parking a GPU's coded cache: only its live caches can be parked; leave --kv out, or "
         "--park-kv");
  }
  return std::make_unique<CudaKvParker>(*live, file, kv_ropes_on_device(), *context_);
}

template <typename Finish>
void CudaDecoder::run_step(const ForwardBatch& batch, KvCache& cache, bool wants_logits, Exec& exec,
                           const Finish& finish) {
  check_batch(batch);
  context_->use();
  CudaKvLayers& gpu_cache = *cache.cuda_layers();
  StepShape shape = shape_of(batch);
  if (shape.num_rows == 0) return;
  if (blocks_full_ && kv_cuda_drops_key_offset(gpu_cache.layer(0).element) &&
      shape.max_context > num_block_tokens_) {
    fail(ErrorCode::kInvalidArgument, "a step at position ", shape.max_context - 1,
         " of a model loaded for ", num_block_tokens_,
         " tokens: what its keys are kept without is turned to no more");
  }
  const bool is_decode = shape.max_rows_per_sequence <= kAttentionDecodeRows && wants_logits &&
                         shape.num_logits == shape.num_rows && shape.num_rows <= kMaxGraphRows &&
                         config_.num_experts == 0;
  if (is_decode) {
    shape.num_rows = shape.num_logits = graph_rows(shape.num_rows);
    shape.num_sequences = graph_rows(shape.num_sequences);
    shape.max_rows_per_sequence = graph_window(shape.max_rows_per_sequence);
    const auto context = static_cast<uint64_t>(std::max(shape.max_context, kMinGraphContext));
    shape.max_context = static_cast<int64_t>(std::bit_ceil(context));
  }

  cache.begin_step(batch.sequences, exec);
  try {
    steps_.send(batch, shape, gpu_cache, context_->stream());
    reserve(shape, gpu_cache);
    bool can = is_decode && gpu_cache.num_rebuilt_blocks() <= kMostCapturedBlocks &&
               can_replay(shape, gpu_cache);
    // NCCL wants all ranks to capture a sum, or none; and who still allocates must be done before
    // others wait for it on their GPUs.
    if (collective_ != nullptr) can = collective_->agree(can);
    if (can) {
      replay(shape, gpu_cache);
    } else {
      run(shape, gpu_cache, wants_logits);
    }
    finish();
    context_->synchronize();
  } catch (...) {
    cache.abandon_step();
    throw;
  }
  cache.commit();
  if (profile_ == nullptr) return;
  ++profile_->steps;
  if (timed_ != nullptr) {
    profile_->nanoseconds[static_cast<std::size_t>(Stage::kAllReduce)] += timed_->nanoseconds();
  }
}

void CudaDecoder::forward(const ForwardBatch& batch, KvCache& cache, float* logits, float* hidden,
                          Exec& exec) {
  const auto num_logits = static_cast<int64_t>(batch.logit_rows.size());
  run_step(batch, cache, logits != nullptr, exec, [&] {
    if (logits != nullptr && is_first_rank()) {
      const int64_t bytes = num_logits * config_.vocab_size * static_cast<int64_t>(sizeof(float));
      logits_copy_.to_host(logits, logits_.data(), bytes, context_->stream(), exec.threads);
    }
    if (hidden != nullptr) copy_hidden(num_logits, hidden);
  });
}

void CudaDecoder::copy_hidden(int64_t num_logits, float* hidden) {
  const DeviceWorkspace::Scope scope(context_->workspace());
  auto* rows = context_->workspace().allocate_as<float>(num_logits * config_.hidden_size);
  add_norm_quantize_cuda({.hidden = hidden_.as<float>(),
                          .m = num_logits,
                          .k = config_.hidden_size,
                          .gain = final_norm_.as<float>(),
                          .eps = static_cast<float>(config_.rms_norm_eps),
                          .rows = steps_.logit_rows(),
                          .target = {.element = CudaElement::kF32, .data = rows}},
                         context_->stream());
  copy_to_host(hidden, rows, num_logits * config_.hidden_size);
}

void CudaDecoder::forward_and_sample(const ForwardBatch& batch, KvCache& cache,
                                     const SampleBatch& sampling, const SampledBatch& sampled,
                                     float* hidden, Exec& exec) {
  const auto num_rows = static_cast<int64_t>(batch.logit_rows.size());
  run_step(batch, cache, true, exec, [&] {
    if (num_rows == 0) return;
    DeviceWorkspace& workspace = context_->workspace();
    const DeviceWorkspace::Scope scope(workspace);
    const int64_t num_top = num_rows * sampling.max_logprobs;
    const bool has_logprobs = !sampled.logprobs.empty();
    const bool has_drafts = !sampled.drafts.empty();
    const SamplingCudaArgs args = {
        .logits = logits_.as<float>(),
        .num_rows = num_rows,
        .vocab_size = config_.vocab_size,
        .rows = copy_to_device(sampling.rows),
        .counts = copy_to_device(sampling.counts),
        .biases = copy_to_device(sampling.biases),
        .probs = copy_to_device(sampling.probs),
        .masks = copy_to_device(sampling.masks),
        .tokens = workspace.allocate_as<int32_t>(num_rows),
        .logprobs = has_logprobs ? workspace.allocate_as<float>(num_rows) : nullptr,
        .drafts = has_drafts ? workspace.allocate_as<SampledDraft>(num_rows) : nullptr,
        .max_logprobs = sampling.max_logprobs,
        .top_tokens = num_top > 0 ? workspace.allocate_as<int32_t>(num_top) : nullptr,
        .top_logprobs = num_top > 0 ? workspace.allocate_as<float>(num_top) : nullptr};
    sample_cuda(args, context_->stream());
    copy_to_host(sampled.tokens.data(), args.tokens, num_rows);
    if (has_logprobs) copy_to_host(sampled.logprobs.data(), args.logprobs, num_rows);
    if (has_drafts) copy_to_host(sampled.drafts.data(), args.drafts, num_rows);
    if (num_top > 0) {
      copy_to_host(sampled.top_tokens.data(), args.top_tokens, num_top);
      copy_to_host(sampled.top_logprobs.data(), args.top_logprobs, num_top);
    }
    if (hidden != nullptr) copy_hidden(num_rows, hidden);
  });
}

// Memory whose size the shape decides, and which graphs remember.
void CudaDecoder::reserve(const StepShape& shape, CudaKvLayers& cache) {
  const auto grow = [&](DeviceBuffer& buffer, int64_t bytes) {
    if (bytes <= buffer.size()) return;
    context_->synchronize();
    buffer.reserve(bytes + bytes / 8);
    ++own_generation_;
  };
  const int64_t float_bytes = sizeof(float);
  grow(hidden_, shape.num_rows * config_.hidden_size * float_bytes);
  const int64_t columns = is_first_rank() ? config_.vocab_size : lm_head_.n();
  grow(logits_, shape.num_logits * columns * float_bytes);
  if (reserve_attention_workspace(attention_workspace_, layers_.front(), config_, steps_.batch(),
                                  cache.layer(0).element, *context_)) {
    ++own_generation_;
  }
}

void CudaDecoder::run(const StepShape& shape, CudaKvLayers& cache, bool wants_logits) {
  const DeviceWorkspace::Scope scope(context_->workspace());
  if (timed_ != nullptr) timed_->begin_step();
  auto* hidden = hidden_.as<float>();
  embedding_lookup_cuda({.table = embedding_.data(),
                         .element = embedding_element_,
                         .vocab_size = config_.vocab_size,
                         .hidden_size = config_.hidden_size,
                         .token_ids = steps_.token_ids(),
                         .num_tokens = shape.num_rows,
                         .scale = static_cast<float>(config_.embedding_scale),
                         .hidden = hidden},
                        context_->stream());
  run_layers(cache, hidden);
  if (wants_logits) run_head(hidden, shape.num_logits);
}

void CudaDecoder::run_layers(CudaKvLayers& cache, float* hidden) {
  DeviceWorkspace& workspace = context_->workspace();
  const DeviceWorkspace::Scope scope(workspace);
  CudaBatch batch = steps_.batch();
  const int64_t table_ints = cache.table_ints(batch.num_sequences * batch.table_stride);
  const KvCudaTables tables = cache.start_layers(batch, workspace.allocate_as<int32_t>(table_ints));
  const CudaRopeRows full = rope_full_->rows(batch, *context_);
  const CudaRopeRows sliding = rope_sliding_ ? rope_sliding_->rows(batch, *context_) : full;
  void* branch = workspace.allocate(batch.num_rows * config_.hidden_size *
                                    (element_ == CudaElement::kF32 ? 4 : 2));
  PendingBranch pending;
  const CudaRotationBlocks* full_blocks = blocks_full_ ? &*blocks_full_ : nullptr;
  const CudaRotationBlocks* sliding_blocks = blocks_sliding_ ? &*blocks_sliding_ : full_blocks;
  for (const CudaDecoderLayer& layer : layers_) {
    cache.prepare_layer(layer.index);
    batch.block_tables = tables.of(layer.index);
    const CudaLayerStep step = {.config = config_,
                                .rope = layer.is_sliding ? sliding : full,
                                .batch = batch,
                                .cache = cache.layer(layer.index),
                                .codes = cache.codes(layer.index),
                                .attention_workspace = attention_workspace_.data(),
                                .rotation_blocks = layer.is_sliding ? sliding_blocks : full_blocks,
                                .collective = timed_ != nullptr ? timed_.get() : collective_};
    pending = forward_cuda_layer(layer, step, hidden, pending, branch, *context_);
  }
  add_pending(pending, config_, hidden, batch.num_rows, *context_);
}

void CudaDecoder::run_head(const float* hidden, int64_t num_logits) {
  if (num_logits == 0) return;
  DeviceWorkspace& workspace = context_->workspace();
  const DeviceWorkspace::Scope scope(workspace);
  const CudaLinear& head = *lm_head_.weights().front();
  const CudaInputClass input = head.input_class(num_logits);
  const QuantizedTarget target = {.format = input.format,
                                  .hadamard = input.hadamard,
                                  .element = input.element,
                                  .data = workspace.allocate(num_logits * config_.hidden_size * 4),
                                  .row_scales = workspace.allocate_as<float>(num_logits),
                                  .global_scale = input.global_scale};
  add_norm_quantize_cuda({.hidden = const_cast<float*>(hidden),  // without a branch only read
                          .m = num_logits,
                          .k = config_.hidden_size,
                          .gain = final_norm_.as<float>(),
                          .eps = static_cast<float>(config_.rms_norm_eps),
                          .rows = steps_.logit_rows(),
                          .target = target},
                         context_->stream());
  head.run({.element = target.element,
            .data = target.data,
            .row_scales = target.row_scales,
            .m = num_logits,
            .k = config_.hidden_size},
           {.element = CudaElement::kF32,
            .data = logits_.data(),
            .stride = is_first_rank() ? config_.vocab_size : head.n()});
  if (!is_first_rank()) {
    collective_->send(logits_.as<float>(), num_logits * head.n(), context_->stream());
    return;
  }
  if (collective_ != nullptr) receive_logits(num_logits);
  softcap_cuda(logits_.as<float>(), num_logits * config_.vocab_size,
               static_cast<float>(config_.final_logit_softcap), context_->stream());
}

// The other ranks' parts of the vocabulary, into the columns behind rank 0's own.
void CudaDecoder::receive_logits(int64_t num_logits) {
  DeviceWorkspace& workspace = context_->workspace();
  const DeviceWorkspace::Scope scope(workspace);
  std::vector<Collective::Part> parts;
  std::vector<VocabularyRange> columns;
  for (int rank = 1; rank < collective_->size(); ++rank) {
    columns.push_back(vocabulary_range(config_.vocab_size, {rank, collective_->size()}));
    const int64_t count = num_logits * columns.back().size();
    // One row's columns stand where they belong.
    float* place = num_logits == 1 ? logits_.as<float>() + columns.back().begin
                                   : workspace.allocate_as<float>(count);
    parts.push_back({place, count});
  }
  collective_->receive(parts, context_->stream());
  if (num_logits == 1) return;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto row_bytes = static_cast<std::size_t>(columns[i].size()) * sizeof(float);
    cuda_check(cudaMemcpy2DAsync(logits_.as<float>() + columns[i].begin,
                                 static_cast<std::size_t>(config_.vocab_size) * sizeof(float),
                                 parts[i].values, row_bytes, row_bytes,
                                 static_cast<std::size_t>(num_logits), cudaMemcpyDeviceToDevice,
                                 context_->stream()),
               "putting logits together");
  }
}

CudaDecoder::CapturedStep& CudaDecoder::captured(const StepShape& shape, CudaKvLayers& cache) {
  const KvCudaLayer last = cache.layer(config_.num_layers - 1);
  const CachePlace place = {last.element, cache.layer(0).keys, last.values, cache.cache_id()};
  for (CapturedStep& step : captured_) {
    if (step.shape == shape && step.cache == place &&
        step.num_rebuilt == cache.num_rebuilt_blocks()) {
      return step;
    }
  }
  // Those of a coded cache before this one, whose memory is gone.
  std::erase_if(captured_, [&](const CapturedStep& step) {
    return place.id != 0 && step.cache.id != 0 && step.cache.id != place.id;
  });
  if (captured_.size() == kMaxGraphs) captured_.erase(captured_.begin());
  captured_.push_back({.shape = shape,
                       .cache = place,
                       .num_rebuilt = cache.num_rebuilt_blocks(),
                       .generation = -1,
                       .graph = nullptr});
  return captured_.back();
}

// Whether the step has a graph, or can be captured. A shape's first step is not: it shows how much
// memory it takes.
bool CudaDecoder::can_replay(const StepShape& shape, CudaKvLayers& cache) {
  CapturedStep& step = captured(shape, cache);
  if (step.generation == generation()) return true;
  step.generation = generation();
  step.graph = nullptr;
  return false;
}

// Runs the step from its graph, which the second step captures.
void CudaDecoder::replay(const StepShape& shape, CudaKvLayers& cache) {
  CapturedStep& step = captured(shape, cache);
  if (step.graph == nullptr) step.graph = capture(shape, cache);
  // What making a graph allocates is there on all GPUs before one waits for another.
  if (collective_ != nullptr) collective_->agree(true);
  cuda_check(cudaGraphLaunch(step.graph.get(), context_->stream()), "replaying a step");
}

Graph CudaDecoder::capture(const StepShape& shape, CudaKvLayers& cache) {
  const CudaStream stream = context_->stream();
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing a step");
  cudaGraph_t graph = nullptr;
  try {
    run(shape, cache, true);
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  cuda_check(cudaStreamEndCapture(stream, &graph), "capturing a step");
  cudaGraphExec_t instance = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&instance, graph, 0);
  cudaGraphDestroy(graph);
  cuda_check(status, "making a graph of a step");
  Graph made(instance);
  if (collective_ != nullptr) {
    cuda_check(cudaGraphUpload(instance, stream), "sending a graph to the GPU");
    context_->synchronize();
  }
  return made;
}

}  // namespace

std::unique_ptr<Model> load_cuda_model(const Checkpoint& checkpoint, const ModelOptions& options,
                                       Exec& exec, Collective* collective) {
  return std::make_unique<CudaDecoder>(checkpoint, options, exec, collective);
}

}  // namespace lathe
