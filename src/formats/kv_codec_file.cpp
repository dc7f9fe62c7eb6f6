#include "formats/kv_codec_file.h"

#include <cmath>
#include <set>

#include "base/error.h"
#include "base/sha256.h"
#include "formats/model_tensors.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxTokens = int64_t{1} << 24;  // of sinks, window, chunk

// Refusals that name the file and the part.
class Refusal {
 public:
  Refusal(const std::string& what, std::string part) : what_(what), part_(std::move(part)) {}
  template <typename... Parts>
  [[noreturn]] void operator()(const Parts&... parts) const {
    fail(ErrorCode::kCorruptData, what_, ": ", part_, ": ", parts...);
  }

 private:
  const std::string& what_;
  std::string part_;
};

void check_numbers(const std::vector<float>& numbers, int64_t count, const char* name,
                   const Refusal& refuse) {
  if (static_cast<int64_t>(numbers.size()) != count) {
    refuse(name, " has ", numbers.size(), " numbers instead of ", count);
  }
  for (const float x : numbers) {
    if (!std::isfinite(x)) refuse(name, " has a number that is not finite");
  }
}

void check_positive(const std::vector<float>& numbers, const char* name, const Refusal& refuse) {
  for (const float x : numbers) {
    if (!(x >= 1e-30f && x <= 1e30f)) refuse(name, " has ", x, "; must be 1e-30 to 1e30");
  }
}

// The layer in which a latent's code is written: its first.
bool input_is_ready(const KvCodecFile& file, const KvPredictorInput& input, int64_t layer,
                    bool is_value) {
  switch (input.kind) {
    case KvPredictorInput::Kind::kKeys:
      return input.index >= 0 && (input.index < layer || (is_value && input.index == layer));
    case KvPredictorInput::Kind::kValues:
      return input.index >= 0 && input.index < layer;
    case KvPredictorInput::Kind::kLatent:
      break;
  }
  return input.index >= 0 && input.index < static_cast<int64_t>(file.latents.size()) &&
         file.latents[static_cast<std::size_t>(input.index)].layers.front() <= layer;
}

void check_predictor(const KvCodecFile& file, const KvPredictor& predictor, int64_t layer,
                     bool is_value, const Refusal& refuse) {
  using Weight = KvPredictor::Weight;
  const int64_t width = file.shape.width();
  if (predictor.inputs.size() > 16) refuse(predictor.inputs.size(), " inputs; at most 16");
  if ((predictor.weight == Weight::kNone) != predictor.inputs.empty()) {
    refuse(predictor.inputs.size(), " inputs do not go with the kind of weight");
  }
  for (const KvPredictorInput& input : predictor.inputs) {
    if (!input_is_ready(file, input, layer, is_value)) {
      refuse("input '", kv_input_name(input), "' is not reconstructed before it is needed");
    }
    if (predictor.weight == Weight::kBlockDiagonal &&
        input.kind == KvPredictorInput::Kind::kLatent) {
      refuse("a latent has no heads for a block-diagonal weight");
    }
  }
  const int64_t in = kv_input_width(file, predictor);
  if (predictor.weight == Weight::kLowRank && (predictor.rank < 1 || predictor.rank > width)) {
    refuse("rank ", predictor.rank, " is not between 1 and ", width);
  }
  const auto blocks = static_cast<int64_t>(predictor.inputs.size()) * file.shape.head_dim;
  const int64_t w1 = predictor.weight == Weight::kNone      ? 0
                     : predictor.weight == Weight::kDense   ? width * in
                     : predictor.weight == Weight::kLowRank ? predictor.rank * in
                                                            : width * blocks;
  check_numbers(predictor.w1, w1, "weight", refuse);
  check_numbers(predictor.w2, predictor.weight == Weight::kLowRank ? width * predictor.rank : 0,
                "second weight", refuse);
  if (!predictor.bias.empty()) check_numbers(predictor.bias, width, "bias", refuse);
}

