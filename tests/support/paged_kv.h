// Keys and values of one layer in blocks, as attention reads them, filled from plain arrays.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/kv_codes.h"
#include "tensor/buffer.h"

namespace lathe {

class PagedKv {
 public:
  // k, v: [num_tokens, num_kv_heads, head_dim]. What no token fills is NaN.
  PagedKv(KvElement element, int64_t num_kv_heads, int64_t head_dim, const std::vector<float>& k,
          const std::vector<float>& v)
      : element_(element), num_kv_heads_(num_kv_heads), head_dim_(head_dim) {
    const int64_t num_tokens = static_cast<int64_t>(k.size()) / (num_kv_heads * head_dim);
    const int64_t num_blocks = (num_tokens + kBlockSize - 1) / kBlockSize;
    const int64_t plane_bytes = num_kv_heads * kv_head_bytes(element, head_dim);
    memory_ = Buffer(num_blocks * 2 * plane_bytes);
    // All ones: NaN as f32, bf16, E4M3 and as a scale.
    std::memset(memory_.data(), 0xff, static_cast<std::size_t>(memory_.size()));
    for (int64_t block = 0; block < num_blocks; ++block) {
      std::byte* keys = memory_.data() + block * 2 * plane_bytes;
      views_.push_back({keys, keys + plane_bytes});
    }
    for (int64_t t = 0; t < num_tokens; ++t) set(t, k, v, t);
  }

  // Token t takes row `from` of k and v.
  void set(int64_t t, const std::vector<float>& k, const std::vector<float>& v, int64_t from) {
    const KvBlockView& view = views_[static_cast<std::size_t>(t / kBlockSize)];
    for (int64_t h = 0; h < num_kv_heads_; ++h) {
      const int64_t row = (from * num_kv_heads_ + h) * head_dim_;
      const int64_t offset = h * kv_head_bytes(element_, head_dim_);
      const auto head = [&](const void* plane) {
        return static_cast<std::byte*>(const_cast<void*>(plane)) + offset;
      };
      kv_store(element_, KvPart::kKeys, head_dim_, k.data() + row, t % kBlockSize, head(view.keys));
      kv_store(element_, KvPart::kValues, head_dim_, v.data() + row, t % kBlockSize,
               head(view.values));
    }
  }

  // Gives the first kLiveSinks tokens exact rows of k and v, NaN where there is no such token, and
  // NaN as codes, which nobody should read.
  void keep_sinks(const std::vector<float>& k, const std::vector<float>& v) {
    const int64_t bytes = num_kv_heads_ * kv_sink_bytes(head_dim_);
    sink_memory_ = Buffer(2 * bytes);
    std::memset(sink_memory_.data(), 0xff, static_cast<std::size_t>(2 * bytes));
    sinks_ = {sink_memory_.data(), sink_memory_.data() + bytes};
    const int64_t kv_size = num_kv_heads_ * head_dim_;
    const std::vector<float> nan(static_cast<std::size_t>(kv_size), NAN);
    for (int64_t t = 0; t < std::min(kLiveSinks, static_cast<int64_t>(k.size()) / kv_size); ++t) {
      set(t, nan, nan, 0);
      set_sink(t, k, v, t);
    }
  }
  void set_sink(int64_t t, const std::vector<float>& k, const std::vector<float>& v, int64_t from) {
    for (int64_t h = 0; h < num_kv_heads_; ++h) {
      const int64_t row = (from * num_kv_heads_ + h) * head_dim_;
      const int64_t offset = h * kv_sink_bytes(head_dim_);
      std::byte* keys = sink_memory_.data();
      kv_store_sink(element_, head_dim_, k.data() + row, t, keys + offset);
      kv_store_sink(element_, head_dim_, v.data() + row, t,
                    keys + num_kv_heads_ * kv_sink_bytes(head_dim_) + offset);
    }
  }

  std::vector<KvBlockView>& views() { return views_; }
  KvBlockView sinks() const { return sinks_; }

 private:
  KvElement element_;
  int64_t num_kv_heads_;
  int64_t head_dim_;
  Buffer memory_;
  std::vector<KvBlockView> views_;
  Buffer sink_memory_;
  KvBlockView sinks_;
};

}  // namespace lathe
