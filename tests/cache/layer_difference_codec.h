// A codec that is simple enough to check by hand, with the structure of AQUA-KV: each layer's rows
// minus the rebuilt rows of the layer `stride` below, as int8 with one scale per token, keys and
// values apart.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cache/kv_codec.h"
#include "kernels/attention/kv_layout.h"

namespace lathe {

class LayerDifferenceCodec final : public KvCodec {
 public:
  LayerDifferenceCodec(int64_t num_layers, int64_t kv_size, KvCodecPolicy policy,
                       int64_t stride = 1)
      : num_layers_(num_layers), kv_size_(kv_size), policy_(policy), stride_(stride) {}

  KvCodecPolicy policy() const override { return policy_; }
  std::string_view fingerprint() const override {
    return "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
  }
  int64_t bytes_per_block() const override { return num_layers_ * 2 * plane_bytes(); }
  // The rebuilt rows of the latest `stride` layers; a layer takes the place of its base.
  int64_t state_floats(int64_t num_blocks) const override {
    return stride_ * 2 * num_blocks * kBlockSize * kv_size_;
  }
  int64_t scratch_floats(int64_t num_blocks) const override {
    return 2 * num_blocks * kBlockSize * kv_size_;
  }

  void encode(const KvExactRows& exact, int64_t num_blocks, std::byte* const* codes, float* state,
              float* scratch, Exec&) const override {
    const int64_t plane_floats = num_blocks * kBlockSize * kv_size_;
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      exact.load(layer, {scratch, scratch + plane_floats});
      for (int64_t which = 0; which < 2; ++which) {
        float* rows = state_rows(layer, which, num_blocks, state);
        for (int64_t b = 0; b < num_blocks; ++b) {
          const int64_t at = b * kBlockSize * kv_size_;
          encode_plane(layer < stride_, scratch + which * plane_floats + at, rows + at,
                       codes[b] + plane_offset(layer, which));
        }
      }
    }
  }
  KvLayerRows decode_layer(int64_t layer, const std::byte* const* codes, int64_t num_blocks,
                           float* state, float*, Exec&) const override {
    for (int64_t which = 0; which < 2; ++which) {
      float* rows = state_rows(layer, which, num_blocks, state);
      for (int64_t b = 0; b < num_blocks; ++b) {
        decode_plane(layer < stride_, codes[b] + plane_offset(layer, which),
                     rows + b * kBlockSize * kv_size_);
      }
    }
    return {state_rows(layer, 0, num_blocks, state), state_rows(layer, 1, num_blocks, state)};
  }

 private:
  // [kBlockSize] float scales, then [kBlockSize, kv_size] codes.
  int64_t plane_bytes() const { return kBlockSize * (4 + kv_size_); }
  int64_t plane_offset(int64_t layer, int64_t which) const {
    return (layer * 2 + which) * plane_bytes();
  }
  float* state_rows(int64_t layer, int64_t which, int64_t num_blocks, float* state) const {
    return state + (layer % stride_ * 2 + which) * num_blocks * kBlockSize * kv_size_;
  }

  // rows: the base's rows; leaves with this layer's.
  void encode_plane(bool first, const float* exact, float* rows, std::byte* out) const {
    for (int64_t t = 0; t < kBlockSize; ++t) {
      float largest = 0;
      for (int64_t j = t * kv_size_; j < (t + 1) * kv_size_; ++j) {
        largest = std::max(largest, std::fabs(exact[j] - (first ? 0 : rows[j])));
      }
      const float scale = largest / 127;
      std::memcpy(out + t * 4, &scale, 4);
      auto* codes = reinterpret_cast<int8_t*>(out + kBlockSize * 4);
      for (int64_t j = t * kv_size_; j < (t + 1) * kv_size_; ++j) {
        const float residual = exact[j] - (first ? 0 : rows[j]);
        codes[j] = static_cast<int8_t>(scale > 0 ? std::lround(residual / scale) : 0);
      }
    }
    decode_plane(first, out, rows);
  }

  void decode_plane(bool first, const std::byte* in, float* rows) const {
    const auto* codes = reinterpret_cast<const int8_t*>(in + kBlockSize * 4);
    for (int64_t t = 0; t < kBlockSize; ++t) {
      float scale;
      std::memcpy(&scale, in + t * 4, 4);
      for (int64_t j = t * kv_size_; j < (t + 1) * kv_size_; ++j) {
        rows[j] = (first ? 0 : rows[j]) + scale * static_cast<float>(codes[j]);
      }
    }
  }

  int64_t num_layers_;
  int64_t kv_size_;
  KvCodecPolicy policy_;
  int64_t stride_;
};

}  // namespace lathe