void check_plane(const KvCodecFile& file, const KvPlane& plane, int64_t layer, bool is_value,
                 const std::string& what) {
  const Refusal refuse(what, str("layer ", layer, is_value ? " values" : " keys"));
  check_predictor(file, plane.predictor, layer, is_value, refuse);
  try {
    check_row_format(plane.format, file.shape);
  } catch (const Error& error) {
    refuse(error.what());
  }
  if (plane.sigma.empty()) return;
  check_numbers(plane.sigma, file.shape.width(), "sigma", refuse);
  check_positive(plane.sigma, "sigma", refuse);
  if (plane.format.method != RowMethod::kHiggs) refuse("sigma goes with HIGGS codes only");
}

void check_latent(const KvCodecFile& file, const KvLatent& latent, std::size_t group,
                  const std::string& what) {
  const Refusal refuse(what, str("latent ", group));
  if (latent.layers.empty()) refuse("no layers");
  if (latent.layers.size() > 64) refuse(latent.layers.size(), " layers; at most 64");
  int64_t before = -1;
  for (const int64_t layer : latent.layers) {
    if (layer <= before || layer >= file.num_layers()) {
      refuse("layer ", layer, " behind layer ", before, " of ", file.num_layers());
    }
    before = layer;
  }
  const int64_t in = static_cast<int64_t>(latent.layers.size()) * file.shape.width() *
                     (latent.with_values ? 2 : 1);
  if (latent.rank < 2 || latent.rank % 2 != 0 || latent.rank > std::min(in, kMaxRowWidth)) {
    refuse("rank ", latent.rank, " is not an even number from 2 to ", std::min(in, kMaxRowWidth));
  }
  if (latent.bits != 4 && latent.bits != 8) refuse(latent.bits, " bits are not 4 or 8");
  check_numbers(latent.projection, latent.rank * in, "projection", refuse);
  check_numbers(latent.mean, in, "mean", refuse);
  check_numbers(latent.sigma, latent.rank, "sigma", refuse);
  check_positive(latent.sigma, "sigma", refuse);
}

void round_all(std::vector<float>& numbers, DType dtype) {
  if (dtype == DType::kF32) return;
  for (float& x : numbers) x = float_from_bf16(bf16_from_float(x));
}

}  // namespace

int64_t kv_input_width(const KvCodecFile& file, const KvPredictorInput& input) {
  return input.kind == KvPredictorInput::Kind::kLatent
             ? file.latents[static_cast<std::size_t>(input.index)].rank
             : file.shape.width();
}

int64_t kv_input_width(const KvCodecFile& file, const KvPredictor& predictor) {
  int64_t width = 0;
  for (const KvPredictorInput& input : predictor.inputs) width += kv_input_width(file, input);
  return width;
}

std::string kv_input_name(const KvPredictorInput& input) {
  switch (input.kind) {
    case KvPredictorInput::Kind::kKeys:
      return str("key.", input.index);
    case KvPredictorInput::Kind::kValues:
      return str("value.", input.index);
    case KvPredictorInput::Kind::kLatent:
      break;
  }
  return str("latent.", input.index);
}

bool is_from_latent_alone(const KvPlane& plane) {
  const KvPredictor& predictor = plane.predictor;
  return predictor.weight == KvPredictor::Weight::kDense && predictor.inputs.size() == 1 &&
         predictor.inputs.front().kind == KvPredictorInput::Kind::kLatent;
}

int64_t kv_latent_bytes(const KvLatent& latent) { return latent.rank * latent.bits / 8; }

int64_t kv_token_bytes(const KvCodecFile& file) {
  int64_t bytes = 0;
  for (const KvPlane& plane : file.keys) bytes += row_bytes(plane.format, file.shape);
  for (const KvPlane& plane : file.values) bytes += row_bytes(plane.format, file.shape);
  for (const KvLatent& latent : file.latents) bytes += kv_latent_bytes(latent);
  return bytes;
}

double kv_bits_per_value(const KvCodecFile& file) {
  return 8.0 * static_cast<double>(kv_token_bytes(file)) /
         static_cast<double>(2 * file.num_layers() * file.shape.width());
}

