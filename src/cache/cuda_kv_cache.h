// The paged cache in a GPU's memory: [layer][keys, values][block], a block as
// kernels/attention/kv_layout_cuda.h says. Blocks are handed out on the host; the device's kernels
// write and read them through block tables (CudaBatch).
#pragma once
#include <cstdint>

#include "cache/cuda_kv_layers.h"
#include "cache/paged_cache.h"
#include "kernels/attention/attention_cuda.h"
#include "tensor/device_buffer.h"

namespace lathe {

class CudaKvCache final : public PagedCache, public CudaKvLayers {
 public:
  // Work on the cache's own account (copies of shared blocks) goes to `stream`, like the steps that
  // read it. Throws kOutOfMemory with the size.
  CudaKvCache(const ModelConfig& config, KvFormat format, int64_t num_tokens,
              int64_t max_sequence_tokens, CudaStream stream);

  int64_t bytes_per_block() const override { return 2 * num_layers_ * plane_bytes_; }
  // Of the values as the host would see them; there are no views.
  KvElement element() const override;
  KvCudaLayer layer(int64_t layer) override;
  CudaKvLayers* cuda_layers() override { return this; }

  // A GPU's kernels do both: these abort.
  void append(int64_t layer, const float* k_raw, const float* k, const float* v, int64_t stride,
              Exec& exec) override;
  std::span<const KvBlockView> views(int64_t layer, int64_t rows_idx) override;

  void copy_block(BlockId from, BlockId to) override;

 private:
  std::byte* plane(int64_t layer, int64_t which) {
    return memory_.data() + (layer * 2 + which) * num_blocks() * plane_bytes_;
  }

  KvCudaElement element_;
  int64_t num_layers_;
  int64_t plane_bytes_;  // keys or values of one block
  CudaStream stream_;
  DeviceBuffer memory_;
  DeviceBuffer grid_;  // KvCudaGrid, of codes
};

}  // namespace lathe
