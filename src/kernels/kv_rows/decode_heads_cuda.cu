// A sixteenth of head_dim lanes for each row, all heads of it one after the other, in registers
// (head_lanes.h). Per number some 25 instructions, 2 to 4 of them exchanges between lanes, against
// 4.3 bytes that are read and written (8.3 with a product): the memory binds.
//   - Codes and the scale of the next head are on their way while this one is decoded.
//   - cos and sin are loaded once for all heads of a row, block numbers and positions too.
//   - Points lie in shared memory; a table of 16 pairs (2 bits in 2D) has every point in banks of
//     its own, so 32 lanes look up without conflicts.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/kv_rows/decode_heads_cuda.h"
#include "kernels/kv_rows/head_lanes.h"
#include "kernels/kv_rows/kv_row_codes_cuda.cuh"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = static_cast<int>(kBlockSize);

struct DecodeHeads {
  KvRowsCudaFormat format;
  KvCodesCuda codes;
  const float* product;
  KvRowsCuda rows;
  int64_t num_rows;
  KvLiveRowsCuda live;
  float factor;  // of the head's only piece
  int heads;     // of a row in a thread
};

class DeviceLane {
 public:
  __device__ explicit DeviceLane(int id) : id_(id) {}
  __device__ int id() const { return id_; }
  __device__ float exchange(float x, int mask) const {
    return __shfl_xor_sync(0xffffffffu, x, mask);
  }

 private:
  int id_;
};

__device__ void load_run(const float* from, float (&x)[8]) {
  const float4 low = reinterpret_cast<const float4*>(from)[0];
  const float4 high = reinterpret_cast<const float4*>(from)[1];
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

__device__ void store_run(float* to, const float* x) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
__device__ uint32_t bf16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ void store_run(__nv_bfloat16* to, const float* x) {
  *reinterpret_cast<uint4*>(to) = make_uint4(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]),
                                             bf16_pair(x[4], x[5]), bf16_pair(x[6], x[7]));
}
__device__ void store_run(__nv_fp8_e4m3* to, const float* x, float scale) {
  uint32_t words[2] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t byte = __nv_cvt_float_to_fp8(x[i] / scale, __NV_SATFINITE, __NV_E4M3);
    words[i / 4] |= byte << i % 4 * 8;
  }
  *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
}

// The aligned words with the first and the last of some bytes, up to four, that begin anywhere.
struct WordPair {
  uint32_t first, last;

  __device__ static WordPair load(const uint8_t* bytes, int count) {
    return {*aligned(bytes), *aligned(bytes + count - 1)};
  }
  // shift: 8 * (where they begin mod 4).
  __device__ uint32_t word(int shift) const { return __funnelshift_r(first, last, shift); }

 private:
  __device__ static const uint32_t* aligned(const uint8_t* byte) {
    return reinterpret_cast<const uint32_t*>(reinterpret_cast<uintptr_t>(byte) & ~uintptr_t{3});
  }
};

// What is stored of a head, as far as one lane needs it. Words are put together where they are
// used: loading them ahead would wait for them otherwise.
struct LaneCodes {
  WordPair scale;
  int scale_shift;
  WordPair codes[2];  // of both runs
};

// Where a lane finds them, head by head.
template <int kHeadDim, int kBits>
class LaneCodesReader {
 public:
  __device__ LaneCodesReader(const uint8_t* scale, int scale_size, const uint8_t* packed)
      : scale_(scale),
        packed_(packed),
        scale_size_(scale_size),
        scale_mask_(0xffffffffu >> (32 - 8 * scale_size)),
        shift_(shift_of(packed)) {}
  // Of the next head.
  __device__ LaneCodes load() {
    const LaneCodes codes = {
        WordPair::load(scale_, scale_size_),
        shift_of(scale_),
        {WordPair::load(packed_, kBits), WordPair::load(packed_ + kRunBytes, kBits)}};
    scale_ += scale_size_, packed_ += 2 * kRunBytes;
    return codes;
  }
  __device__ uint32_t scale(const LaneCodes& codes) const {
    return codes.scale.word(codes.scale_shift) & scale_mask_;
  }
  __device__ uint32_t word(const LaneCodes& codes, int run) const {
    return codes.codes[run].word(shift_);
  }

 private:
  static constexpr int kRunBytes = kHeadDim / 2 * kBits / 8;  // of half a head
  static_assert(kRunBytes % 4 == 0);                          // shift_ is every run's
  __device__ static int shift_of(const uint8_t* at) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(at) % 4) * 8;
  }
  const uint8_t *scale_, *packed_;
  int scale_size_;
  uint32_t scale_mask_;
  int shift_;
};

