// The model: embedding, decoder layers, last norm, output head.
#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "cache/kv_parker.h"
#include "formats/sharded_checkpoint.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/embedding/embedding.h"
#include "kernels/peaks/peaks.h"
#include "kernels/rms_norm/rms_norm.h"
#include "model/decoder_layer.h"
#include "model/key_means.h"
#include "model/output_head.h"
#include "model/tensor_parallel.h"

#ifdef LATHE_HAS_CUDA
#include "model/cuda_decoder.h"
#endif

namespace lathe {
namespace {

constexpr const char* kEmbeddingName = "model.embed_tokens.weight";

// Mean key of each layer that a step runs through.
class KeyMeanTap final : public LayerTap {
 public:
  // positions: of the step's rows.
  KeyMeanTap(std::span<const int64_t> positions, int64_t kv_size)
      : positions_(positions), kv_size_(kv_size) {}
  void on_linear_input(LinearKind, int64_t, const float*, int64_t, int64_t) override {}
  void on_keys_values(const float* keys, const float*, int64_t stride, int64_t) override {
    means.add_layer(positions_, keys, stride, kv_size_);
  }

  KeyMeans means;

 private:
  std::span<const int64_t> positions_;
  int64_t kv_size_;
};

class Decoder final : public Model {
 public:
  Decoder(const Checkpoint& checkpoint, const ModelOptions& options, Exec& exec,
          Collective* collective);

  const ModelConfig& config() const override { return config_; }
  int64_t weight_bytes() const override;
  std::string kernels() const override;
  void set_profile(StepProfile* profile) override { profile_ = profile; }
  void learn_key_means(std::span<const std::vector<int32_t>> texts, Exec& exec) override;
  void forward(const ForwardBatch& batch, KvCache& cache, float* logits, float* hidden,
               Exec& exec) override;
  std::unique_ptr<KvCache> make_coded_cache(const KvCodec& codec,
                                            const CodedKvCacheOptions& options) const override;
  KvRopes kv_ropes(int64_t max_sequence_tokens) const override;

 private:
  // Rotation of full-attention and of sliding layers.
  struct Rotations {
    RopeRows full;
    RopeRows sliding;
  };

  float* embed(const ForwardBatch& batch, Exec& exec);
  Rotations rotations(const ForwardBatch& batch, Exec& exec);
  void run_layers(const ForwardBatch& batch, KvCache& cache, float* x, Exec& exec,
                  LayerTap* tap = nullptr);
  void make_rotation_middles();
  void final_norm(const ForwardBatch& batch, const float* x, float* y, Exec& exec);
  void output_head(const float* x, int64_t num_rows, float* logits, Exec& exec);
  void send_logits(const float* x, int64_t num_rows, Exec& exec);
  void receive_logits(int64_t num_rows, float* logits, Exec& exec);

