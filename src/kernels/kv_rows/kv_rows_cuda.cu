// A warp for each row and head, the head in shared memory: codes are unpacked, looked up, turned by
// the butterflies, added to the prediction; keys are turned by their position and stored. For any
// head and format, bound by the butterflies' instructions; decode_heads_cuda.cu is what usually
// decodes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <limits>

#include "kernels/kv_rows/decode_heads_cuda.h"
#include "kernels/kv_rows/kv_row_codes_cuda.cuh"
#include "kernels/kv_rows/kv_rows_cuda.h"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

constexpr int kWarps = 8;
constexpr int kMaxHeadDim = 256;
constexpr int kBlock = static_cast<int>(kBlockSize);

__device__ constexpr float kLog8Limits[8] = {1.04427378f, 1.13878863f, 1.24185781f, 1.35425555f,
                                             1.47682615f, 1.61049033f, 1.75625216f, 1.91520656f};

// round_row_scale() of quant/row_codes.h.
__device__ uint32_t rounded_scale(RowScale scale, float norm) {
  const bool finite = norm <= 3.402823466e38f;
  if (scale == RowScale::kLog8) {
    if (!finite) return 255;
    if (norm == 0) return 0;
    int exponent = 0;
    const float mantissa = 2 * frexpf(norm, &exponent);
    int code = 8 * (exponent - 1) + 127;
    for (const float limit : kLog8Limits) code += mantissa >= limit ? 1 : 0;
    return static_cast<uint32_t>(min(max(code, 0), 254));
  }
  if (scale == RowScale::kF16) {
    return finite ? __half_as_ushort(__float2half_rn(fminf(norm, 65504.0f))) : 0x7e00u;
  }
  return finite ? __float_as_uint(norm) : 0x7fc00000u;
}

// u: the residual, scaled; becomes what is coded.
__device__ void encode(const KvRowsCudaFormat& format, const HeadCodes& codes, float* u,
                       uint8_t* chosen, int lane) {
  float sum = 0;  // sum_of_squares(): 16 lanes, then halves
  if (lane < 16) {
    for (int j = lane; j < format.head_dim; j += 16) sum = fmaf(u[j], u[j], sum);
  }
  for (int distance = 8; distance > 0; distance /= 2) {
    sum = sum_rn(sum, __shfl_down_sync(0xffffffffu, sum, distance));
  }
  sum = __shfl_sync(0xffffffffu, sum, 0);
  const uint32_t bits = rounded_scale(format.scale, sqrtf(sum));
  const float scale = scale_value(format.scale, bits);
  if (lane < scale_bytes(format.scale)) {
    codes.scale[lane] = static_cast<uint8_t>(bits >> 8 * lane);
  }
  const int num_codes = format.head_dim / format.grid_dim;
  const bool usable = scale > 0;  // no zero, no NaN
  if (usable) {
    transform_head(u, format, lane, [&](int piece) {
      const double ratio = static_cast<double>(format.head_dim) / static_cast<double>(piece);
      return static_cast<float>(sqrt(ratio)) / scale;
    });
  }
  for (int i = lane; i < num_codes; i += 32) {
    int best = 0;
    float best_score = -INFINITY;
    for (int p = 0; p < format.num_points && usable; ++p) {
      float score = format.minus_norms[p];
      for (int j = 0; j < format.grid_dim; ++j) {
        score =
            fmaf(u[i * format.grid_dim + j], format.twice_points[j * format.num_points + p], score);
      }
      if (score > best_score) best_score = score, best = p;
    }
    chosen[i] = static_cast<uint8_t>(best);
  }
  __syncwarp();
  for (int byte = lane; byte < num_codes * format.code_bits / 8; byte += 32) {
    uint32_t packed = 0;
    for (int i = byte * 8 / format.code_bits; i * format.code_bits < byte * 8 + 8 && i < num_codes;
         ++i) {
      const int shift = i * format.code_bits - byte * 8;
      packed |= shift >= 0 ? static_cast<uint32_t>(chosen[i]) << shift
                           : static_cast<uint32_t>(chosen[i]) >> -shift;
    }
    codes.packed[byte] = static_cast<uint8_t>(packed);
  }
  __syncwarp();  // written bytes are read again
}

