#include "compress/layer_pass.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "quant/encode.h"
#include "quant/hadamard.h"

#ifdef LATHE_HAS_CUDA
#include "compress/cuda_capture.h"
#include "compress/cuda_layer_pass.h"
#include "compress/cuda_layer_statistics.h"
#endif

namespace lathe {
namespace {

// One linear input's rows into the statistics of where they belong.
class InputAdder {
 public:
  InputAdder(const CollectOptions& options, LayerStatistics& statistics, bool held_out,
             CalibrationProfile* profile, Exec& exec)
      : options_(options),
        statistics_(statistics),
        held_out_(held_out),
        profile_(profile),
        exec_(exec) {}

  bool wants(LinearKind kind) const {
    return std::find(options_.kinds.begin(), options_.kinds.end(), kind) != options_.kinds.end();
  }

  // rotates: also the largest magnitudes of the rotated rows.
  void add(LinearKind kind, int64_t expert, const float* x, int64_t rows, int64_t k,
           const GramShare& share, bool rotates) {
    const double work =
        options_.gram ? static_cast<double>(rows) * static_cast<double>(k) * static_cast<double>(k)
                      : 0;
    const CalibrationTimer timer(profile_, CalibrationStage::kHessian,
                                 work / static_cast<double>(share.parts));
    LayerStatistics::Input& input = input_of(kind, expert, k);
    (held_out_ ? *input.held_out : input.calibration).add(x, rows, exec_, share);
    for (std::size_t i = 0; rotates && i < options_.amax_blocks.size(); ++i) {
      const int64_t block = options_.amax_blocks[i];
      if (block != 0 && k % block != 0) continue;
      rotated_.resize(static_cast<std::size_t>(rows * k));
      std::memcpy(rotated_.data(), x, rotated_.size() * sizeof(float));
      exec_.threads.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
        hadamard_rows(rotated_.data() + begin * k, end - begin, k, block);
      });
      input.rotated_amax[i] = std::max(input.rotated_amax[i], max_abs(rotated_));
    }
  }

 private:
  // Made once: its matrix of zeros takes time and memory.
  LayerStatistics::Input& input_of(LinearKind kind, int64_t expert, int64_t k) {
    if (LayerStatistics::Input* known = statistics_.find(kind, expert)) return *known;
    LayerStatistics::Input input{
        .calibration = InputStatistics(k, options_.gram), .held_out = {}, .rotated_amax = {}};
    if (options_.held_out_every > 0) input.held_out.emplace(k, options_.gram);
    input.rotated_amax.resize(options_.amax_blocks.size());
    return statistics_.inputs.emplace(std::pair(kind, expert), std::move(input)).first->second;
  }

  const CollectOptions& options_;
  LayerStatistics& statistics_;
  const bool held_out_;
  CalibrationProfile* profile_;
  Exec& exec_;
  std::vector<float> rotated_;
};

class StatisticsTap : public LayerTap {
 public:
  StatisticsTap(const CollectOptions& options, LayerStatistics& statistics, bool held_out,
                CalibrationProfile* profile, Exec& exec)
      : adder_(options, statistics, held_out, profile, exec) {}

  void on_linear_input(LinearKind kind, int64_t expert, const float* x, int64_t rows,
                       int64_t k) override {
    if (adder_.wants(kind)) adder_.add(kind, expert, x, rows, k, {}, true);
  }

 private:
  InputAdder adder_;
};

class CaptureTap : public LayerTap {
 public:
  CaptureTap(const LayerPass::OnKeysValues& on_keys_values, int64_t first_token)
      : on_keys_values_(on_keys_values), first_token_(first_token) {}

  void on_linear_input(LinearKind, int64_t, const float*, int64_t, int64_t) override {}
  void on_keys_values(const float* keys, const float* values, int64_t stride,
                      int64_t rows) override {
    on_keys_values_(first_token_, keys, values, stride, rows);
  }

 private:
  const LayerPass::OnKeysValues& on_keys_values_;
  const int64_t first_token_;
};

#ifdef LATHE_HAS_CUDA
class CudaStatisticsTap : public CudaLayerTap {
 public:
  CudaStatisticsTap(const CollectOptions& options, LayerStatistics& statistics, bool held_out)
      : options_(options), statistics_(statistics), held_out_(held_out) {}