  ModelConfig config_;
  Collective* collective_;  // of the ranks that share the model; null: it is alone
  RopeFrequencies rope_full_;
  RopeFrequencies rope_sliding_;
  bool has_two_ropes_ = false;
  int64_t max_tokens_ = 0;                          // of a sequence
  RotationMiddles middles_full_, middles_sliding_;  // where a layer's keys have an offset
  Tensor embedding_;                                // [vocab_size, hidden_size]
  TensorView embedding_view_;                       // made once: a view's shape allocates
  std::vector<DecoderLayer> layers_;
  bool has_key_means_ = false;
  Tensor final_norm_;  // [hidden_size]
  StackedLinear lm_head_;
  StepProfile* profile_ = nullptr;
};

Decoder::Decoder(const Checkpoint& checkpoint, const ModelOptions& options, Exec& exec,
                 Collective* collective)
    : config_(checkpoint.config()), collective_(collective) {
  max_tokens_ = options.max_sequence_tokens > 0 ? options.max_sequence_tokens
                                                : config_.max_position_embeddings;
  const auto frequencies = [&](const RopeConfig& rope) {
    return rope_frequencies(rope, config_.rotary_dim, config_.max_position_embeddings, max_tokens_);
  };
  rope_full_ = frequencies(config_.rope);
  rope_sliding_ = frequencies(config_.rope_local);
  has_two_ropes_ = !(config_.rope == config_.rope_local);

  embedding_ = checkpoint.load(kEmbeddingName, options.dense_dtype);
  if (embedding_.shape() != Shape{config_.vocab_size, config_.hidden_size}) {
    fail(ErrorCode::kCorruptData, checkpoint.path(), ": tensor '", kEmbeddingName, "' is ",
         to_string(embedding_.shape()), ", the config asks for [", config_.vocab_size, ", ",
         config_.hidden_size, "]");
  }
  embedding_view_ = embedding_.view();
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    with_context(str("layer ", layer), [&] {
      layers_.push_back(pack_layer(config_,
                                   load_layer_weights(checkpoint, layer, options.dense_dtype),
                                   options.compute, exec));
    });
    checkpoint.release_pages();
    if (options.on_layer_loaded) options.on_layer_loaded(layer + 1, config_.num_layers);
  }
  if (std::any_of(layers_.begin(), layers_.end(),
                  [](const DecoderLayer& layer) { return !layer.key_offset.empty(); })) {
    make_rotation_middles();
  }
  final_norm_ = load_norm(checkpoint, "model.norm.weight");
  LinearWeights head = checkpoint.load_linear("lm_head", options.dense_dtype);
  checkpoint.release_pages();  // of the embeddings and of the head: not beside its packed copy
  if (options.compute == ComputeType::kAuto && options.int8_head) {
    head = int8_output_head(std::move(head), exec);
  }
  const LinearWeights* part = &head;
  lm_head_ = StackedLinear(stack_linears({&part, 1}), options.compute, exec);
  check_output_head(config_, lm_head_.n(), lm_head_.k(), collective_);
}

void Decoder::make_rotation_middles() {
  middles_full_ = RotationMiddles(rope_full_, max_tokens_);
  if (has_two_ropes_) middles_sliding_ = RotationMiddles(rope_sliding_, max_tokens_);
}

void Decoder::learn_key_means(std::span<const std::vector<int32_t>> texts, Exec& exec) {
  if (has_key_means_) return;
  KeyMeanTexts step(texts);
  const ForwardBatch batch = step.batch();
  check_batch(batch);
  const auto cache = make_kv_cache(config_, KvFormat::kF32, step.cache_tokens(), step.longest());
  step.reserve(*cache);
  KeyMeanTap tap(step.positions(), config_.kv_size());
  {
    const Workspace::Scope scope(exec.workspace);
    run_layers(batch, *cache, embed(batch, exec), exec, &tap);
  }
  step.release(*cache);
  has_key_means_ = true;
  if (!tap.means.is_finite) return;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].key_offset = std::move(tap.means.layers[i]);
  }
  make_rotation_middles();
}

int64_t Decoder::weight_bytes() const {
  int64_t bytes = lm_head_.weight_bytes();
  for (const DecoderLayer& layer : layers_) bytes += layer.weight_bytes(config_);
  return bytes;
}

std::string Decoder::kernels() const {
  const DecoderLayer& layer = layers_.front();
  return str("qkv: ", layer.qkv.kernels(), "\no: ", layer.o.kernels(),
             "\ngate_up: ", layer.mlps.front().gate_up.kernels(),
             "\ndown: ", layer.mlps.front().down.kernels(), "\nlm_head: ", lm_head_.kernels(),
             "\n");
}

void Decoder::forward(const ForwardBatch& batch, KvCache& cache, float* logits, float* hidden,
                      Exec& exec) {
  check_batch(batch);
  const Workspace::Scope scope(exec.workspace);
  const auto num_logits = static_cast<int64_t>(batch.logit_rows.size());

  float* x = embed(batch, exec);
  run_layers(batch, cache, x, exec);
  if (hidden == nullptr)
    hidden = exec.workspace.allocate_as<float>(num_logits * config_.hidden_size);
  final_norm(batch, x, hidden, exec);
  if (logits != nullptr && collective_ != nullptr && collective_->rank() != 0) {
    send_logits(hidden, num_logits, exec);
  } else if (logits != nullptr) {
    output_head(hidden, num_logits, logits, exec);
  }
  if (profile_ != nullptr) ++profile_->steps;
}

KvRopes Decoder::kv_ropes(int64_t max_sequence_tokens) const {
  // Blocks are rotated whole, the last one too.
  const int64_t num_positions =
      blocks_for(std::clamp<int64_t>(max_sequence_tokens, 1, int64_t{1} << 31)) * kBlockSize;
  const auto rope_of = [&](const RopeFrequencies& frequencies, const Buffer& memory) {
    const float* cos = memory.as<float>();
    const auto table = num_positions * static_cast<int64_t>(frequencies.inverse.size());
    return KvRope{cos, cos + table, num_positions, config_.rotary_dim};
  };
  KvRopes ropes;
  ropes.memory.push_back(rope_table_memory(rope_full_, num_positions));
  const KvRope full = rope_of(rope_full_, ropes.memory.back());
  KvRope sliding = full;
  if (has_two_ropes_) {
    ropes.memory.push_back(rope_table_memory(rope_sliding_, num_positions));
    sliding = rope_of(rope_sliding_, ropes.memory.back());
  }
  for (const DecoderLayer& layer : layers_) {
    ropes.layers.push_back(layer.is_sliding ? sliding : full);
    if (!layer.key_offset.empty()) ropes.layers.back().key_offset = layer.key_offset.as<float>();
  }
  return ropes;
}