// kE4M3: the live blocks' element. Its divisions would cost the others registers.
// product may be what rows point to: a number is read before it is written, by the same thread.
template <int kHeadDim, int kGridDim, int kCodeBits, bool kE4M3>
__global__ void __launch_bounds__(kThreads, 3) decode_heads_kernel(DecodeHeads args) {
  using Heads = HeadLanes<kHeadDim>;
  constexpr int kLanes = Heads::kLanes, kHalf = Heads::kHalf, kRun = Heads::kRun;
  constexpr int kBits = kCodeBits / kGridDim;  // of a number
  constexpr int kPointFloats = (1 << kCodeBits) * kGridDim;
  __shared__ GridPoint<kGridDim> points[1 << kCodeBits];
  for (int i = static_cast<int>(threadIdx.x); i < kPointFloats; i += kThreads) {
    reinterpret_cast<float*>(points)[i] = args.format.points[i];  // they never change
  }
  wait_for_previous_kernel();
  allow_next_kernel();
  __syncthreads();

  const KvLiveRowsCuda& live = args.live;
  const int num_heads = args.format.num_heads, width = num_heads * kHeadDim;
  const DeviceLane lane(static_cast<int>(threadIdx.x) % kLanes);
  int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  // Lanes without a row go along with the last one's, for their exchanges, and store nothing.
  const bool is_row = row < args.num_rows;
  if (!is_row) row = args.num_rows - 1;
  const int first_head = static_cast<int>(blockIdx.y) * args.heads;

  const int scale_size = scale_bytes(args.format.scale);
  const uint8_t* stored = codes_of_row(args.codes, row);
  LaneCodesReader<kHeadDim, kBits> reader(
      stored + first_head * scale_size, scale_size,
      stored + num_heads * scale_size + first_head * (kHeadDim * kBits / 8) + lane.id() * kBits);
  LaneCodes next = reader.load();

  float cos[kRun], sin[kRun];
  uint8_t* out = nullptr;  // of first_head, in a live block
  int at[2] = {};          // of both runs in it, in elements
  const bool turned = live.blocks != nullptr && live.cos != nullptr && !live.is_value;
  if (turned) {
    const int64_t angles = rope_row(live, row) * kHalf + lane.id() * kRun;
    load_run(live.cos + angles, cos);
    load_run(live.sin + angles, sin);
  }
  if (live.blocks != nullptr && is_row) {
    out = live_head(live, row, first_head, num_heads, kHeadDim);
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      at[run] = kv_cuda_offset(live.layer.element, kHeadDim, static_cast<int>(row % kBlock),
                               Heads::dim(lane.id(), run * kRun));
    }
  }

  int column = first_head * kHeadDim + lane.id() * kRun;  // of the first run
  const int64_t begin = row * width;
  for (int head = 0; head < args.heads; ++head, column += kHeadDim) {
    const LaneCodes codes = next;
    if (head + 1 < args.heads) next = reader.load();
    float x[Heads::kNumbers];
    const float factor =
        product_rn(scale_value(args.format.scale, reader.scale(codes)), args.factor);
    const uint32_t words[2] = {reader.word(codes, 0), reader.word(codes, 1)};
    Heads::template decode<kGridDim, kCodeBits>(lane, words, points, args.format.hadamard, factor,
                                                x);
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      const int64_t place = begin + column + run * kHalf;
      float predicted[kRun] = {}, other[kRun];
      if (args.product != nullptr) load_run(args.product + place, predicted);
      if (args.format.sigma != nullptr) {
        load_run(args.format.sigma + column + run * kHalf, other);
#pragma unroll
        for (int i = 0; i < kRun; ++i) x[run * kRun + i] = product_rn(x[run * kRun + i], other[i]);
      }
      if (args.format.bias != nullptr) {
        load_run(args.format.bias + column + run * kHalf, other);
#pragma unroll
        for (int i = 0; i < kRun; ++i) predicted[i] = sum_rn(predicted[i], other[i]);
      }
#pragma unroll
      for (int i = 0; i < kRun; ++i) x[run * kRun + i] = sum_rn(predicted[i], x[run * kRun + i]);
      if (args.rows.data == nullptr || !is_row) continue;
      if (args.rows.element == CudaElement::kBF16) {
        store_run(static_cast<__nv_bfloat16*>(args.rows.data) + place, x + run * kRun);
      } else {
        store_run(static_cast<float*>(args.rows.data) + place, x + run * kRun);
      }
    }
    if (out == nullptr) continue;
    if (turned) Heads::rope(cos, sin, x);
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      if constexpr (kE4M3) {
        store_run(reinterpret_cast<__nv_fp8_e4m3*>(out) + at[run], x + run * kRun,
                  live.is_value ? live.layer.value_scale : live.layer.key_scale);
      } else if (live.layer.element == KvCudaElement::kBF16) {
        store_run(reinterpret_cast<__nv_bfloat16*>(out) + at[run], x + run * kRun);
      } else {
        store_run(reinterpret_cast<float*>(out) + at[run], x + run * kRun);
      }
    }
    out += kv_cuda_head_bytes(live.layer.element, kHeadDim);
  }
}