// --- live blocks --------------------------------------------------------------------------------

// What the cache has keys without, to a key before RoPE; sign: 1 or -1.
__device__ void add_offset(const KvLiveRowsCuda& live, int head, int head_dim, float sign, float* x,
                           int lane) {
  if (live.key_offset == nullptr) return;
  for (int dim = lane; dim < head_dim; dim += 32) {
    x[dim] = sum_rn(x[dim], sign * live.key_offset[head * head_dim + dim]);
  }
  __syncwarp();
}

__device__ void store_live(const KvLiveRowsCuda& live, int64_t row, int head, int num_heads,
                           int head_dim, float* x, int lane) {
  if (live.cos != nullptr && !live.is_value) {
    add_offset(live, head, head_dim, -1, x, lane);
    const int half = static_cast<int>(live.rotary_dim) / 2;
    const int64_t angles = rope_row(live, row) * half;
    rope_head(x, live.cos + angles, live.sin + angles, half, lane);
  }
  uint8_t* out = live_head(live, row, head, num_heads, head_dim);
  const int token = static_cast<int>(row % kBlock);
  const KvCudaElement element = live.layer.element;
  if (kv_cuda_is_coded(element)) {
    rotate_head(x, head_dim, lane);
    if (uint8_t* sink = sink_head(live, row, head, num_heads, head_dim)) {
      store_sink(x, head_dim, token, sink, lane);
    }
    encode_head(x, head_dim, live.is_value, token, *live.layer.grid, out, lane);
    return;
  }
  for (int dim = lane; dim < head_dim; dim += 32) {
    const int at = kv_cuda_offset(element, head_dim, token, dim);
    if (element == KvCudaElement::kF32) {
      reinterpret_cast<float*>(out)[at] = x[dim];
    } else if (element == KvCudaElement::kBF16) {
      reinterpret_cast<__nv_bfloat16*>(out)[at] = __float2bfloat16_rn(x[dim]);
    } else {
      const float scale = live.is_value ? live.layer.value_scale : live.layer.key_scale;
      out[at] = __nv_cvt_float_to_fp8(x[dim] / scale, __NV_SATFINITE, __NV_E4M3);
    }
  }
}

__device__ void load_live(const KvLiveRowsCuda& live, int64_t row, int head, int num_heads,
                          int head_dim, float* x, int lane) {
  const uint8_t* in = live_head(live, row, head, num_heads, head_dim);
  const int token = static_cast<int>(row % kBlock);
  const KvCudaElement element = live.layer.element;
  if (kv_cuda_is_coded(element)) {
    if (const uint8_t* sink = sink_head(live, row, head, num_heads, head_dim)) {
      load_sink(sink, head_dim, token, x, lane);
    } else {
      decode_head(in, head_dim, live.is_value, token, *live.layer.grid, x, lane);
    }
    rotate_head(x, head_dim, lane);
  } else {
    for (int dim = lane; dim < head_dim; dim += 32) {
      const int at = kv_cuda_offset(element, head_dim, token, dim);
      if (element == KvCudaElement::kF32) {
        x[dim] = reinterpret_cast<const float*>(in)[at];
      } else if (element == KvCudaElement::kBF16) {
        x[dim] = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(in)[at]);
      } else {
        __nv_fp8_e4m3 number;
        number.__x = in[at];
        x[dim] = static_cast<float>(number) *
                 (live.is_value ? live.layer.value_scale : live.layer.key_scale);
      }
    }
    __syncwarp();
  }
  if (live.cos == nullptr || live.is_value) return;
  const int half = static_cast<int>(live.rotary_dim) / 2;
  const int64_t angles = rope_row(live, row) * half;
  for (int j = lane; j < half; j += 32) {
    const float cos = live.cos[angles + j], sin = live.sin[angles + j];
    const float size = cos * cos + sin * sin;  // the square of an attention factor
    const float a = x[j], b = x[j + half];
    x[j] = (a * cos + b * sin) / size;
    x[j + half] = (b * cos - a * sin) / size;
  }
  __syncwarp();
  add_offset(live, head, head_dim, 1, x, lane);
}