int64_t kv_predictor_bytes(const KvCodecFile& file) {
  std::size_t numbers = 0;
  for (const auto* planes : {&file.keys, &file.values}) {
    for (const KvPlane& plane : *planes) {
      const KvPredictor& p = plane.predictor;
      numbers += p.w1.size() + p.w2.size() + p.bias.size() + plane.sigma.size();
    }
  }
  for (const KvLatent& latent : file.latents) {
    numbers += latent.projection.size() + latent.mean.size() + latent.sigma.size();
  }
  return static_cast<int64_t>(numbers) * dtype_size(file.predictor_dtype);
}

void round_predictor(KvPredictor& predictor, DType dtype) {
  round_all(predictor.w1, dtype);
  round_all(predictor.w2, dtype);
  round_all(predictor.bias, dtype);
}

void round_latent(KvLatent& latent, DType dtype) {
  round_all(latent.projection, dtype);
  round_all(latent.mean, dtype);
  round_all(latent.sigma, dtype);
}

void validate(const KvCodecFile& file, const std::string& what) {
  const Refusal refuse(what, "codec");
  if (file.method != "aqua" && file.method != "higgs" && file.method != "int") {
    refuse("method '", file.method.substr(0, 40), "' is not one of aqua, higgs, int");
  }
  if (file.num_layers() < 1 || file.num_layers() > kMaxLayers ||
      file.values.size() != file.keys.size()) {
    refuse(file.keys.size(), " layers of keys and ", file.values.size(), " of values (1 to ",
           kMaxLayers, ")");
  }
  if (file.num_sinks < 0 || file.num_sinks > kMaxTokens || file.window < 0 ||
      file.window > kMaxTokens || file.chunk_tokens < 1 || file.chunk_tokens > kMaxTokens) {
    refuse(file.num_sinks, " sinks, window ", file.window, ", chunk ", file.chunk_tokens);
  }
  if (file.predictor_dtype != DType::kBF16 && file.predictor_dtype != DType::kF32) {
    refuse("predictors must be BF16 or F32");
  }
  for (std::size_t g = 0; g < file.latents.size(); ++g) {
    check_latent(file, file.latents[g], g, what);
  }
  for (int64_t layer = 0; layer < file.num_layers(); ++layer) {
    check_plane(file, file.keys[static_cast<std::size_t>(layer)], layer, false, what);
    check_plane(file, file.values[static_cast<std::size_t>(layer)], layer, true, what);
  }
  for (const auto* quality : {&file.key_quality, &file.value_quality}) {
    if (!quality->empty() && quality->size() != file.keys.size()) {
      refuse("quality of ", quality->size(), " layers");
    }
  }
}

KvCodecFile plain_kv_codec(const ModelConfig& config, const RowFormat& format,
                           std::string model_fingerprint) {
  KvCodecFile file;
  file.method = format.method == RowMethod::kHiggs ? "higgs" : "int";
  file.variant = "none";
  file.bits = format.bits;
  file.first_layer_bits = format.bits;
  file.model_fingerprint = std::move(model_fingerprint);
  file.shape = {config.num_kv_heads, config.head_dim};
  KvPlane plane;
  plane.format = format;
  file.keys.assign(static_cast<std::size_t>(config.num_layers), plane);
  file.values = file.keys;
  return file;
}

void check_kv_codec(const KvCodecFile& file, const ModelConfig& config,
                    const std::string& model_fingerprint, const std::string& what) {
  if (file.num_layers() != config.num_layers || file.shape.num_heads != config.num_kv_heads ||
      file.shape.head_dim != config.head_dim) {
    fail(ErrorCode::kInvalidArgument, what, ": made for ", file.num_layers(), " layers of ",
         file.shape.num_heads, " x ", file.shape.head_dim, ", the model has ", config.num_layers,
         " of ", config.num_kv_heads, " x ", config.head_dim,
         "; fit one for this model with lathe fit-kv");
  }
  if (file.model_fingerprint != model_fingerprint) {
    fail(ErrorCode::kInvalidArgument, what, ": made for the model with fingerprint ",
         file.model_fingerprint.substr(0, 12), ", this one has ", model_fingerprint.substr(0, 12),
         "; fit one for this model with lathe fit-kv");
  }
}

