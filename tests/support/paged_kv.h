// Keys and values of one layer in blocks, as attention reads them, filled from plain arrays.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/attention/attention.h"
#include "tensor/buffer.h"
#include "tensor/float16.h"

namespace lathe {

class PagedKv {
 public:
  // k, v: [num_tokens, num_kv_heads, head_dim]. What no token fills is NaN.
  PagedKv(KvElement element, int64_t num_kv_heads, int64_t head_dim, const std::vector<float>& k,
          const std::vector<float>& v)
      : element_(element), num_kv_heads_(num_kv_heads), head_dim_(head_dim) {
    const int64_t num_tokens = static_cast<int64_t>(k.size()) / (num_kv_heads * head_dim);
    const int64_t num_blocks = (num_tokens + kBlockSize - 1) / kBlockSize;
    const int64_t plane = kBlockSize * num_kv_heads * head_dim;
    memory_ = Buffer(num_blocks * 2 * plane * kv_element_size(element));
    for (int64_t i = 0; i < num_blocks * 2 * plane; ++i) write(memory_.data(), i, NAN);
    for (int64_t block = 0; block < num_blocks; ++block) {
      std::byte* keys = memory_.data() + block * 2 * plane * kv_element_size(element);
      views_.push_back({keys, keys + plane * kv_element_size(element)});
    }
    for (int64_t t = 0; t < num_tokens; ++t) set(t, k, v, t);
  }

  // Token t takes row `from` of k and v.
  void set(int64_t t, const std::vector<float>& k, const std::vector<float>& v, int64_t from) {
    const KvBlockView& view = views_[static_cast<std::size_t>(t / kBlockSize)];
    for (int64_t h = 0; h < num_kv_heads_; ++h) {
      for (int64_t j = 0; j < head_dim_; ++j) {
        const auto i = static_cast<std::size_t>((from * num_kv_heads_ + h) * head_dim_ + j);
        const int64_t head = h * kBlockSize * head_dim_;
        write(const_cast<void*>(view.keys), head + key_offset(element_, t % kBlockSize, j), k[i]);
        write(const_cast<void*>(view.values),
              head + value_offset(element_, head_dim_, t % kBlockSize, j), v[i]);
      }
    }
  }

  std::vector<KvBlockView>& views() { return views_; }

 private:
  void write(void* plane, int64_t offset, float value) {
    if (element_ == KvElement::kF32) {
      static_cast<float*>(plane)[offset] = value;
    } else {
      static_cast<uint16_t*>(plane)[offset] = bf16_from_float(value);
    }
  }

  KvElement element_;
  int64_t num_kv_heads_;
  int64_t head_dim_;
  Buffer memory_;
  std::vector<KvBlockView> views_;
};

}  // namespace lathe