// --- kernels ------------------------------------------------------------------------------------

// The row and head of this warp. False: none.
__device__ bool find_head(int num_heads, int64_t num_rows, int64_t& row, int& head) {
  const uint32_t idx = blockIdx.x * kWarps + threadIdx.x / 32, heads = num_heads;
  row = idx / heads, head = static_cast<int>(idx % heads);
  return row < num_rows;
}

__device__ float prediction(const KvRowsCudaFormat& format, const float* product, int64_t at,
                            int column) {
  float p = product != nullptr ? product[at] : 0;
  if (format.bias != nullptr) p = sum_rn(p, format.bias[column]);
  return p;
}

__device__ void store_row(const KvRowsCuda& rows, int64_t at, float x) {
  if (rows.data == nullptr) return;
  if (rows.element == CudaElement::kBF16) {
    static_cast<__nv_bfloat16*>(rows.data)[at] = __float2bfloat16_rn(x);
  } else {
    static_cast<float*>(rows.data)[at] = x;
  }
}

// product may be what rows point to: a number is read before it is written, by the same thread.
__global__ void __launch_bounds__(kWarps * 32)
    decode_rows_kernel(KvRowsCudaFormat format, KvCodesCuda codes, const float* product,
                       KvRowsCuda rows, int64_t num_rows, KvLiveRowsCuda live) {
  __shared__ float heads[kWarps][kMaxHeadDim];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t row;
  int head;
  if (!find_head(format.num_heads, num_rows, row, head)) return;
  float* x = heads[threadIdx.x / 32];
  const int column = head * format.head_dim;
  const float* sigma = format.sigma == nullptr ? nullptr : format.sigma + column;
  decode_row_head(format, head_codes(format, codes, row, head), sigma, x, lane);
  const int64_t begin = row * format.num_heads * format.head_dim + column;
  for (int j = lane; j < format.head_dim; j += 32) {
    x[j] = sum_rn(prediction(format, product, begin + j, column + j), x[j]);
    store_row(rows, begin + j, x[j]);
  }
  __syncwarp();
  if (live.blocks == nullptr) return;
  store_live(live, row, head, format.num_heads, format.head_dim, x, lane);
}

__global__ void __launch_bounds__(kWarps * 32)
    encode_rows_kernel(KvRowsCudaFormat format, KvCodesCuda codes, const float* product,
                       const float* exact, KvRowsCuda rows, int64_t num_rows) {
  __shared__ float heads[kWarps][kMaxHeadDim];
  __shared__ uint8_t chosen[kWarps][kMaxHeadDim];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int64_t row;
  int head;
  if (!find_head(format.num_heads, num_rows, row, head)) return;
  float* x = heads[warp];
  const int column = head * format.head_dim;
  const int64_t begin = row * format.num_heads * format.head_dim + column;
  for (int j = lane; j < format.head_dim; j += 32) {
    const float p = prediction(format, product, begin + j, column + j);
    const float residual = sum_rn(exact[begin + j], -p);
    x[j] = format.inverse_sigma == nullptr ? residual
                                           : product_rn(residual, format.inverse_sigma[column + j]);
  }
  __syncwarp();
  const HeadCodes to = head_codes(format, codes, row, head);
  encode(format, to, x, chosen[warp], lane);
  if (rows.data == nullptr) return;
  decode_row_head(format, to, format.sigma == nullptr ? nullptr : format.sigma + column, x, lane);
  for (int j = lane; j < format.head_dim; j += 32) {
    store_row(rows, begin + j, sum_rn(prediction(format, product, begin + j, column + j), x[j]));
  }
}

