#include "cache/cuda_kv_cache.h"

#include <limits>

#include "base/check.h"
#include "base/error.h"
#include "kernels/attention/kv_codes_cuda.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

KvCudaElement cuda_element(KvFormat format) {
  switch (format) {
    case KvFormat::kF32:
      return KvCudaElement::kF32;
    case KvFormat::kBF16:
      return KvCudaElement::kBF16;
    case KvFormat::kFp8:
      return KvCudaElement::kE4M3;
    case KvFormat::kHiggs4:
      return KvCudaElement::kHiggs4;
    default:
      fail(ErrorCode::kUnsupported, "a cache of ", kv_format_name(format),
           " on a GPU; use bf16, fp8 or higgs4");
  }
}

// Before anything is allocated for them.
int64_t checked_blocks(const ModelConfig& config, KvFormat format, int64_t num_tokens,
                       int64_t max_sequence_tokens) {
  check_cache_size(config, num_tokens, max_sequence_tokens);
  const KvCudaElement element = cuda_element(format);
  if (kv_cuda_is_coded(element)) {
    with_context(str("cache format ", kv_format_name(format)),
                 [&] { check_kv_element(kv_element(format), config.head_dim); });
  }
  const int64_t token_bytes = 2 * config.num_layers * config.num_kv_heads *
                              (kv_cuda_head_bytes(element, config.head_dim) / kBlockSize);
  constexpr int64_t kMostBlocks = std::numeric_limits<BlockId>::max();
  int64_t num_blocks = num_tokens / kBlockSize + (num_tokens % kBlockSize != 0);  // cannot overflow
  if (num_blocks <= kMostBlocks) {
    num_blocks = cache_blocks(num_tokens, max_sequence_tokens, kv_cuda_keeps_sinks(element));
  }
  if (num_blocks > kMostBlocks || num_blocks > (int64_t{1} << 50) / (token_bytes * kBlockSize)) {
    fail(ErrorCode::kOutOfMemory, "a cache of ", num_tokens, " tokens of ", token_bytes, " bytes");
  }
  return num_blocks;
}

}  // namespace

CudaKvCache::CudaKvCache(const ModelConfig& config, KvFormat format, int64_t num_tokens,
                         int64_t max_sequence_tokens, CudaStream stream)
    : PagedCache(checked_blocks(config, format, num_tokens, max_sequence_tokens),
                 max_sequence_tokens, kv_cuda_keeps_sinks(cuda_element(format))),
      element_(cuda_element(format)),
      num_layers_(config.num_layers),
      plane_bytes_(config.num_kv_heads * kv_cuda_head_bytes(element_, config.head_dim)),
      stream_(stream) {
  if (kv_cuda_is_coded(element_)) {
    grid_ = DeviceBuffer::from_host(make_kv_cuda_grid(element_).get(), sizeof(KvCudaGrid));
  }
  with_context(str("KV cache of ", num_tokens, " tokens, ", bytes_per_block() / kBlockSize,
                   " bytes per token"),
               [&] { memory_ = DeviceBuffer(bytes_per_block() * num_blocks()); });
}

KvElement CudaKvCache::element() const {
  return element_ == KvCudaElement::kF32 ? KvElement::kF32 : KvElement::kBF16;
}

KvCudaLayer CudaKvCache::layer(int64_t layer) {
  return {.element = element_,
          .keys = plane(layer, 0),
          .values = plane(layer, 1),
          .grid = grid_.as<KvCudaGrid>()};
}

void CudaKvCache::append(int64_t, const float*, const float*, const float*, int64_t, Exec&) {
  LATHE_UNREACHABLE("rows of a GPU's cache are appended by rope_append_cuda()");
}

std::span<const KvBlockView> CudaKvCache::views(int64_t, int64_t) {
  LATHE_UNREACHABLE("a GPU's cache has no views");
}

void CudaKvCache::copy_block(BlockId from, BlockId to) {
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    for (int64_t which = 0; which < 2; ++which) {
      cuda_check(cudaMemcpyAsync(plane(layer, which) + to * plane_bytes_,
                                 plane(layer, which) + from * plane_bytes_,
                                 static_cast<std::size_t>(plane_bytes_), cudaMemcpyDeviceToDevice,
                                 stream_),
                 "copying a block of the cache");
    }
  }
}

}  // namespace lathe