  void on_linear_input(LinearKind kind, int64_t expert, const float* x, int64_t rows, int64_t k,
                       CudaStream stream) override {
    add_cuda_input(statistics_, options_, held_out_, kind, expert, x, rows, k, stream);
  }

 private:
  const CollectOptions& options_;
  LayerStatistics& statistics_;
  const bool held_out_;
};
#endif

// Whether the statistics of a sequence judge instead of calibrate.
bool holds_out(const CollectOptions& options, int64_t sequence) {
  return options.held_out_every > 0 &&
         sequence % options.held_out_every == options.held_out_every - 1;
}

}  // namespace

// Keeps the inputs of one sequence, to be handed to all ranks.
class RecordingTap : public LayerTap {
 public:
  struct Shape {
    LinearKind kind;
    int64_t expert;
    int64_t rows;
    int64_t k;
  };
  explicit RecordingTap(const std::vector<LinearKind>& kinds) : kinds_(kinds) {}

  void on_linear_input(LinearKind kind, int64_t expert, const float* x, int64_t rows,
                       int64_t k) override {
    if (std::find(kinds_.begin(), kinds_.end(), kind) == kinds_.end()) return;
    shapes.push_back({kind, expert, rows, k});
    values.insert(values.end(), x, x + rows * k);
  }

  // Forgets what it has, and keeps the memory.
  void clear() {
    shapes.clear();
    values.clear();
  }

  std::vector<Shape> shapes;
  std::vector<float> values;  // of all, one behind the other

 private:
  const std::vector<LinearKind>& kinds_;
};

int64_t LayerStatistics::Input::tokens() const {
#ifdef LATHE_HAS_CUDA
  if (cuda_calibration) return cuda_calibration->tokens();
#endif
  return calibration.tokens();
}

LayerStatistics::Input* LayerStatistics::find(LinearKind kind, int64_t expert) {
  const auto place = inputs.find({kind, expert});
  return place == inputs.end() ? nullptr : &place->second;
}

void LayerStatistics::join(Communicator& ranks,
                           const std::function<int(LinearKind, int64_t expert)>& root_of,
                           Exec& exec) {
  for (auto& [key, input] : inputs) {
    const int root = root_of(key.first, key.second);
    input.calibration.join(ranks, root, exec);
    if (input.held_out) input.held_out->join(ranks, root, exec);
    all_reduce_max(ranks, input.rotated_amax);
  }
}

LayerPass::LayerPass(const ModelConfig& config, HiddenStore& store, int64_t max_rows,
                     const Exec& exec)
    : config_(config), cache_config_(config), store_(store) {
  int64_t longest = 1;
  for (int64_t i = 0; i < store.num_sequences(); ++i) longest = std::max(longest, store.length(i));
  max_rows_ = std::max(max_rows, longest);
  cache_config_.num_layers = 1;
  // Each sequence may leave its last block half empty.
  const int64_t cache_tokens =
      2 * max_rows_ + max_rows_ / std::max<int64_t>(longest, 1) * kBlockSize + kBlockSize;
  rope_full_ = rope_frequencies(config.rope, config.rotary_dim, config.max_position_embeddings,
                                config.max_position_embeddings);
  rope_sliding_ = rope_frequencies(config.rope_local, config.rotary_dim,
                                   config.max_position_embeddings, config.max_position_embeddings);
#ifdef LATHE_HAS_CUDA
  if (exec.on_cuda()) {
    device_ = std::make_unique<CudaLayerPass>(cache_config_, cache_tokens, longest, rope_full_,
                                              rope_sliding_, exec.cuda_device);
    cache_ = &device_->cache();
    return;
  }
#else
  static_cast<void>(exec);
#endif
  host_cache_ = make_kv_cache(cache_config_, KvFormat::kF32, cache_tokens, longest);
  cache_ = host_cache_.get();
}

LayerPass::~LayerPass() {
  for (KvSequence& sequence : sequences_) cache_->release(sequence);
}