__global__ void __launch_bounds__(kWarps * 32)
    load_rows_kernel(KvLiveRowsCuda live, int num_heads, int head_dim, int64_t num_rows,
                     float* rows, const float* mean) {
  __shared__ float heads[kWarps][kMaxHeadDim];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t row;
  int head;
  if (!find_head(num_heads, num_rows, row, head)) return;
  float* x = heads[threadIdx.x / 32];
  load_live(live, row, head, num_heads, head_dim, x, lane);
  float* out = rows + (row * num_heads + head) * head_dim;
  for (int dim = lane; dim < head_dim; dim += 32) {
    out[dim] = mean == nullptr ? x[dim] : sum_rn(x[dim], -mean[head * head_dim + dim]);
  }
}

// Number j of a row, zero behind the rank.
__device__ void store_latent(const KvLatentCudaFormat& format, uint32_t code, int64_t row, int j,
                             const KvRowsCuda& z, int64_t z_stride) {
  float unit = 0;
  if (j < format.rank) {
    unit = format.bits == 4 ? format.points[code]
                            : static_cast<float>(static_cast<int8_t>(static_cast<uint8_t>(code)));
    unit = product_rn(unit, format.step[j]);
  }
  store_row(z, row * z_stride + j, unit);
}

__device__ uint32_t encode_latent(const KvLatentCudaFormat& format, float projected, int j) {
  if (j >= format.rank) return 0;
  const float y = product_rn(projected, format.inverse_step[j]);
  if (format.bits == 8) {
    const float q = rintf(y);
    const float clamped = q >= 127 ? 127 : q <= -127 ? -127 : q == q ? q : 0;
    return static_cast<uint8_t>(static_cast<int8_t>(clamped));
  }
  int best = 0;
  float best_score = -INFINITY;
  for (int p = 0; p < 16; ++p) {
    const float score = fmaf(y, format.twice_points[p], format.minus_norms[p]);
    if (score > best_score) best_score = score, best = p;
  }
  return static_cast<uint32_t>(best);
}

// A warp for each row; a lane for each byte of its codes, one or two numbers, and for those that
// only pad the row. projected null: the codes are there and only decoded.
__global__ void __launch_bounds__(kWarps * 32)
    latents_kernel(KvLatentCudaFormat format, KvCodesCuda codes, const float* projected,
                   KvRowsCuda z, int64_t z_stride, int64_t num_rows) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= num_rows) return;
  const int each = 8 / format.bits;
  uint8_t* at = codes_of_row(codes, row);
  for (int first = static_cast<int>(threadIdx.x) % 32 * each; first < z_stride;
       first += 32 * each) {
    uint8_t& byte = at[first / each];
    uint32_t packed = 0;
    if (projected != nullptr) {
      for (int n = 0; n < each && first + n < z_stride; ++n) {
        packed |= encode_latent(format, projected[row * z_stride + first + n], first + n)
                  << n * format.bits;
      }
      if (first < format.rank) byte = static_cast<uint8_t>(packed);
    } else if (first < format.rank) {
      packed = byte;
    }
    for (int n = 0; n < each && first + n < z_stride; ++n) {
      const uint32_t code = packed >> n * format.bits & ((1u << format.bits) - 1);
      store_latent(format, code, row, first + n, z, z_stride);
    }
  }
}

__global__ void __launch_bounds__(kWarps * 32)
    store_rows_kernel(KvLiveRowsCuda live, int num_heads, int head_dim, int64_t num_rows,
                      const float* rows) {
  __shared__ float heads[kWarps][kMaxHeadDim];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t row;
  int head;
  if (!find_head(num_heads, num_rows, row, head)) return;
  float* x = heads[threadIdx.x / 32];
  const float* in = rows + (row * num_heads + head) * head_dim;
  for (int dim = lane; dim < head_dim; dim += 32) x[dim] = in[dim];
  __syncwarp();
  store_live(live, row, head, num_heads, head_dim, x, lane);
}

dim3 blocks_for_heads(int64_t num_rows, int64_t num_heads) {
  if (num_rows * num_heads > std::numeric_limits<int32_t>::max()) {
    fail(ErrorCode::kInvalidArgument, num_rows, " rows of ", num_heads, " heads at once on a GPU");
  }
  return dim3(static_cast<unsigned>((num_rows * num_heads + kWarps - 1) / kWarps));
}

