#include "cache/predictive_codec.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "base/error.h"
#include "kernels/attention/kv_layout.h"

namespace lathe {
namespace {

constexpr std::size_t kMaxInputs = 16;  // validate() has the same bound

}  // namespace

PredictiveCodec::PredictiveCodec(const KvCodecFile& file)
    : policy_{file.num_sinks, file.window, file.chunk_tokens},
      fingerprint_(kv_codec_fingerprint(file)),
      coder_(file),
      slots_(plan_plane_slots(file, PlaneReaders::kCaller)) {
  const auto take = [&](int64_t row_code_bytes) {
    const int64_t offset = bytes_per_block_;
    bytes_per_block_ += kBlockSize * row_code_bytes;
    return offset;
  };
  const int64_t width = coder_.width();
  for (int64_t layer = 0; layer < coder_.num_layers(); ++layer) {
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      const KvPlaneCoder& plane = coder_.plane(layer, side);
      LATHE_CHECK(plane.inputs().size() <= kMaxInputs);
      (side == KvSide::kKeys ? key_offset_ : value_offset_).push_back(take(plane.code_bytes()));
      // Exact keys and values beside what the plane needs itself.
      scratch_row_floats_ = std::max(scratch_row_floats_, 2 * width + plane.scratch_floats(1));
    }
  }
  for (const KvLatentCoder& latent : coder_.latents()) {
    latent_offset_.push_back(take(latent.code_bytes()));
    latent_column_.push_back(latent_floats_);
    latent_floats_ += latent.rank();
    const auto num_layers = static_cast<int64_t>(latent.layers().size());
    scratch_row_floats_ =
        std::max(scratch_row_floats_, 2 * num_layers * width + latent.scratch_floats(1));
  }
}

int64_t PredictiveCodec::state_floats(int64_t num_blocks) const {
  return num_blocks * kBlockSize * (slots_.num_slots * coder_.width() + latent_floats_);
}

int64_t PredictiveCodec::scratch_floats(int64_t num_blocks) const {
  return num_blocks * kBlockSize * scratch_row_floats_;
}

float* PredictiveCodec::rows_of(float* state, int64_t num_rows, int64_t layer, KvSide side) const {
  const auto i = static_cast<std::size_t>(layer);
  const int64_t slot = side == KvSide::kKeys ? slots_.keys[i] : slots_.values[i];
  return state + slot * num_rows * coder_.width();
}

float* PredictiveCodec::latent_of(float* state, int64_t num_rows, int64_t group) const {
  return state + num_rows * (slots_.num_slots * coder_.width() +
                             latent_column_[static_cast<std::size_t>(group)]);
}

void PredictiveCodec::find_inputs(const KvPlaneCoder& plane, float* state, int64_t num_rows,
                                  const float** inputs) const {
  for (const KvPredictorInput& input : plane.inputs()) {
    switch (input.kind) {
      case KvPredictorInput::Kind::kKeys:
        *inputs++ = rows_of(state, num_rows, input.index, KvSide::kKeys);
        break;
      case KvPredictorInput::Kind::kValues:
        *inputs++ = rows_of(state, num_rows, input.index, KvSide::kValues);
        break;
      case KvPredictorInput::Kind::kLatent:
        *inputs++ = latent_of(state, num_rows, input.index);
        break;
    }
  }
}

void PredictiveCodec::encode_latent(std::size_t group, const KvExactRows& exact, int64_t num_blocks,
                                    std::byte* const* codes, float* state, float* scratch,
                                    Exec& exec) const {
  const KvLatentCoder& latent = coder_.latents()[group];
  const int64_t num_rows = num_blocks * kBlockSize;
  const int64_t plane_floats = num_rows * coder_.width();
  const auto num_layers = static_cast<int64_t>(latent.layers().size());
  for (int64_t i = 0; i < num_layers; ++i) {
    exact.load(latent.layers()[static_cast<std::size_t>(i)],
               {scratch + i * plane_floats, scratch + (num_layers + i) * plane_floats});
  }
  // Block by block, since their codes lie apart. The parts are keys of all layers, then values.
  const float* parts[2 * 64];
  LATHE_CHECK(latent.num_parts() <= std::size(parts));
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (std::size_t i = 0; i < latent.num_parts(); ++i) {
      parts[i] = scratch + static_cast<int64_t>(i) * plane_floats + b * kBlockSize * coder_.width();
    }
    latent.encode(
        parts,
        latent_of(state, num_rows, static_cast<int64_t>(group)) + b * kBlockSize * latent.rank(),
        kBlockSize, codes[b] + latent_offset_[group], latent.code_bytes(),
        scratch + 2 * num_layers * plane_floats, exec);
  }
}