CalibrationLayer LayerPass::pack(const LayerWeights& weights, Exec& exec, ComputeType compute) {
  CalibrationLayer layer;
  layer.index = weights.layer;
  layer.is_sliding = config_.layer_is_sliding[static_cast<std::size_t>(weights.layer)];
#ifdef LATHE_HAS_CUDA
  if (device_ != nullptr) {
    layer.device = std::make_shared<const CudaDecoderLayer>(
        device_->pack(weights, compute == ComputeType::kNearF32 ? ComputeType::kF32 : compute));
    if (!weights.k_norm.empty()) layer.host.k_norm = weights.k_norm.clone();
    return layer;
  }
#endif
  layer.host = pack_layer(config_, weights, compute, exec);
  return layer;
}

void LayerPass::forward(const CalibrationLayer& layer, std::span<const KvRows> rows,
                        std::span<const int64_t> positions, const Collection* collection,
                        bool held_out, const StepCapture* capture, float* hidden, Exec& exec) {
#ifdef LATHE_HAS_CUDA
  if (device_ != nullptr) {
    LATHE_CHECK(capture == nullptr || capture->inputs == nullptr);  // ranks are on CPUs
    std::optional<CudaStatisticsTap> statistics;
    std::optional<CudaCaptureTap> keys_values;
    CudaLayerTap* tap = nullptr;
    if (collection != nullptr) {
      tap = &statistics.emplace(collection->options, collection->statistics, held_out);
    } else if (capture != nullptr) {
      tap = &keys_values.emplace(config_, layer.host.k_norm, *capture->keys_values,
                                 capture->first_token, exec);
    }
    device_->forward(*layer.device, rows, positions, tap, hidden, exec);
    return;
  }
#endif
  std::optional<StatisticsTap> statistics;
  std::optional<CaptureTap> keys_values;
  LayerTap* tap = nullptr;
  if (collection != nullptr) {
    tap =
        &statistics.emplace(collection->options, collection->statistics, held_out, profile_, exec);
  } else if (capture != nullptr && capture->keys_values != nullptr) {
    tap = &keys_values.emplace(*capture->keys_values, capture->first_token);
  } else if (capture != nullptr) {
    tap = capture->inputs;
  }
  const Workspace::Scope scope(exec.workspace);
  const CalibrationTimer timer(profile_, CalibrationStage::kBetween);
  StepProfile steps;
  const RopeRows rope = rope_rows(layer.is_sliding ? rope_sliding_ : rope_full_, positions, exec);
  cache_->begin_step(rows, exec);
  try {
    forward_layer(layer.host,
                  {.config = config_,
                   .rope = rope,
                   .sequences = rows,
                   .cache = *cache_,
                   .cache_layer = 0,
                   .tap = tap,
                   .profile = profile_ != nullptr ? &steps : nullptr},
                  hidden, static_cast<int64_t>(positions.size()), exec);
  } catch (...) {
    cache_->abandon_step();
    throw;
  }
  cache_->commit();
  if (profile_ != nullptr) add_forward(layer, rows, steps);
}

void LayerPass::add_forward(const CalibrationLayer& layer, std::span<const KvRows> rows,
                            const StepProfile& steps) {
  const auto of = [](const StackedLinear& linear) {
    return static_cast<double>(linear.n()) * static_cast<double>(linear.k());
  };
  const DecoderLayer& host = layer.host;
  double weights = of(host.qkv) + of(host.o) + of(host.router);  // that a token meets
  const auto reached =
      static_cast<double>(host.is_moe() ? config_.num_experts_per_token : int64_t{1});
  weights += reached * (of(host.mlps[0].gate_up) + of(host.mlps[0].down));
  double num_rows = 0;
  double seen = 0;  // positions, of all rows
  for (const KvRows& part : rows) {
    num_rows += static_cast<double>(part.num_rows);
    seen += static_cast<double>(
        visible_positions(part.num_rows, layer.is_sliding ? config_.sliding_window : 0));
  }
  profile_->add_work(CalibrationStage::kLinear, 2 * num_rows * weights);
  profile_->add_work(CalibrationStage::kAttention,
                     4 * seen * static_cast<double>(config_.q_size()));
  profile_->add_work(CalibrationStage::kBetween, num_rows * numbers_between(config_));
  // Both are wall time: what was measured inside the step belongs to stages of its own.
  profile_->seconds();
  const auto seconds = [&](Stage stage) {
    return static_cast<double>(steps.nanoseconds[static_cast<std::size_t>(stage)]) * 1e-9;
  };
  profile_->move_seconds(
      CalibrationStage::kBetween, CalibrationStage::kLinear,
      seconds(Stage::kQkv) + seconds(Stage::kO) + seconds(Stage::kGateUp) + seconds(Stage::kDown));
  profile_->move_seconds(CalibrationStage::kBetween, CalibrationStage::kAttention,
                         seconds(Stage::kAttention));
}