void check_head_dim(int64_t head_dim) {
  if (head_dim < 8 || head_dim > kMaxHeadDim || head_dim % 8 != 0) {
    fail(ErrorCode::kUnsupported, "codes on a GPU: head_dim ", head_dim, " (multiples of 8 up to ",
         kMaxHeadDim, ")");
  }
}

}  // namespace

void decode_kv_rows_cuda(const KvRowsCudaFormat& format, const KvCodesCuda& codes,
                         const float* product, const KvRowsCuda& rows, int64_t num_rows,
                         const KvLiveRowsCuda& live, CudaStream stream) {
  check_head_dim(format.head_dim);
  if (num_rows == 0) return;
  if (decodes_heads_cuda(format, product, rows, live)) {
    decode_heads_cuda(format, codes, product, rows, num_rows, live, stream);
    return;
  }
  launch_dependent("decode_kv_rows", decode_rows_kernel,
                   blocks_for_heads(num_rows, format.num_heads), dim3(kWarps * 32), 0, stream, 1,
                   format, codes, product, rows, num_rows, live);
}

void encode_kv_rows_cuda(const KvRowsCudaFormat& format, const KvCodesCuda& codes,
                         const float* product, const float* exact, const KvRowsCuda& rows,
                         int64_t num_rows, CudaStream stream) {
  check_head_dim(format.head_dim);
  if (num_rows == 0) return;
  launch_dependent("encode_kv_rows", encode_rows_kernel,
                   blocks_for_heads(num_rows, format.num_heads), dim3(kWarps * 32), 0, stream, 1,
                   format, codes, product, exact, rows, num_rows);
}

void load_live_rows_cuda(const KvLiveRowsCuda& live, int64_t num_heads, int64_t head_dim,
                         int64_t num_rows, float* rows, CudaStream stream, const float* mean) {
  check_head_dim(head_dim);
  if (num_rows == 0) return;
  launch_dependent("load_live_rows", load_rows_kernel, blocks_for_heads(num_rows, num_heads),
                   dim3(kWarps * 32), 0, stream, 1, live, static_cast<int>(num_heads),
                   static_cast<int>(head_dim), num_rows, rows, mean);
}

void store_live_rows_cuda(const KvLiveRowsCuda& live, int64_t num_heads, int64_t head_dim,
                          int64_t num_rows, const float* rows, CudaStream stream) {
  check_head_dim(head_dim);
  if (num_rows == 0) return;
  launch_dependent("store_live_rows", store_rows_kernel, blocks_for_heads(num_rows, num_heads),
                   dim3(kWarps * 32), 0, stream, 1, live, static_cast<int>(num_heads),
                   static_cast<int>(head_dim), num_rows, rows);
}

namespace {

void run_latents(const KvLatentCudaFormat& format, const KvCodesCuda& codes, const float* projected,
                 const KvRowsCuda& z, int64_t z_stride, int64_t num_rows, CudaStream stream) {
  if (format.rank < 1 || z_stride < format.rank || (format.bits != 4 && format.bits != 8)) {
    fail(ErrorCode::kInvalidArgument, "latents of rank ", format.rank, " in rows of ", z_stride,
         ", ", format.bits, " bits (4 or 8)");
  }
  if (num_rows == 0) return;
  launch_dependent("kv_latents", latents_kernel, blocks_for_heads(num_rows, 1), dim3(kWarps * 32),
                   0, stream, 1, format, codes, projected, z, z_stride, num_rows);
}

}  // namespace

void decode_kv_latents_cuda(const KvLatentCudaFormat& format, const KvCodesCuda& codes,
                            const KvRowsCuda& z, int64_t z_stride, int64_t num_rows,
                            CudaStream stream) {
  run_latents(format, codes, nullptr, z, z_stride, num_rows, stream);
}

void encode_kv_latents_cuda(const KvLatentCudaFormat& format, const KvCodesCuda& codes,
                            const float* projected, const KvRowsCuda& z, int64_t z_stride,
                            int64_t num_rows, CudaStream stream) {
  run_latents(format, codes, projected, z, z_stride, num_rows, stream);
}

}  // namespace lathe