std::unique_ptr<KvCache> Decoder::make_coded_cache(const KvCodec& codec,
                                                   const CodedKvCacheOptions& options) const {
  KvRopes ropes = kv_ropes(options.max_sequence_tokens);
  return std::make_unique<CodedKvCache>(config_, codec, std::move(ropes.layers), options,
                                        std::move(ropes.memory));
}

float* Decoder::embed(const ForwardBatch& batch, Exec& exec) {
  const StageTimer timer(profile_, Stage::kEmbed);
  const auto num_rows = static_cast<int64_t>(batch.token_ids.size());
  float* x = exec.workspace.allocate_as<float>(num_rows * config_.hidden_size);
  embedding_lookup(embedding_view_, batch.token_ids, static_cast<float>(config_.embedding_scale), x,
                   exec);
  return x;
}

Decoder::Rotations Decoder::rotations(const ForwardBatch& batch, Exec& exec) {
  const StageTimer timer(profile_, Stage::kRope);
  const RopeRows full = rope_rows(rope_full_, batch.positions, exec);
  return {full, has_two_ropes_ ? rope_rows(rope_sliding_, batch.positions, exec) : full};
}

void Decoder::run_layers(const ForwardBatch& batch, KvCache& cache, float* x, Exec& exec,
                         LayerTap* tap) {
  const Workspace::Scope scope(exec.workspace);
  const Rotations rope = rotations(batch, exec);
  cache.begin_step(batch.sequences, exec);
  try {
    for (const DecoderLayer& layer : layers_) {
      const LayerStep step{.config = config_,
                           .rope = layer.is_sliding ? rope.sliding : rope.full,
                           .sequences = batch.sequences,
                           .cache = cache,
                           .cache_layer = layer.index,
                           .tap = tap,
                           .profile = profile_,
                           .rotation_middles = layer.is_sliding && has_two_ropes_
                                                   ? &middles_sliding_
                                                   : &middles_full_,
                           .collective = collective_};
      forward_layer(layer, step, x, static_cast<int64_t>(batch.token_ids.size()), exec);
    }
  } catch (...) {
    cache.abandon_step();
    throw;
  }
  cache.commit();
}

// Of the rows whose logits are wanted.
void Decoder::final_norm(const ForwardBatch& batch, const float* x, float* y, Exec& exec) {
  const StageTimer timer(profile_, Stage::kNorm);
  const int64_t hidden_size = config_.hidden_size;
  for (std::size_t i = 0; i < batch.logit_rows.size(); ++i) {
    const float* row = x + batch.logit_rows[i] * hidden_size;
    std::copy(row, row + hidden_size, y + static_cast<int64_t>(i) * hidden_size);
  }
  rms_norm({.x = y,
            .weight = final_norm_.as<float>(),
            .y = y,
            .num_tokens = static_cast<int64_t>(batch.logit_rows.size()),
            .norm_size = hidden_size,
            .eps = static_cast<float>(config_.rms_norm_eps)},
           exec);
}

void Decoder::output_head(const float* x, int64_t num_rows, float* logits, Exec& exec) {
  const StageTimer timer(profile_, Stage::kLogits);
  lm_head_.run(x, num_rows, logits, config_.vocab_size, exec);
  if (collective_ != nullptr) receive_logits(num_rows, logits, exec);
  if (config_.final_logit_softcap == 0) return;
  const auto cap = static_cast<float>(config_.final_logit_softcap);
  exec.threads.parallel_for(num_rows * config_.vocab_size, 4096,
                            [&](int64_t begin, int64_t end, int) {
                              for (int64_t i = begin; i < end; ++i) {
                                logits[i] = cap * std::tanh(logits[i] / cap);
                              }
                            });
}

