// One decoder layer over all calibration sequences: what enters its linear layers is accumulated,
// what leaves the layer is kept for the next one.
//
// Ranks run one sequence each at a time. Every rank then gets the inputs of all of them, in the
// order of the sequences, and adds its part of every sum: the sums, and so the weights, have the
// bits of one process.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cache/kv_cache.h"
#ifdef LATHE_HAS_CUDA
#include "compress/cuda_input_statistics.h"
#endif
#include "compress/calibration_profile.h"
#include "compress/hidden_store.h"
#include "compress/input_statistics.h"
#include "model/decoder_layer.h"
#include "model/rope_table.h"

namespace lathe {

struct CollectOptions {
  std::vector<LinearKind> kinds;  // whose inputs to collect
  bool gram = true;
  // Every so many-th sequence is held out; 0: none.
  int64_t held_out_every = 0;
  std::vector<int64_t> amax_blocks;  // rotations whose largest magnitude is wanted
};

// Statistics of the inputs of one layer, by kind and expert (-1: not an expert's).
struct LayerStatistics {
  struct Input {
    InputStatistics calibration;
    std::optional<InputStatistics> held_out;
    // Largest magnitude of the rotated input, for static activation scales: one per block size of
    // CollectOptions::amax_blocks.
    std::vector<float> rotated_amax;
#ifdef LATHE_HAS_CUDA
    // Where the inputs were on a GPU (cuda_layer_statistics.h): these instead of the first two.
    std::optional<CudaInputStatistics> cuda_calibration = std::nullopt;
    std::optional<CudaInputStatistics> cuda_held_out = std::nullopt;
#endif
    int64_t tokens() const;  // of the calibration, wherever it was
  };
  std::map<std::pair<LinearKind, int64_t>, Input> inputs;

  Input* find(LinearKind kind, int64_t expert);

  // Puts the parts of every input's sums together on the rank that root_of() names. The others keep
  // the tokens and the largest magnitudes.
  void join(Communicator& ranks, const std::function<int(LinearKind, int64_t expert)>& root_of,
            Exec& exec);
};

#ifdef LATHE_HAS_CUDA
class CudaLayerPass;
struct CudaDecoderLayer;
#endif

class RecordingTap;

// A decoder layer in the layout of the machine that runs the pass.
struct CalibrationLayer {
  int64_t index = 0;
  bool is_sliding = false;
  DecoderLayer host;
#ifdef LATHE_HAS_CUDA
  std::shared_ptr<const CudaDecoderLayer> device;  // instead, on a GPU
#endif
};

// Positions that the tokens of a sequence see in causal attention, added up; window 0: all of them.
int64_t visible_positions(int64_t length, int64_t sliding_window);
// fp32 numbers that a layer reads or writes for a token outside its linear layers and attention:
// norms, residual sums, RoPE, activation functions.
double numbers_between(const ModelConfig& config);

class LayerPass {
 public:
  // Runs steps of about max_rows rows, on the CPU or on GPU exec.cuda_device. The cache and scratch
  // for them live here.
  LayerPass(const ModelConfig& config, HiddenStore& store, int64_t max_rows, const Exec& exec);
  ~LayerPass();

  // Where the time of the passes on the CPU goes, from now on; null: nowhere. Borrowed.
  void set_profile(CalibrationProfile* profile) { profile_ = profile; }

  // weights: dense or quantized; computed with in `compute`.
  CalibrationLayer pack(const LayerWeights& weights, Exec& exec,
                        ComputeType compute = ComputeType::kNearF32);

  // Called with the number of tokens done after every step; throwing from it ends the pass.
  using OnTokens = std::function<void(int64_t tokens)>;

  // Reads the inputs of `layer`, which is unchanged; returns what its linear layers saw.
  LayerStatistics collect(const CalibrationLayer& layer, const CollectOptions& options,
                          const OnTokens& on_tokens, Exec& exec);
  // Reads the inputs of the layer and writes its outputs, whole on disk at return.
  void propagate(const CalibrationLayer& layer, const OnTokens& on_tokens, Exec& exec);
  // The same, and hands out the keys and values of all tokens in order, step by step.
  // keys (before RoPE), values: [rows, kv_size] with the given row stride, valid during the call.
  using OnKeysValues = std::function<void(int64_t first_token, const float* keys,
                                          const float* values, int64_t stride, int64_t rows)>;
  void propagate_and_capture(const CalibrationLayer& layer, const OnKeysValues& on_keys_values,
                             const OnTokens& on_tokens, Exec& exec);

 private:
  // Which statistics the inputs of a sequence go to: the pass of held-out sequences is apart.
  struct Collection {
    const CollectOptions& options;
    LayerStatistics& statistics;
  };
  // What a step hands out beside its statistics: its linear inputs to a tap, or its keys and
  // values.
  struct StepCapture {
    LayerTap* inputs = nullptr;
    const OnKeysValues* keys_values = nullptr;
    int64_t first_token = 0;
  };
  // collection: null while propagating. capture: null unless keys and values are wanted.
  void run(const CalibrationLayer& layer, const Collection* collection, const OnKeysValues* capture,
           const OnTokens& on_tokens, Exec& exec);
  void run_on_ranks(const CalibrationLayer& layer, const Collection* collection,
                    const OnTokens& on_tokens, Exec& exec);
  // Inputs of the round's sequences, from the rank that ran each, to all. others: memory for those
  // of the other ranks, the same in all rounds.
  void add_round(int64_t first, const Collection& collection, RecordingTap& own,
                 RecordingTap& others, Exec& exec);
  // The work and the time of one forward pass of `rows`.
  void add_forward(const CalibrationLayer& layer, std::span<const KvRows> rows,
                   const StepProfile& steps);
  void add_exchanged(int64_t bytes) {
    if (profile_ != nullptr) {
      profile_->add_work(CalibrationStage::kExchange, static_cast<double>(bytes));
    }
  }
  // hidden_ from and to the store.
  void read_hidden(int64_t layer, int64_t first, int64_t count);
  void write_hidden(int64_t layer, int64_t first, int64_t count);
  double hidden_bytes() const { return static_cast<double>(hidden_.size() * sizeof(float)); }
  void begin_outputs(int64_t layer);
  void finish_outputs(int64_t layer);
  void run_step(const CalibrationLayer& layer, int64_t first, int64_t count,
                const Collection* collection, bool held_out, const StepCapture* capture,
                Exec& exec);
  void forward(const CalibrationLayer& layer, std::span<const KvRows> rows,
               std::span<const int64_t> positions, const Collection* collection, bool held_out,
               const StepCapture* capture, float* hidden, Exec& exec);

  ModelConfig config_;
  ModelConfig cache_config_;  // of a cache of one layer
  HiddenStore& store_;
  int64_t max_rows_;
  RopeFrequencies rope_full_;
  RopeFrequencies rope_sliding_;
  std::unique_ptr<KvCache> host_cache_;
#ifdef LATHE_HAS_CUDA
  std::unique_ptr<CudaLayerPass> device_;  // instead of host_cache_
#endif
  KvCache* cache_ = nullptr;
  CalibrationProfile* profile_ = nullptr;
  std::vector<KvSequence> sequences_;
  std::vector<float> hidden_;
  std::vector<int64_t> positions_;
  std::vector<KvRows> rows_;
};

}  // namespace lathe