void LayerPass::run_step(const CalibrationLayer& layer, int64_t first, int64_t count,
                         const Collection* collection, bool held_out, const StepCapture* capture,
                         Exec& exec) {
  while (static_cast<int64_t>(sequences_.size()) < count) {
    sequences_.push_back(cache_->new_sequence());
  }
  positions_.clear();
  rows_.clear();
  for (int64_t i = 0; i < count; ++i) {
    KvSequence& sequence = sequences_[static_cast<std::size_t>(i)];
    cache_->release(sequence);
    const int64_t length = store_.length(first + i);
    if (!cache_->reserve(sequence, length)) {
      fail(ErrorCode::kInternal, "the calibration cache has no room for ", length, " tokens");
    }
    rows_.push_back({.sequence = &sequence,
                     .row_begin = static_cast<int64_t>(positions_.size()),
                     .num_rows = length});
    for (int64_t p = 0; p < length; ++p) positions_.push_back(p);
  }
  hidden_.resize(positions_.size() * static_cast<std::size_t>(config_.hidden_size));
  read_hidden(layer.index, first, count);
  forward(layer, rows_, positions_, collection, held_out, capture, hidden_.data(), exec);
  for (int64_t i = 0; i < count; ++i) cache_->release(sequences_[static_cast<std::size_t>(i)]);
}

void LayerPass::read_hidden(int64_t layer, int64_t first, int64_t count) {
  const CalibrationTimer timer(profile_, CalibrationStage::kHidden, hidden_bytes());
  store_.read(layer, first, count, hidden_.data());
}

void LayerPass::write_hidden(int64_t layer, int64_t first, int64_t count) {
  const CalibrationTimer timer(profile_, CalibrationStage::kHidden, hidden_bytes());
  store_.write(layer, first, count, hidden_.data());
}

void LayerPass::begin_outputs(int64_t layer) {
  const CalibrationTimer timer(profile_, CalibrationStage::kHidden);
  store_.begin(layer);
}

void LayerPass::finish_outputs(int64_t layer) {
  const CalibrationTimer timer(profile_, CalibrationStage::kHidden);
  store_.finish(layer);
}

void LayerPass::run(const CalibrationLayer& layer, const Collection* collection,
                    const OnKeysValues* capture, const OnTokens& on_tokens, Exec& exec) {
  const bool write_outputs = collection == nullptr;
  const auto is_held_out = [&](int64_t sequence) {
    return collection != nullptr && holds_out(collection->options, sequence);
  };
  if (write_outputs) begin_outputs(layer.index + 1);
  for (int64_t first = 0; first < store_.num_sequences();) {
    // As many sequences as fit, at least one; a held-out sequence never shares a step with others.
    const bool held_out = is_held_out(first);
    int64_t count = 0;
    int64_t num_rows = 0;
    while (first + count < store_.num_sequences() &&
           (count == 0 || (num_rows + store_.length(first + count) <= max_rows_ &&
                           is_held_out(first + count) == held_out))) {
      num_rows += store_.length(first + count);
      ++count;
    }
    const StepCapture handed_out = {.keys_values = capture,
                                    .first_token = store_.tokens_before(first)};
    run_step(layer, first, count, collection, held_out, capture != nullptr ? &handed_out : nullptr,
             exec);
    if (write_outputs) write_hidden(layer.index + 1, first, count);
    first += count;
    if (on_tokens) on_tokens(store_.tokens_before(first));
  }
  if (write_outputs) finish_outputs(layer.index + 1);
}

