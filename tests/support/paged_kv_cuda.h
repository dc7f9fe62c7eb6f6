// One layer of a paged cache on the GPU for several sequences: random keys and values in blocks in
// random order, and what was stored, as numbers, on the host. Whatever no token fills is NaN, and
// so are the codes of tokens that have exact rows.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "kernels/attention/attention_cuda.h"
#include "quant/fp8.h"
#include "support/all_close.h"
#include "support/kv_codes_cuda_tokens.h"
#include "tensor/device_buffer.h"
#include "tensor/float16.h"

namespace lathe {

// A number as an element of the cache, in place, and back.
inline void write_kv_element(KvCudaElement element, std::byte* data, int64_t offset, float value) {
  if (element == KvCudaElement::kF32) {
    std::memcpy(data + 4 * offset, &value, 4);
  } else if (element == KvCudaElement::kBF16) {
    const uint16_t bits = bf16_from_float(value);
    std::memcpy(data + 2 * offset, &bits, 2);
  } else {
    data[offset] = static_cast<std::byte>(e4m3_from_double(value));
  }
}

inline float read_kv_element(KvCudaElement element, const std::byte* data, int64_t offset) {
  if (element == KvCudaElement::kE4M3) return e4m3_to_float(static_cast<uint8_t>(data[offset]));
  if (element == KvCudaElement::kF32) {
    float value;
    std::memcpy(&value, data + 4 * offset, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, data + 2 * offset, 2);
  return float_from_bf16(bits);
}

class PagedKvCuda {
 public:
  struct Shape {
    KvCudaElement element = KvCudaElement::kBF16;
    int64_t num_kv_heads = 1;
    int64_t head_dim = 64;
    float key_scale = 1;
    float value_scale = 1;
    bool has_sinks = false;  // codes: the first tokens are exact rows
  };
  // Sequence s holds positions [begins[s], contexts[s]); the block-table entries of blocks without
  // any of these are wild, so a kernel that follows one faults.
  PagedKvCuda(const Shape& shape, std::vector<int64_t> begins, std::vector<int64_t> contexts,
              uint64_t seed)
      : shape_(shape), contexts_(std::move(contexts)) {
    int64_t num_blocks = 0;
    for (const int64_t context : contexts_) {
      const int64_t blocks = (context + kBlockSize - 1) / kBlockSize;
      table_stride_ = std::max(table_stride_, blocks + 3);
      num_blocks += blocks + (shape.has_sinks ? 1 : 0);
    }
    std::vector<int32_t> order(static_cast<std::size_t>(num_blocks));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    Rng rng(seed);
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);

    table_.assign(contexts_.size() * static_cast<std::size_t>(table_stride_), 0x7ffffff0);
    const auto bytes = static_cast<std::size_t>(num_blocks * block_bytes());
    key_bytes_.assign(bytes, std::byte{0xff});  // NaN in all elements, or NaN for a scale
    value_bytes_.assign(bytes, std::byte{0xff});
    std::size_t next = 0;
    for (std::size_t s = 0; s < contexts_.size(); ++s) {
      if (shape.has_sinks) sink_blocks_.push_back(order[next++]);
      for (int64_t b = 0; b * kBlockSize < contexts_[s]; ++b) {
        const int32_t block = order[next++];
        if ((b + 1) * kBlockSize > begins[s]) table_[table_idx(s, b)] = block;
      }
      const int64_t count = contexts_[s] * shape.num_kv_heads * shape.head_dim;
      keys_.push_back(normal_values(count, seed + 2 * s + 1));
      values_.push_back(normal_values(count, seed + 2 * s + 2));
      for (int64_t t = begins[s]; t < contexts_[s]; ++t) store_token(s, t);
    }
    keys_device_ = DeviceBuffer::from_host(key_bytes_.data(), static_cast<int64_t>(bytes));
    values_device_ = DeviceBuffer::from_host(value_bytes_.data(), static_cast<int64_t>(bytes));
    table_device_ = DeviceBuffer::from_host(table_.data(), static_cast<int64_t>(table_.size() * 4));
    sinks_device_ =
        DeviceBuffer::from_host(sink_blocks_.data(), static_cast<int64_t>(sink_blocks_.size() * 4));
    if (kv_cuda_is_coded(shape.element)) {
      grid_device_ =
          DeviceBuffer::from_host(make_kv_cuda_grid(shape.element).get(), sizeof(KvCudaGrid));
    }
  }

  KvCudaLayer layer() {
    return {.element = shape_.element,
            .keys = keys_device_.data(),
            .values = values_device_.data(),
            .key_scale = shape_.key_scale,
            .value_scale = shape_.value_scale,
            .grid = grid_device_.as<KvCudaGrid>()};
  }
  const int32_t* tables() const { return table_device_.as<int32_t>(); }
  int64_t table_stride() const { return table_stride_; }
  // CudaBatch::sink_blocks: null without sinks.
  const int32_t* sink_blocks() const { return sinks_device_.as<int32_t>(); }

  // What the cache stands for: [num_kv_heads, head_dim] of one position. Codes: rotated.
  const float* key(std::size_t sequence, int64_t t) const {
    return keys_[sequence].data() + t * shape_.num_kv_heads * shape_.head_dim;
  }
  const float* value(std::size_t sequence, int64_t t) const {
    return values_[sequence].data() + t * shape_.num_kv_heads * shape_.head_dim;
  }

  // The device's memory as it is now, element by element.
  void read_back() {
    keys_device_.to_host(key_bytes_.data(), static_cast<int64_t>(key_bytes_.size()));
    values_device_.to_host(value_bytes_.data(), static_cast<int64_t>(value_bytes_.size()));
  }
  // Of codes, [head_dim], rotated.
  std::vector<float> stored_codes(KvPart part, std::size_t sequence, int64_t t,
                                  int64_t head) const {
    std::vector<float> x(static_cast<std::size_t>(shape_.head_dim));
    const auto& bytes = part == KvPart::kKeys ? key_bytes_ : value_bytes_;
    read_kv_codes(part, shape_.head_dim, bytes.data() + head_offset(sequence, t, head),
                  t % kBlockSize, x.data());
    return x;
  }
  // An exact row, [head_dim], rotated.
  std::vector<float> stored_sink(KvPart part, std::size_t sequence, int64_t t, int64_t head) const {
    std::vector<float> x(static_cast<std::size_t>(shape_.head_dim));
    const auto& bytes = part == KvPart::kKeys ? key_bytes_ : value_bytes_;
    read_kv_sink(shape_.head_dim, bytes.data() + sink_head_offset(sequence, head), t, x.data());
    return x;
  }
  float stored_key(std::size_t sequence, int64_t t, int64_t head, int64_t dim) const {
    return read_kv_element(shape_.element, key_bytes_.data(), offset(sequence, t, head, dim));
  }
  float stored_value(std::size_t sequence, int64_t t, int64_t head, int64_t dim) const {
    return read_kv_element(shape_.element, value_bytes_.data(), offset(sequence, t, head, dim));
  }

 private:
  int64_t block_elements() const { return shape_.num_kv_heads * kBlockSize * shape_.head_dim; }
  int64_t block_bytes() const {
    return shape_.num_kv_heads * kv_cuda_head_bytes(shape_.element, shape_.head_dim);
  }
  int64_t head_offset(std::size_t sequence, int64_t t, int64_t head) const {
    return table_[table_idx(sequence, t / kBlockSize)] * block_bytes() +
           head * kv_cuda_head_bytes(shape_.element, shape_.head_dim);
  }
  int64_t sink_head_offset(std::size_t sequence, int64_t head) const {
    return sink_blocks_[sequence] * block_bytes() +
           head * kv_cuda_head_bytes(shape_.element, shape_.head_dim);
  }
  std::size_t table_idx(std::size_t sequence, int64_t block) const {
    return sequence * static_cast<std::size_t>(table_stride_) + static_cast<std::size_t>(block);
  }
  int64_t offset(std::size_t sequence, int64_t t, int64_t head, int64_t dim) const {
    return table_[table_idx(sequence, t / kBlockSize)] * block_elements() +
           head * kBlockSize * shape_.head_dim +
           kv_cuda_offset(shape_.element, static_cast<int>(shape_.head_dim),
                          static_cast<int>(t % kBlockSize), static_cast<int>(dim));
  }
  void store_token(std::size_t s, int64_t t) {
    for (int64_t h = 0; h < shape_.num_kv_heads; ++h) {
      if (kv_cuda_is_coded(shape_.element)) {
        const int64_t at = head_offset(s, t, h);
        const int64_t i = (t * shape_.num_kv_heads + h) * shape_.head_dim;
        for (const KvPart part : {KvPart::kKeys, KvPart::kValues}) {
          auto& bytes = part == KvPart::kKeys ? key_bytes_ : value_bytes_;
          float* x = (part == KvPart::kKeys ? keys_ : values_)[s].data() + i;
          if (shape_.has_sinks && t < kLiveSinks) {
            write_kv_sink(shape_.head_dim, x, t, bytes.data() + sink_head_offset(s, h));
            read_kv_sink(shape_.head_dim, bytes.data() + sink_head_offset(s, h), t, x);
            continue;
          }
          write_kv_codes(part, shape_.head_dim, x, t % kBlockSize, bytes.data() + at);
          read_kv_codes(part, shape_.head_dim, bytes.data() + at, t % kBlockSize, x);
        }
        continue;
      }
      for (int64_t j = 0; j < shape_.head_dim; ++j) {
        const int64_t at = offset(s, t, h, j);
        const auto i =
            static_cast<std::size_t>((t * shape_.num_kv_heads + h) * shape_.head_dim + j);
        write_kv_element(shape_.element, key_bytes_.data(), at, keys_[s][i] / shape_.key_scale);
        write_kv_element(shape_.element, value_bytes_.data(), at,
                         values_[s][i] / shape_.value_scale);
        keys_[s][i] = read_kv_element(shape_.element, key_bytes_.data(), at) * shape_.key_scale;
        values_[s][i] =
            read_kv_element(shape_.element, value_bytes_.data(), at) * shape_.value_scale;
      }
    }
  }

  Shape shape_;
  std::vector<int64_t> contexts_;
  int64_t table_stride_ = 0;
  std::vector<int32_t> table_;
  std::vector<int32_t> sink_blocks_;
  std::vector<std::vector<float>> keys_, values_;  // per sequence [context, num_kv_heads, head_dim]
  std::vector<std::byte> key_bytes_, value_bytes_;
  DeviceBuffer keys_device_, values_device_, table_device_, sinks_device_, grid_device_;
};

}  // namespace lathe
