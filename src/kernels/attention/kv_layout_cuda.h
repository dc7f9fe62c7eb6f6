// Where an element of the paged cache lies on the GPU. One KV head of one layer of one block of
// kBlockSize tokens, keys and values alike, is
//   [head_dim / columns][kBlockSize][columns]      columns: a row of 128, 64 or 32 bytes
// with the 16-byte units of a row permuted as the copy engine's and wgmma's swizzle of that width
// does it: unit ^ (token & 7), unit ^ (token >> 1 & 3), unit ^ (token >> 2 & 1). So a block's head,
// or any of its column groups, comes to shared memory by one plain bulk copy, no tensor map, and
// lies there as ldmatrix reads it without bank conflicts and as wgmma's descriptors want it.
// Rows that no such width divides, and fp32, are plain [kBlockSize][head_dim].
// Codes (kHiggs4) lie as kv_codes_cuda.h says.
#pragma once
#include <cstdint>

#include "kernels/attention/kv_layout.h"
#include "tensor/host_device.h"

namespace lathe {

// From kHiggs4 on: codes.
enum class KvCudaElement { kF32, kBF16, kE4M3, kHiggs4 };

LATHE_HOST_DEVICE constexpr bool kv_cuda_is_coded(KvCudaElement element) {
  return element == KvCudaElement::kHiggs4;
}

// Such a cache has keys without what those of their layer have in common (KeyOffset, attention.h).
// kE4M3 has them whole, other than fp8 on a CPU.
LATHE_HOST_DEVICE constexpr bool kv_cuda_drops_key_offset(KvCudaElement element) {
  return kv_cuda_is_coded(element);
}
// Such a cache keeps the first tokens of a sequence exactly, too (kv_codes.h, kv_codes_cuda.h).
LATHE_HOST_DEVICE constexpr bool kv_cuda_keeps_sinks(KvCudaElement element) {
  return kv_cuda_is_coded(element);
}

// Of those that are no codes.
LATHE_HOST_DEVICE constexpr int64_t kv_cuda_element_size(KvCudaElement element) {
  return element == KvCudaElement::kF32 ? 4 : element == KvCudaElement::kBF16 ? 2 : 1;
}

// Keys (or values) of one KV head of one block. Codes: head_dim / 2 bytes a token, and a scale of
// two.
LATHE_HOST_DEVICE constexpr int64_t kv_cuda_head_bytes(KvCudaElement element, int64_t head_dim) {
  return kv_cuda_is_coded(element) ? kBlockSize * (head_dim / 2 + 2)
                                   : kBlockSize * head_dim * kv_cuda_element_size(element);
}

// Bytes of a swizzled row; 0 where the layout is plain.
LATHE_HOST_DEVICE constexpr int kv_cuda_row_bytes(KvCudaElement element, int head_dim) {
  if (element == KvCudaElement::kF32) return 0;
  const int bytes = head_dim * static_cast<int>(kv_cuda_element_size(element));
  return bytes % 128 == 0 ? 128 : bytes % 64 == 0 ? 64 : bytes % 32 == 0 ? 32 : 0;
}

// Offset in elements from the start of one KV head's keys or values of one block.
LATHE_HOST_DEVICE constexpr int kv_cuda_offset(KvCudaElement element, int head_dim, int token,
                                               int dim) {
  const int row_bytes = kv_cuda_row_bytes(element, head_dim);
  if (row_bytes == 0) return token * head_dim + dim;
  const int size = static_cast<int>(kv_cuda_element_size(element));
  const int columns = row_bytes / size;
  const int byte = dim % columns * size;
  const int permutation = row_bytes == 128  ? token & 7
                          : row_bytes == 64 ? token >> 1 & 3
                                            : token >> 2 & 1;
  const int swizzled = ((byte >> 4) ^ permutation) << 4 | (byte & 15);
  return (dim / columns * static_cast<int>(kBlockSize) + token) * columns + swizzled / size;
}

}  // namespace lathe
