// kv_codec.safetensors: how a model's keys and values are stored small. AQUA-KV predicts each
// layer's rows from rows that are already reconstructed and quantizes the rest; "higgs" and "int"
// are the same file without products (a mean at most). docs/formats.md has the tensors and the
// metadata, spec/aqua-kv.md the method.
//
// Of one token, d = num_kv_heads * head_dim, heads side by side, keys before RoPE and after any q/k
// norm:
//   prediction = bias + W [input 0; input 1; ...]        stored = row_codes(exact - prediction)
//   reconstructed = prediction + decoded                 inputs: reconstructed rows, or a latent
// A latent is one small vector of a group of layers (spec design section 5):
//   z = projection ([keys of its layers; values of its layers] - mean), each component as a code.
// The numbers here are those that encoder and decoder use: what is written must be representable in
// the file's dtype (round_predictor), so a file read back is the same codec bit for bit.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/model_config.h"
#include "quant/row_codes.h"
#include "tensor/dtype.h"

namespace lathe {

inline constexpr const char* kKvCodecFileName = "kv_codec.safetensors";

// One part of a predictor's input vector.
struct KvPredictorInput {
  enum class Kind { kKeys, kValues, kLatent };  // "key.3", "value.3", "latent.0" in the file
  Kind kind = Kind::kKeys;
  int64_t index = 0;  // the layer, below the predicted one (a value's own layer for keys too); or
                      // the group

  bool operator==(const KvPredictorInput&) const = default;
};

struct KvPredictor {
  enum class Weight { kNone, kDense, kLowRank, kBlockDiagonal };
  Weight weight = Weight::kNone;
  std::vector<KvPredictorInput> inputs;  // in the order of the weight's columns; empty for kNone
  int64_t rank = 0;                      // kLowRank
  // kDense [d, in]; kLowRank [rank, in]; kBlockDiagonal [num_kv_heads, head_dim, inputs * head_dim]
  // (head h of every input, in order); in = sum of the inputs' widths.
  std::vector<float> w1;
  std::vector<float> w2;    // kLowRank [d, rank]
  std::vector<float> bias;  // [d], or empty: zeros. Alone it is the mean.
};

// How the rows of one layer's keys (or values) are stored.
struct KvPlane {
  KvPredictor predictor;
  RowFormat format;
  std::vector<float> sigma;  // [d] static per-channel scales of the residual, > 0; empty: none
};

struct KvLatent {
  std::vector<int64_t> layers;  // ascending
  bool with_values = false;     // the input holds the layers' values behind their keys
  int64_t rank = 0;
  int bits = 4;  // 4: the d1n16 grid of z / sigma; 8: whole steps of sigma / 24 in -127..127
  std::vector<float> projection;  // [rank, in], in = layers * d (* 2)
  std::vector<float> mean;        // [in]
  std::vector<float> sigma;       // [rank], > 0
};

// What a fit measured for one layer: relative squared error of the prediction (1: as bad as
// predicting zero), and explained variance, on training and held-out tokens.
struct KvFitQuality {
  double train_relative_mse = 0;
  double heldout_relative_mse = 0;
  double train_explained_variance = 0;
  double heldout_explained_variance = 0;
};

struct KvCodecFile {
  std::string method;   // "aqua", "higgs", "int"
  std::string variant;  // "dense", "low-rank", "block-diagonal", "star", "latent", "mean", "none"
  int bits = 2;         // of most layers; the layers themselves say
  int first_layer_bits = 4;
  int64_t num_sinks = 4;
  int64_t window = 128;
  int64_t chunk_tokens = 128;
  std::string model_fingerprint;         // kv_model_fingerprint
  std::string calibration_hash;          // SHA-256 of the calibration tokens, or empty
  std::string created_by;                // the command, for people
  DType predictor_dtype = DType::kBF16;  // or kF32

  RowShape shape;
  std::vector<KvPlane> keys;    // [num_layers]
  std::vector<KvPlane> values;  // [num_layers]
  std::vector<KvLatent> latents;
  std::vector<KvFitQuality> key_quality;    // [num_layers] or empty
  std::vector<KvFitQuality> value_quality;  // [num_layers] or empty

  int64_t num_layers() const { return static_cast<int64_t>(keys.size()); }
};

// Numbers of an input vector's part, and of all parts.
int64_t kv_input_width(const KvCodecFile& file, const KvPredictorInput& input);
int64_t kv_input_width(const KvCodecFile& file, const KvPredictor& predictor);
std::string kv_input_name(const KvPredictorInput& input);  // "key.3"

// Bytes of one token's codes in all layers, latents included.
int64_t kv_token_bytes(const KvCodecFile& file);
// Whether a plane is predicted from one latent and nothing else: then no row of it needs another.
bool is_from_latent_alone(const KvPlane& plane);
// Bytes of one token's latent.
int64_t kv_latent_bytes(const KvLatent& latent);
// Bits per number, of coded tokens.
double kv_bits_per_value(const KvCodecFile& file);
// Bytes of all predictors as stored.
int64_t kv_predictor_bytes(const KvCodecFile& file);

// Rounds weights and bias (projection, mean and sigma of a latent) to a stored dtype, in place: to
// be done before anything is predicted with them.
void round_predictor(KvPredictor& predictor, DType dtype);
void round_latent(KvLatent& latent, DType dtype);

// Everything that a codec relies on: sizes, inputs that are reconstructed before they are used,
// finite numbers, formats that exist. Throws kCorruptData with `what`, the tensor and the value.
void validate(const KvCodecFile& file, const std::string& what);

// SHA-256 over what determines a model's keys and values: configuration, norms, and the first and
// last layer's key projection as stored. The same checkpoint converted or quantized otherwise has
// another one.
std::string kv_model_fingerprint(const Checkpoint& checkpoint);

// A codec without predictors, for any model: HIGGS or uniform codes of the rows themselves.
KvCodecFile plain_kv_codec(const ModelConfig& config, const RowFormat& format,
                           std::string model_fingerprint);

// Writes path, atomically. Throws kInvalidArgument when a number is not representable in
// predictor_dtype, and what validate() throws; kIo.
void write_kv_codec(const KvCodecFile& file, const std::string& path);
// Reads and checks a file; nothing in it is believed. Throws kNotFound, kCorruptData, kUnsupported
// (a later version).
KvCodecFile read_kv_codec(const std::string& path);
// Refuses a codec of another model: kInvalidArgument naming both and the way out.
void check_kv_codec(const KvCodecFile& file, const ModelConfig& config,
                    const std::string& model_fingerprint, const std::string& what);
// SHA-256 over everything that the codes' meaning depends on: the identity of a codec, for blocks
// that are stored apart from it.
std::string kv_codec_fingerprint(const KvCodecFile& file);

}  // namespace lathe