void PredictiveCodec::encode(const KvExactRows& exact, int64_t num_blocks, std::byte* const* codes,
                             float* state, float* scratch, Exec& exec) const {
  const int64_t num_rows = num_blocks * kBlockSize;
  const int64_t block_floats = kBlockSize * coder_.width();
  const KvLayerRows rows{scratch, scratch + num_rows * coder_.width()};
  float* plane_scratch = scratch + 2 * num_rows * coder_.width();
  for (int64_t layer = 0; layer < coder_.num_layers(); ++layer) {
    for (std::size_t g = 0; g < coder_.latents().size(); ++g) {
      if (coder_.latents()[g].layers().front() != layer) continue;
      encode_latent(g, exact, num_blocks, codes, state, scratch, exec);
    }
    exact.load(layer, rows);
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      const KvPlaneCoder& plane = coder_.plane(layer, side);
      const float* inputs[kMaxInputs];
      find_inputs(plane, state, num_rows, inputs);
      float* target = rows_of(state, num_rows, layer, side);
      plane.predict(inputs, target, num_rows, plane_scratch, exec);
      const float* source = side == KvSide::kKeys ? rows.keys : rows.values;
      const int64_t offset =
          (side == KvSide::kKeys ? key_offset_ : value_offset_)[static_cast<std::size_t>(layer)];
      for (int64_t b = 0; b < num_blocks; ++b) {
        plane.encode_residual(source + b * block_floats, target + b * block_floats, kBlockSize,
                              codes[b] + offset, plane.code_bytes(), exec);
      }
    }
  }
}

KvLayerRows PredictiveCodec::decode_layer(int64_t layer, const std::byte* const* codes,
                                          int64_t num_blocks, float* state, float* scratch,
                                          Exec& exec) const {
  const int64_t num_rows = num_blocks * kBlockSize;
  const int64_t block_floats = kBlockSize * coder_.width();
  for (std::size_t g = 0; g < coder_.latents().size(); ++g) {
    const KvLatentCoder& latent = coder_.latents()[g];
    if (latent.layers().front() != layer) continue;
    float* z = latent_of(state, num_rows, static_cast<int64_t>(g));
    for (int64_t b = 0; b < num_blocks; ++b) {
      latent.decode(codes[b] + latent_offset_[g], latent.code_bytes(),
                    z + b * kBlockSize * latent.rank(), kBlockSize);
    }
  }
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    const KvPlaneCoder& plane = coder_.plane(layer, side);
    const float* inputs[kMaxInputs];
    find_inputs(plane, state, num_rows, inputs);
    float* target = rows_of(state, num_rows, layer, side);
    plane.predict(inputs, target, num_rows, scratch, exec);
    const int64_t offset =
        (side == KvSide::kKeys ? key_offset_ : value_offset_)[static_cast<std::size_t>(layer)];
    for (int64_t b = 0; b < num_blocks; ++b) {
      plane.decode_residual(codes[b] + offset, plane.code_bytes(), target + b * block_floats,
                            kBlockSize, exec);
    }
  }
  return {rows_of(state, num_rows, layer, KvSide::kKeys),
          rows_of(state, num_rows, layer, KvSide::kValues)};
}

std::unique_ptr<KvCodec> make_kv_codec(const KvCodecFile& file, const ModelConfig& config) {
  if (file.num_layers() != config.num_layers || file.shape.num_heads != config.num_kv_heads ||
      file.shape.head_dim != config.head_dim) {
    fail(ErrorCode::kInvalidArgument, "KV codec of ", file.num_layers(), " layers, ",
         file.shape.num_heads, " x ", file.shape.head_dim, "; the model has ", config.num_layers,
         ", ", config.num_kv_heads, " x ", config.head_dim);
  }
  if (file.chunk_tokens % kBlockSize != 0) {
    fail(ErrorCode::kUnsupported, "KV codec: chunks of ", file.chunk_tokens,
         " tokens are not a multiple of ", kBlockSize);
  }
  validate(file, "KV codec");
  return std::make_unique<PredictiveCodec>(file);
}

}  // namespace lathe
