// One token of one head, in shared memory, into a GPU's cache of codes and back, by a warp.
#pragma once
#include <cuda_bf16.h>

#include "kernels/attention/kv_codes_cuda.h"

namespace lathe {

// x [head_dim], already rotated. The codes are those of kv_store() on the same numbers; only the
// sum of squares behind the scale is added in another order, in double.
__device__ inline void encode_head(const float* x, int head_dim, bool is_value, int token,
                                   const KvCudaGrid& grid, uint8_t* out, int lane) {
  constexpr float kSmallest = 1e-30f;  // as in kv_codes.cpp
  double squares = 0;
  for (int dim = lane; dim < head_dim; dim += 32) {
    squares += static_cast<double>(x[dim]) * static_cast<double>(x[dim]);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    squares += __shfl_xor_sync(0xffffffffu, squares, offset);
  }
  const float rms = static_cast<float>(sqrt(squares / head_dim));
  const bool finite = rms <= 3.402823466e38f;  // a NaN is not
  const bool usable = finite && rms >= kSmallest;
  const __nv_bfloat16 scale = __float2bfloat16_rn(usable ? product_rn(rms, grid.step) : 0);
  if (lane == 0) {
    *reinterpret_cast<uint16_t*>(out + code_scale_offset(head_dim, token)) =
        finite ? __bfloat16_as_ushort(scale) : uint16_t{0x7fc0};
  }
  const float inverse = usable ? 1 / __bfloat162float(scale) : 0;
  const int half = head_dim / 2;
  for (int slot = lane; slot < half; slot += 32) {
    const int code = usable ? nearest_code(grid, product_rn(x[slot], inverse),
                                           product_rn(x[slot + half], inverse))
                            : 0;
    out[is_value ? value_code_offset(head_dim, token, slot)
                 : key_code_offset(head_dim, token, slot)] = static_cast<uint8_t>(code);
  }
}

// Back, still rotated.
__device__ inline void decode_head(const uint8_t* in, int head_dim, bool is_value, int token,
                                   const KvCudaGrid& grid, float* x, int lane) {
  const float scale = __bfloat162float(
      *reinterpret_cast<const __nv_bfloat16*>(in + code_scale_offset(head_dim, token)));
  const int half = head_dim / 2;
  for (int slot = lane; slot < half; slot += 32) {
    const int code = in[is_value ? value_code_offset(head_dim, token, slot)
                                 : key_code_offset(head_dim, token, slot)];
    x[slot] = static_cast<float>(grid.first[code]) * scale;
    x[slot + half] = static_cast<float>(grid.second[code]) * scale;
  }
  __syncwarp();
}

// The same for an exact row; x is rotated, all lanes have what is loaded.
__device__ inline void store_sink(const float* x, int head_dim, int token, uint8_t* head,
                                  int lane) {
  auto* out = reinterpret_cast<__nv_bfloat16*>(head + sink_offset(head_dim, token));
  for (int dim = lane; dim < head_dim; dim += 32) out[dim] = __float2bfloat16_rn(x[dim]);
}
__device__ inline void load_sink(const uint8_t* head, int head_dim, int token, float* x, int lane) {
  const auto* in = reinterpret_cast<const __nv_bfloat16*>(head + sink_offset(head_dim, token));
  for (int dim = lane; dim < head_dim; dim += 32) x[dim] = __bfloat162float(in[dim]);
  __syncwarp();
}

}  // namespace lathe