void LayerPass::run_on_ranks(const CalibrationLayer& layer, const Collection* collection,
                             const OnTokens& on_tokens, Exec& exec) {
  const bool write_outputs = collection == nullptr;
  const int64_t size = store_.ranks().size();
  const std::vector<LinearKind> nothing;
  RecordingTap tap(collection != nullptr ? collection->options.kinds : nothing);
  RecordingTap others(nothing);
  if (write_outputs) begin_outputs(layer.index + 1);
  for (int64_t first = 0; first < store_.num_sequences(); first += size) {
    const int64_t sequence = first + store_.ranks().rank();
    tap.clear();
    if (sequence < store_.num_sequences()) {
      const StepCapture capture = {.inputs = &tap};
      run_step(layer, sequence, 1, nullptr, false, collection != nullptr ? &capture : nullptr,
               exec);
      if (write_outputs) write_hidden(layer.index + 1, sequence, 1);
    }
    if (collection != nullptr) add_round(first, *collection, tap, others, exec);
    if (on_tokens) {
      on_tokens(store_.tokens_before(std::min(first + size, store_.num_sequences())));
    }
  }
  if (write_outputs) finish_outputs(layer.index + 1);
}

void LayerPass::add_round(int64_t first, const Collection& collection, RecordingTap& own,
                          RecordingTap& others, Exec& exec) {
  Communicator& ranks = store_.ranks();
  for (int rank = 0; rank < ranks.size() && first + rank < store_.num_sequences(); ++rank) {
    const bool is_own = rank == ranks.rank();
    std::vector<RecordingTap::Shape>& shapes = is_own ? own.shapes : others.shapes;
    std::vector<float>& values = is_own ? own.values : others.values;
    {
      const CalibrationTimer timer(profile_, CalibrationStage::kExchange);
      broadcast_vector(ranks, rank, shapes);
      broadcast_vector(ranks, rank, values);
      if (!is_own) {
        add_exchanged(4 * std::ssize(values));
      }
    }
    InputAdder adder(collection.options, collection.statistics,
                     holds_out(collection.options, first + rank), profile_, exec);
    const float* x = values.data();
    for (const RecordingTap::Shape& shape : shapes) {
      // Where a matrix cannot be divided, part 0 is all of it: each input's is another rank's.
      const int64_t turn = ranks.rank() + static_cast<int64_t>(shape.kind) + shape.expert + 1;
      adder.add(shape.kind, shape.expert, x, shape.rows, shape.k,
                {.part = turn % ranks.size(), .parts = ranks.size()}, is_own);
      x += shape.rows * shape.k;
    }
  }
}

int64_t visible_positions(int64_t length, int64_t sliding_window) {
  const int64_t window = sliding_window > 0 ? std::min(sliding_window, length) : length;
  return window * (window + 1) / 2 + (length - window) * window;
}

double numbers_between(const ModelConfig& config) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto heads = static_cast<double>(config.q_size() + config.kv_size());
  const double mlp =
      config.num_experts > 0
          ? static_cast<double>(config.num_experts_per_token * config.moe_intermediate_size)
          : static_cast<double>(config.intermediate_size);
  return 2 * 2 * hidden + 2 * 3 * hidden + 2 * heads + 3 * mlp;
}

LayerStatistics LayerPass::collect(const CalibrationLayer& layer, const CollectOptions& options,
                                   const OnTokens& on_tokens, Exec& exec) {
  LayerStatistics statistics;
  const Collection collection = {options, statistics};
  if (store_.ranks().size() > 1) {
    run_on_ranks(layer, &collection, on_tokens, exec);
    return statistics;
  }
  run(layer, &collection, nullptr, on_tokens, exec);
#ifdef LATHE_HAS_CUDA
  if (device_ != nullptr) finish_cuda_inputs(statistics);
#endif
  return statistics;
}

void LayerPass::propagate(const CalibrationLayer& layer, const OnTokens& on_tokens, Exec& exec) {
  if (store_.ranks().size() > 1) {
    run_on_ranks(layer, nullptr, on_tokens, exec);
  } else {
    run(layer, nullptr, nullptr, on_tokens, exec);
  }
}

void LayerPass::propagate_and_capture(const CalibrationLayer& layer,
                                      const OnKeysValues& on_keys_values, const OnTokens& on_tokens,
                                      Exec& exec) {
  run(layer, nullptr, &on_keys_values, on_tokens, exec);
}

}  // namespace lathe