// The other ranks' parts of the vocabulary, into the columns behind rank 0's own.
void Decoder::receive_logits(int64_t num_rows, float* logits, Exec& exec) {
  const Workspace::Scope scope(exec.workspace);
  const auto num_parts = static_cast<std::size_t>(collective_->size() - 1);
  auto* parts = exec.workspace.allocate_as<Collective::Part>(collective_->size() - 1);
  const auto columns_of = [&](std::size_t part) {
    return vocabulary_range(config_.vocab_size, {static_cast<int>(part) + 1, collective_->size()});
  };
  for (std::size_t i = 0; i < num_parts; ++i) {
    const int64_t count = num_rows * columns_of(i).size();
    parts[i] = {exec.workspace.allocate_as<float>(count), count};
  }
  collective_->receive({parts, num_parts}, nullptr);
  for (std::size_t i = 0; i < num_parts; ++i) {
    const VocabularyRange columns = columns_of(i);
    for (int64_t row = 0; row < num_rows; ++row) {
      std::copy_n(parts[i].values + row * columns.size(), columns.size(),
                  logits + row * config_.vocab_size + columns.begin);
    }
  }
}

void Decoder::send_logits(const float* x, int64_t num_rows, Exec& exec) {
  const StageTimer timer(profile_, Stage::kLogits);
  const Workspace::Scope scope(exec.workspace);
  float* part = exec.workspace.allocate_as<float>(num_rows * lm_head_.n());
  lm_head_.run(x, num_rows, part, lm_head_.n(), exec);
  collective_->send(part, num_rows * lm_head_.n(), nullptr);
}

}  // namespace

std::unique_ptr<Model> load_cpu_model(const Checkpoint& checkpoint, const ModelOptions& options,
                                      Exec& exec, Collective* collective) {
  return std::make_unique<Decoder>(checkpoint, options, exec, collective);
}

std::unique_ptr<KvCache> Model::make_coded_cache(const KvCodec&, const CodedKvCacheOptions&) const {
  fail(ErrorCode::kUnsupported, "this model has no coded cache");
}

KvRopes Model::kv_ropes(int64_t) const {
  fail(ErrorCode::kUnsupported, "the rotations of a model on a GPU stay there; use --device cpu");
}

std::unique_ptr<PieceParker> Model::make_parker(KvCache& cache, const KvCodecFile&,
                                                const KvCodec& codec,
                                                int64_t max_sequence_tokens) const {
  if (auto* coded = dynamic_cast<CodedKvCache*>(&cache)) return coded->make_parker();
  KvRopes ropes = kv_ropes(max_sequence_tokens);
  return std::make_unique<KvParker>(cache, codec, std::move(ropes.layers), std::move(ropes.memory));
}

double Model::measure_bandwidth(Exec& exec) const { return measure_read_bandwidth(exec); }

void Model::forward_and_sample(const ForwardBatch&, KvCache&, const SampleBatch&,
                               const SampledBatch&, float*, Exec&) {
  fail(ErrorCode::kUnsupported, "this model leaves the choice of tokens to its caller");
}

void check_batch(const ForwardBatch& batch) {
  const auto num_rows = static_cast<int64_t>(batch.token_ids.size());
  if (static_cast<int64_t>(batch.positions.size()) != num_rows) {
    fail(ErrorCode::kInvalidArgument, "a batch of ", num_rows, " tokens has ",
         batch.positions.size(), " positions");
  }
  int64_t covered = 0;
  for (const KvRows& rows : batch.sequences) {
    if (rows.row_begin != covered || rows.num_rows < 0 || rows.num_rows > num_rows - covered) break;
    for (int64_t i = 0; i < rows.num_rows; ++i) {
      const int64_t position = batch.positions[static_cast<std::size_t>(covered + i)];
      if (position == rows.sequence->num_tokens + i) continue;
      fail(ErrorCode::kInvalidArgument, "row ", covered + i, " has position ", position,
           "; its sequence goes on at ", rows.sequence->num_tokens + i);
    }
    covered += rows.num_rows;
  }
  if (covered != num_rows) {
    fail(ErrorCode::kInvalidArgument, "sequences cover ", covered, " of a batch's ", num_rows,
         " rows");
  }
  for (const int32_t row : batch.logit_rows) {
    if (row >= 0 && row < num_rows) continue;
    fail(ErrorCode::kInvalidArgument, "logits wanted of row ", row, " of ", num_rows);
  }
}

std::unique_ptr<Model> Model::load(const Checkpoint& checkpoint, const ModelOptions& options,
                                   Exec& exec) {
  return with_context("loading " + checkpoint.path(), [&]() -> std::unique_ptr<Model> {
    if (options.tensor_parallel > 1) return load_tensor_parallel_model(checkpoint, options, exec);
    if (!exec.on_cuda()) return load_cpu_model(checkpoint, options, exec);
#ifdef LATHE_HAS_CUDA
    return load_cuda_model(checkpoint, options, exec);
#else
    fail(ErrorCode::kUnsupported, "this lathe was built without its CUDA backend (LATHE_CUDA=ON)");
#endif
  });
}

}  // namespace lathe