// --- fingerprints --------------------------------------------------------------------------------

namespace {

class Hash {
 public:
  void text(std::string_view text) {
    number(static_cast<int64_t>(text.size()));
    sha_.update(std::as_bytes(std::span(text.data(), text.size())));
  }
  void number(int64_t value) { sha_.update(std::as_bytes(std::span(&value, 1))); }
  void floats(const std::vector<float>& values) {
    number(static_cast<int64_t>(values.size()));
    sha_.update(std::as_bytes(std::span(values)));
  }
  void bytes(const std::byte* data, int64_t count) {
    number(count);
    sha_.update({data, static_cast<std::size_t>(count)});
  }
  std::string hex() { return sha_.hex_digest(); }

 private:
  Sha256 sha_;
};

void add_linear(Hash& hash, const LinearWeights& weights) {
  if (weights.quantized) {
    const QuantizedMatrix& q = *weights.quantized;
    hash.bytes(q.codes.data(), q.codes.size());
    hash.bytes(q.scales.data(), q.scales.size());
    hash.text(str(q.rows, " ", q.cols, " ", q.global_scale));
  } else {
    hash.bytes(weights.dense.data(), weights.dense.num_bytes());
  }
  if (!weights.bias.empty()) hash.bytes(weights.bias.data(), weights.bias.num_bytes());
}

}  // namespace

std::string kv_model_fingerprint(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  Hash hash;
  hash.text("lathe kv model 1");
  for (const int64_t value :
       {config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim,
        config.rotary_dim, config.hidden_size, config.intermediate_size, config.vocab_size}) {
    hash.number(value);
  }
  hash.text(str(config.model_type, " ", config.rope.theta, " ", config.rms_norm_eps));
  for (const PlainTensor& tensor : model_tensors(config).plain) {
    if (tensor.shape.size() != 1) continue;  // norms; not the embedding
    const Tensor loaded = checkpoint.load(tensor.name, DType::kF32);
    hash.bytes(loaded.data(), loaded.num_bytes());
  }
  for (const int64_t layer : {int64_t{0}, config.num_layers - 1}) {
    add_linear(hash, checkpoint.load_linear(layer_prefix(layer) + "self_attn.k_proj", DType::kF32));
  }
  return hash.hex();
}

std::string kv_codec_fingerprint(const KvCodecFile& file) {
  Hash hash;
  hash.text("lathe kv codec 1");
  hash.text(file.model_fingerprint);
  for (const int64_t value : {file.num_sinks, file.shape.num_heads, file.shape.head_dim,
                              file.num_layers(), static_cast<int64_t>(file.latents.size())}) {
    hash.number(value);
  }
  for (const auto* planes : {&file.keys, &file.values}) {
    for (const KvPlane& plane : *planes) {
      const RowFormat& format = plane.format;
      if (format.method == RowMethod::kHiggs) {
        hash.text(higgs_grid(format.bits, format.grid_dim).hash);
        hash.text(row_scale_name(format.scale));
        hash.number(format.hadamard ? 1 : 0);
      } else {
        hash.number(format.bits);
        hash.number(format.group);
      }
      hash.number(static_cast<int64_t>(plane.predictor.weight));
      for (const KvPredictorInput& input : plane.predictor.inputs) hash.text(kv_input_name(input));
      for (const auto* numbers :
           {&plane.predictor.w1, &plane.predictor.w2, &plane.predictor.bias, &plane.sigma}) {
        hash.floats(*numbers);
      }
    }
  }
  for (const KvLatent& latent : file.latents) {
    for (const int64_t layer : latent.layers) hash.number(layer);
    hash.number(latent.with_values ? 1 : 0);
    hash.number(latent.bits);
    for (const auto* numbers : {&latent.projection, &latent.mean, &latent.sigma}) {
      hash.floats(*numbers);
    }
  }
  return hash.hex();
}

}  // namespace lathe
