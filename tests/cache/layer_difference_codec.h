// A codec that is simple enough to check by hand, with the structure of AQUA-KV: each layer's rows
// minus the rebuilt rows of its base layer, as int8 with one scale per token, keys and values
// apart.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cache/kv_codec.h"
#include "kernels/attention/kv_layout.h"

namespace lathe {

class LayerDifferenceCodec final : public KvCodec {
 public:
  // Layer l is based on layer l - stride.
  LayerDifferenceCodec(int64_t num_layers, int64_t kv_size, KvCodecPolicy policy,
                       int64_t stride = 1)
      : num_layers_(num_layers), kv_size_(kv_size), policy_(policy), stride_(stride) {}

  KvCodecPolicy policy() const override { return policy_; }
  int64_t bytes_per_block() const override { return num_layers_ * 2 * plane_bytes(); }
  int64_t base_layer(int64_t layer) const override {
    return layer < stride_ ? -1 : layer - stride_;
  }
  int64_t scratch_floats() const override { return kv_size_; }

  void encode_layer(int64_t layer, KvLayerRows below, KvLayerRows rows, int64_t first_row,
                    std::byte* codes, float* scratch) const override {
    encode_plane(below.keys, rows.keys, first_row, plane(codes, layer, 0), scratch);
    encode_plane(below.values, rows.values, first_row, plane(codes, layer, 1), scratch);
  }
  void decode_layer(int64_t layer, const std::byte* codes, KvLayerRows below, KvLayerRows rows,
                    float*) const override {
    decode_plane(below.keys, plane(const_cast<std::byte*>(codes), layer, 0), rows.keys);
    decode_plane(below.values, plane(const_cast<std::byte*>(codes), layer, 1), rows.values);
  }

 private:
  // [kBlockSize] float scales, then [kBlockSize, kv_size] codes.
  int64_t plane_bytes() const { return kBlockSize * (4 + kv_size_); }
  std::byte* plane(std::byte* codes, int64_t layer, int64_t which) const {
    return codes + (layer * 2 + which) * plane_bytes();
  }

  void encode_plane(const float* below, float* rows, int64_t first_row, std::byte* out,
                    float* residual) const {
    for (int64_t t = 0; t < kBlockSize; ++t) {
      float* row = rows + t * kv_size_;
      float largest = 0;
      for (int64_t j = 0; j < kv_size_; ++j) {
        const float base = below == nullptr ? 0 : below[t * kv_size_ + j];
        residual[j] = t < first_row ? 0 : row[j] - base;
        largest = std::max(largest, std::fabs(residual[j]));
      }
      const float scale = largest / 127;
      std::memcpy(out + t * 4, &scale, 4);
      auto* codes = reinterpret_cast<int8_t*>(out + kBlockSize * 4 + t * kv_size_);
      for (int64_t j = 0; j < kv_size_; ++j) {
        codes[j] = static_cast<int8_t>(scale > 0 ? std::lround(residual[j] / scale) : 0);
      }
    }
    decode_plane(below, out, rows);
  }

  void decode_plane(const float* below, const std::byte* in, float* rows) const {
    for (int64_t t = 0; t < kBlockSize; ++t) {
      float scale;
      std::memcpy(&scale, in + t * 4, 4);
      const auto* codes = reinterpret_cast<const int8_t*>(in + kBlockSize * 4 + t * kv_size_);
      for (int64_t j = 0; j < kv_size_; ++j) {
        const float base = below == nullptr ? 0 : below[t * kv_size_ + j];
        rows[t * kv_size_ + j] = base + scale * static_cast<float>(codes[j]);
      }
    }
  }

  int64_t num_layers_;
  int64_t kv_size_;
  KvCodecPolicy policy_;
  int64_t stride_;
};

}  // namespace lathe