using Kernel = void (*)(DecodeHeads);

// Null: there is none for such codes.
template <int kHeadDim, bool kE4M3>
Kernel kernel_of(int grid_dim, int code_bits) {
  switch (grid_dim * 16 + code_bits) {
    case 0x12:
      return decode_heads_kernel<kHeadDim, 1, 2, kE4M3>;
    case 0x13:
      return decode_heads_kernel<kHeadDim, 1, 3, kE4M3>;
    case 0x14:
      return decode_heads_kernel<kHeadDim, 1, 4, kE4M3>;
    case 0x24:
      return decode_heads_kernel<kHeadDim, 2, 4, kE4M3>;
    case 0x26:
      return decode_heads_kernel<kHeadDim, 2, 6, kE4M3>;
    case 0x28:
      return decode_heads_kernel<kHeadDim, 2, 8, kE4M3>;
    case 0x48:
      return decode_heads_kernel<kHeadDim, 4, 8, kE4M3>;
    default:
      return nullptr;
  }
}

template <bool kE4M3>
Kernel kernel_of(const KvRowsCudaFormat& format) {
  switch (format.head_dim) {
    case 64:
      return kernel_of<64, kE4M3>(format.grid_dim, format.code_bits);
    case 128:
      return kernel_of<128, kE4M3>(format.grid_dim, format.code_bits);
    case 256:
      return kernel_of<256, kE4M3>(format.grid_dim, format.code_bits);
    default:
      return nullptr;
  }
}

Kernel kernel_of(const KvRowsCudaFormat& format, const KvLiveRowsCuda& live) {
  const bool is_e4m3 = live.blocks != nullptr && live.layer.element == KvCudaElement::kE4M3;
  return is_e4m3 ? kernel_of<true>(format) : kernel_of<false>(format);
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

bool decodes_heads_cuda(const KvRowsCudaFormat& format, const float* product,
                        const KvRowsCuda& rows, const KvLiveRowsCuda& live) {
  for (const void* pointer :
       {static_cast<const void*>(product), static_cast<const void*>(rows.data),
        static_cast<const void*>(format.sigma), static_cast<const void*>(format.bias)}) {
    if (!is_aligned(pointer)) return false;
  }
  if (live.blocks != nullptr) {
    if (kv_cuda_is_coded(live.layer.element) || live.key_offset != nullptr) return false;
    if (!live.is_value && live.cos != nullptr &&
        (live.rotary_dim != format.head_dim || !is_aligned(live.cos) || !is_aligned(live.sin))) {
      return false;
    }
  }
  return kernel_of(format, live) != nullptr;
}

int heads_per_thread(int64_t num_rows, int num_heads, int head_dim) {
  // Twice what is in flight on 132 multiprocessors with three blocks each.
  constexpr int64_t kEnough = int64_t{2} * 132 * 3 * kThreads;
  int heads = num_heads;
  for (int divisor = 1; divisor <= num_heads; ++divisor) {
    if (num_heads % divisor != 0) continue;
    heads = num_heads / divisor;
    if (num_rows * (head_dim / 16) * divisor >= kEnough) break;
  }
  return heads;
}

void decode_heads_cuda(const KvRowsCudaFormat& format, const KvCodesCuda& codes,
                       const float* product, const KvRowsCuda& rows, int64_t num_rows,
                       const KvLiveRowsCuda& live, CudaStream stream) {
  const int64_t rows_per_block = kThreads / (format.head_dim / 16);
  const int heads = heads_per_thread(num_rows, format.num_heads, format.head_dim);
  const int64_t piece = format.hadamard ? format.head_dim : 1;
  const dim3 grid(static_cast<unsigned>((num_rows + rows_per_block - 1) / rows_per_block),
                  static_cast<unsigned>(format.num_heads / heads));
  launch_dependent("decode_heads", kernel_of(format, live), grid, dim3(kThreads), 0, stream, 1,
                   DecodeHeads{format, codes, product, rows, num_rows, live,
                               decode_factor(format.head_dim, piece, 1), heads});
}

}  // namespace lathe
