// Fits the predictors of the key-value cache (formats/kv_codec_file.h), layer by layer, in the
// closed loop: a layer's predictor sees the rows that the cache will have rebuilt of the layers
// below, made by the cache's own arithmetic (cache/kv_layer_coder.h), and targets that are the
// model's own, since calibration runs on exact keys and values.
//
//   layer 0               mean, coded with first_layer_bits                      (dense and its
//   kin) keys   of layer l     <- [K^ ; V^] of layer l-1 (the paper: K^ alone) values of layer l <-
//   [K^ of layer l ; V^ of layer l-1] star                  <- the same of the first layer of the
//   group, which is coded as layer 0 is latent                keys <- z, values <- [K^ of layer l ;
//   z], z: principal components of the
//                         keys (and values) of group_layers layers
//
// Where sliding and full attention alternate, "the layer below" is the nearest one of the same
// kind: a sliding layer's older rows may be gone while a full layer's are needed.
//
// The first num_sinks tokens of a sequence stay exact in the cache and are left out. The exact
// window does not enter: it decides which tokens are codes, not what a code is.
// Source: spec/aqua-kv.md 1.8, 2.2, 2.3; spec/aqua-kv-design.md 2, 5.
#pragma once
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cache/kv_layer_coder.h"
#include "comm/communicator.h"
#include "compress/moments.h"
#include "formats/kv_codec_file.h"
#include "formats/model_config.h"
#include "tensor/buffer.h"
#include "tensor/exec.h"

namespace lathe {

enum class KvFitMethod { kAqua, kHiggs, kInt };
enum class KvFitVariant { kDense, kLowRank, kBlockDiagonal, kStar, kLatent };

// Throw kInvalidArgument naming the choices.
KvFitMethod kv_fit_method_from_name(std::string_view name);    // aqua, higgs, int
KvFitVariant kv_fit_variant_from_name(std::string_view name);  // dense, low-rank, ...
std::string_view kv_fit_method_name(KvFitMethod method);
std::string_view kv_fit_variant_name(KvFitVariant variant);

struct KvFitOptions {
  KvFitMethod method = KvFitMethod::kAqua;
  KvFitVariant variant = KvFitVariant::kDense;
  int bits = 2;
  int first_layer_bits =
      0;                 // of layers that nothing predicts; 0: 4 for dense and its kin, else bits
  int64_t grid_dim = 2;  // 1, 2, or 4 (2 bits only)
  RowScale scale = RowScale::kLog8;
  int64_t rank = 0;            // low-rank, latent; 0: half of d, and for values from the latent
                               // alone at most what attention on a GPU takes
  int64_t group_layers = 4;    // star, latent
  int latent_bits = 4;         // 4, 8
  bool latent_values = false;  // the latent is made of keys and values
  bool predict_keys = true;
  bool predict_values = true;
  bool keys_from_values = true;  // dense and its kin: V^ of the layer below as an input of keys
  bool values_from_keys = true;  // latent: K^ of the layer is an input of values, beside the latent
  bool mean = true;              // what nothing predicts is coded less its mean
  bool exact_inputs = false;     // fit on exact rows: predictors that do not know the quantizer
  bool hadamard = true;          // off: static per-channel scales of the residual instead
  double ridge = 1e-3;           // relative to the inputs' mean variance
  int64_t num_sinks = 4;
  int64_t window = 128;
  int64_t chunk_tokens = 128;
  DType predictor_dtype = DType::kBF16;

  bool has_latents() const {
    return method == KvFitMethod::kAqua && variant == KvFitVariant::kLatent;
  }
  RowFormat format(int plane_bits, const RowShape& shape) const;  // of one plane
  int resolved_first_layer_bits() const;
  int64_t resolved_rank(const RowShape& shape) const;
};

// Refuses what cannot be, for a model of this shape: kInvalidArgument, kUnsupported.
void check_kv_fit_options(const KvFitOptions& options, const ModelConfig& config);

// One layer's fit beyond what the file keeps: relative squared error of the reconstructed rows on
// held-out tokens.
struct KvLayerReport {
  double key_reconstruction = 0;
  double value_reconstruction = 0;
};

// How far the held-out explained variance may lie below the training one (spec 2.2): more, and the
// calibration text is too short for the predictors.
inline constexpr double kKvFitGap = 0.02;
// Largest such difference over the planes of a fitted file that have a predictor; a mean alone, or
// nothing, needs no more text.
double kv_fit_gap(const KvCodecFile& file);

class KvFitter {
 public:
  // Rows of one layer are those of the calibration tokens, [num_rows, kv_size]; train and held_out
  // are indices of rows, at least one each. ranks (borrowed; null: this process alone): each has
  // rows of its own, at least one of each sort in all; rank 0 solves for everyone, so the result is
  // the same on all of them.
  KvFitter(const ModelConfig& config, const KvFitOptions& options, std::vector<int32_t> train,
           std::vector<int32_t> held_out, int64_t num_rows, Communicator* ranks = nullptr);

  // Exact keys (before RoPE) and values of the next layer, [num_rows, kv_size] fp32. Throws
  // kInvalidArgument when they are not finite.
  void add_layer(Buffer keys, Buffer values, Exec& exec);
  // After the last layer. model_fingerprint, calibration_hash and created_by are the caller's.
  KvCodecFile finish();
  const std::vector<KvLayerReport>& reports() const { return reports_; }

  // Bytes of rows held at the most.
  static int64_t memory_bytes(const ModelConfig& config, const KvFitOptions& options,
                              int64_t num_rows);

 private:
  struct LayerRows {
    int64_t layer = 0;
    Buffer keys, values;              // exact
    Buffer coded_keys, coded_values;  // as the cache rebuilds them; empty before
  };
  struct Source {
    KvPredictorInput input;
    RowColumns fitted;   // what the fit sees
    const float* coded;  // what the coder sees
  };
  struct Group {
    std::vector<int64_t> layers;
    bool sliding = false;
  };

  void plan_groups();
  int64_t base_of(int64_t layer) const;
  bool needed_later(int64_t layer, int64_t done) const;
  void fit_ready_layers(Exec& exec);
  void fit_latent(int64_t group, Exec& exec);
  void fit_layer(LayerRows& rows, Exec& exec);
  KvPredictor solve(const Moments& moments, int64_t num_inputs, bool predicts, Exec& exec) const;
  KvPredictor predictor_of(std::span<const Source> sources, const float* target, bool predicts,
                           Exec& exec) const;
  void fit_plane(LayerRows& rows, KvSide side, std::span<const Source> sources, bool predicts,
                 Exec& exec);
  LayerRows& rows_of(int64_t layer);
  Source rows_source(int64_t layer, KvPredictorInput::Kind kind);

  const ModelConfig config_;
  const KvFitOptions options_;
  const std::vector<int32_t> train_, held_out_;
  const int64_t num_rows_;
  const int64_t width_;  // kv_size
  SoloCommunicator solo_;
  Communicator& ranks_;
  KvCodecFile file_;
  std::vector<KvLayerReport> reports_;
  std::vector<Group> groups_;      // star, latent
  std::vector<int64_t> group_of_;  // [num_layers]; -1: none
  std::deque<LayerRows> held_;     // layers whose rows are still needed, in ascending order
  std::vector<Buffer> latents_;    // [groups], coded, [num_rows, rank]; empty before and after use
  std::vector<Buffer> exact_latents_;  // with exact_inputs
  int64_t num_added_ = 0;
  int64_t num_fitted_ = 0;
};

}  // namespace lathe
