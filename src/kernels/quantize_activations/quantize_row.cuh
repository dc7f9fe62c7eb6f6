// The quantizer behind each of the kernels of quantize_cuda.h, and their launch. A kernel is
//   source -> rotation -> quantizer -> store
// where the source fills the registers: Source::load() for the whole block, after
// Source::prefetch() of what no other kernel writes.
//
// The numbers are those of quantize_activations_ref.cpp, bit for bit; each shorter way to them says
// why it gives the same. No multiplication and addition are fused where the reference does not.
#pragma once
#include "kernels/quantize_activations/quantize_cuda.h"
#include "kernels/quantize_activations/row_vectors.cuh"
#include "tensor/cuda_launch.cuh"

namespace lathe {

inline constexpr uint32_t kMagnitudeBits = 0x7fffffffu;
inline constexpr uint32_t kInfinityBits = 0x7f800000u;  // not finite: this or above
inline constexpr float kSmallestAmax = 0x1p-100f;

// 2^(byte - 127) for 0..254.
__device__ inline float e8m0_value(int byte) {
  return __uint_as_float(byte == 0 ? 0x00400000u : static_cast<uint32_t>(byte) << 23);
}

// The scale byte of a group of MXFP4 (mantissa_bits 1, emax 2) or MXFP8 (3, 8).
__device__ inline int mx_scale_byte(uint32_t amax_bits, int mantissa_bits, int emax) {
  const int byte = static_cast<int>((amax_bits + (1u << (22 - mantissa_bits))) >> 23) - emax;
  return min(max(byte, 0), 254);
}

// Correctly rounded quotients by one divisor, for quotients that are rounded to a grid of steps of
// 2^-10 and more behind it: where they are smaller than that, they may be wrong, but stay small.
// With r = 1 / s rounded correctly, q = x r and its residual x - q s give the quotient
// (Markstein 1990); 10^9 random pairs, many with extreme significands, gave no other bits than the
// division. A power of two in front keeps the residual of small numbers out of the subnormals.
struct Divisor {
  float shift;
  float divisor;  // shifted
  float inverse;  // 0 for 0

  __device__ static Divisor of(float s) {
    const float shift = s == 0 ? 1.0f : s < 0x1p-60f ? 0x1p96f : s > 0x1p60f ? 0x1p-96f : 1.0f;
    const float divisor = __fmul_rn(s, shift);
    return {shift, divisor, s == 0 ? 0.0f : __frcp_rn(divisor)};
  }

  // Of all numbers of the vector, in place. -0 stays -0. By 0: zeros.
  __device__ void divide(float (&x)[kVectorCols]) const {
    if (shift != 1.0f) {
#pragma unroll
      for (int i = 0; i < kVectorCols; ++i) x[i] = __fmul_rn(x[i], shift);
    }
#pragma unroll
    for (int i = 0; i < kVectorCols; ++i) {
      const float q = __fmul_rn(x[i], inverse);
      const float excess = __fmaf_rn(q, divisor, -x[i]);
      x[i] = __fmaf_rn(excess, -inverse, q);
    }
  }
};

// Adding 1.5 * 2^23 steps and subtracting it again rounds to a multiple of the step, ties to even;
// zero becomes +0. The steps of E2M1 at x are 0.5, 1 and 2 times its scale: half the binade of x,
// but at least half the scale. scale_bits: of the scale, a power of two.
__device__ inline float round_to_half_binade(float x, uint32_t scale_bits) {
  const uint32_t binade = max(__float_as_uint(x) & kInfinityBits, scale_bits);
  const float magic = __uint_as_float(binade + 0x0b400000u);
  return __fsub_rn(__fadd_rn(x, magic), magic);
}

// Nearest E2M1 number, ties to the even mantissa, saturating; zero is +0.
__device__ inline float round_e2m1(float r) {
  return round_to_half_binade(fminf(fmaxf(r, -6.0f), 6.0f), 0x3f800000u);
}

// x to E2M1 * 2^(byte - 127), where that scale is the group's: it leaves nothing above 7 times it,
// so nothing saturates, and rounding x itself to the scaled grid gives the same bits as dividing,
// rounding and multiplying. Scales at the ends of the range are moved away from them first; that is
// exact, and so is the way back, but for what overflows.
__device__ inline void round_mxfp4(float (&x)[kVectorCols], int byte) {
  constexpr int kShift = 64;
  const int shift = byte < kShift ? kShift : byte > 254 - kShift ? -kShift : 0;
  if (shift != 0) {
    const float factor = e8m0_value(127 + shift);
#pragma unroll
    for (int i = 0; i < kVectorCols; ++i) x[i] = __fmul_rn(x[i], factor);
  }
  const auto scale_bits = static_cast<uint32_t>(byte + shift) << 23;
#pragma unroll
  for (int i = 0; i < kVectorCols; ++i) x[i] = round_to_half_binade(x[i], scale_bits);
  if (shift != 0) {
    const float factor = e8m0_value(127 - shift);
#pragma unroll
    for (int i = 0; i < kVectorCols; ++i) x[i] = __fmul_rn(x[i], factor);
  }
}

// Rounds to an integer, |x| < 2^22; zero is +0.
__device__ inline float round_integer(float x) {
  return __fsub_rn(__fadd_rn(x, 12582912.0f), 12582912.0f);
}

// Nearest E4M3 numbers of a pair, as floats.
__device__ inline void round_e4m3(float& low, float& high) {
  const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(
      static_cast<__nv_fp8x2_storage_t>(e4m3_pair(low, high)), __NV_E4M3);
  const float2 values = __half22float2(__half2(halves));
  low = values.x;
  high = values.y;
}

__device__ inline float round_e4m3(float x) {
  float unused = 0;
  round_e4m3(x, unused);
  return x;
}

template <typename Out>
struct RowTarget {
  Out* data;
  float* row_scales;
  float global_scale;
  ActivationFormat format;
  int hadamard;
};

// max() that keeps NaN, of magnitudes.
__device__ inline float max_magnitude(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(fabsf(b)));
  return result;
}

// Bits of the largest magnitude of the vector, and of the 2^steps vectors around it; NaN and
// infinity count as larger than all others.
__device__ inline uint32_t group_max_bits(const float (&x)[kVectorCols], int steps) {
  float amax = fabsf(x[0]);
#pragma unroll
  for (int i = 1; i < kVectorCols; ++i) amax = max_magnitude(amax, x[i]);
  uint32_t bits = __float_as_uint(amax) & kMagnitudeBits;
  for (int distance = 1; distance < 1 << steps; distance *= 2) {
    bits = max(bits, __shfl_xor_sync(kFullWarp, bits, distance));
  }
  return bits;
}

template <int kSlots>
__device__ uint32_t row_max_bits(const RowPlace& place, const RowVectors<kSlots>& v,
                                 RowScratch& scratch) {
  uint32_t bits = 0;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) bits = max(bits, group_max_bits(v.x[slot], 0));
  return row_max(place, bits, scratch);
}

__device__ inline void fill_nan(float (&x)[kVectorCols]) {
#pragma unroll
  for (int i = 0; i < kVectorCols; ++i) x[i] = __uint_as_float(0x7fc00000u);
}

// Replaces v by what is stored and returns the factor of the row. Slots beyond the row hold zeros.
// All threads of the block call it.
template <int kSlots, typename Out>
__device__ float quantize_vectors(const RowPlace& place, RowVectors<kSlots>& v,
                                  const RowTarget<Out>& target, RowScratch& scratch) {
  constexpr bool kCodes = std::is_same_v<Out, __nv_fp8_e4m3>;
  // bf16 holds E2M1 * block scale and E4M3 exactly, their product with a float it does not.
  const bool factored =
      kCodes || (std::is_same_v<Out, __nv_bfloat16> && target.row_scales != nullptr);
  switch (target.format) {
    case ActivationFormat::kNone:
      return 1;

    case ActivationFormat::kInt8:
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const uint32_t bits = group_max_bits(v.x[slot], 2);
        if (bits >= kInfinityBits) {
          fill_nan(v.x[slot]);
          continue;
        }
        const float amax = __uint_as_float(bits);
        const bool zero = amax < kSmallestAmax;
        const float scale = zero ? 0.0f : __fdiv_rn(amax, 127.0f);
        const float inverse = zero ? 0.0f : __fdiv_rn(127.0f, amax);
#pragma unroll
        for (int i = 0; i < kVectorCols; ++i) {
          v.x[slot][i] = __fmul_rn(round_integer(__fmul_rn(v.x[slot][i], inverse)), scale);
        }
      }
      return 1;

    case ActivationFormat::kMxfp4: {
      int bytes[kSlots];  // -1: not finite
      int row_byte = 0;
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const uint32_t bits = group_max_bits(v.x[slot], 2);
        bytes[slot] = bits >= kInfinityBits ? -1 : mx_scale_byte(bits, 1, 2);
        row_byte = max(row_byte, bytes[slot]);
      }
      if constexpr (kCodes) {
        row_byte = static_cast<int>(row_max(place, static_cast<uint32_t>(row_byte), scratch));
      }
      const float fold = e8m0_value(254 - row_byte);
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        if (bytes[slot] < 0) {
          fill_nan(v.x[slot]);
          continue;
        }
        round_mxfp4(v.x[slot], bytes[slot]);
        if constexpr (kCodes) {
          // The largest byte's groups have 6 * 2^6 = 384 as their largest number.
#pragma unroll
          for (int i = 0; i < kVectorCols; ++i) {
            v.x[slot][i] = __fmul_rn(__fmul_rn(v.x[slot][i], fold), 64.0f);
          }
        }
      }
      return kCodes ? __fmul_rn(e8m0_value(row_byte), 0x1p-6f) : 1.0f;
    }

    case ActivationFormat::kNvfp4: {
      float global_scale = target.global_scale;
      if (global_scale == 0) {
        const uint32_t bits = row_max_bits(place, v, scratch);
        const float amax = __uint_as_float(bits);
        global_scale = bits >= kInfinityBits  ? __uint_as_float(0x7fc00000u)
                       : amax < kSmallestAmax ? 1.0f
                                              : __fdiv_rn(2688.0f, amax);
      }
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const uint32_t bits = group_max_bits(v.x[slot], 1);
        if (bits >= kInfinityBits || global_scale != global_scale) {
          fill_nan(v.x[slot]);
          continue;
        }
        const float amax = __uint_as_float(bits);
        const float block = round_e4m3(__fmul_rn(global_scale, __fdiv_rn(amax, 6.0f)));
        const float scale = __fdiv_rn(block, global_scale);
        // Half the scale is what the reference multiplies twice the number with.
        const float decoded = factored ? block : 2 * (scale * 0.5f);
        Divisor::of(scale).divide(v.x[slot]);
#pragma unroll
        for (int i = 0; i < kVectorCols; ++i) {
          v.x[slot][i] = __fmul_rn(round_e2m1(v.x[slot][i]), decoded);
        }
      }
      return factored ? __fdiv_rn(1.0f, global_scale) : 1.0f;
    }

    case ActivationFormat::kFp8: {
      const uint32_t bits = row_max_bits(place, v, scratch);
      const bool finite = bits < kInfinityBits;
      const float scale =
          finite ? __fdiv_rn(__uint_as_float(bits), 448.0f) : __uint_as_float(0x7fc00000u);
      const Divisor divisor = Divisor::of(scale);
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        float(&x)[kVectorCols] = v.x[slot];
        if (!(scale > 0)) {
#pragma unroll
          for (int i = 0; i < kVectorCols; ++i) x[i] = finite ? 0.0f : scale;
          continue;
        }
        divisor.divide(x);
        if constexpr (!kCodes) {
          const float decoded = factored ? 1.0f : scale;
#pragma unroll
          for (int i = 0; i < kVectorCols; i += 2) {
            round_e4m3(x[i], x[i + 1]);
            x[i] = __fmul_rn(x[i], decoded);
            x[i + 1] = __fmul_rn(x[i + 1], decoded);
          }
        }
      }
      return factored ? scale : 1.0f;
    }

    case ActivationFormat::kMxfp8:
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const uint32_t bits = group_max_bits(v.x[slot], 2);
        if (bits >= kInfinityBits) {
          fill_nan(v.x[slot]);
          continue;
        }
        const int byte = mx_scale_byte(bits, 3, 8);
        const float scale = e8m0_value(byte);
        const float inverse = e8m0_value(254 - byte);
#pragma unroll
        for (int i = 0; i < kVectorCols; i += 2) {
          float low = __fmul_rn(v.x[slot][i], inverse);
          float high = __fmul_rn(v.x[slot][i + 1], inverse);
          round_e4m3(low, high);
          v.x[slot][i] = __fmul_rn(low, scale);
          v.x[slot][i + 1] = __fmul_rn(high, scale);
        }
      }
      return 1;
  }
  return 1;
}

// One block for each segment of each row: blockIdx.x = row * segments + segment. is_cluster: the
// segments of a row are a cluster.
template <typename Source, typename Out, int kSlots>
__global__ void __launch_bounds__(max_row_threads(kSlots), min_row_blocks(kSlots))
    quantize_rows(const Source source, const RowTarget<Out> target, int num_vectors, int segments,
                  bool is_cluster) {
  __shared__ typename Source::Scratch source_scratch;
  __shared__ RowScratch max_scratch;
  const int64_t row = blockIdx.x / static_cast<unsigned>(segments);
  const int segment = static_cast<int>(blockIdx.x % static_cast<unsigned>(segments));
  const RowPlace place = {row, segment * static_cast<int>(blockDim.x) * kSlots, num_vectors,
                          is_cluster ? segments : 1};
  if (is_cluster) cluster_arrive();
  RowVectors<kSlots> v;
  typename Source::template Prefetched<kSlots> constants;
  source.prefetch(place, constants);
  wait_for_previous_kernel();
  allow_next_kernel();
  if (is_cluster) cluster_wait();  // all of its blocks run, so their memory may be written
  source.load(place, constants, v, source_scratch);
  if (target.data == nullptr) return;
  rotate_vectors(v, target.hadamard);
  const float factor = quantize_vectors(place, v, target, max_scratch);
  Out* out = target.data + row * num_vectors * kVectorCols;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    if (place.has(slot)) store_vector(out + place.column(slot), v.x[slot]);
  }
  if (target.row_scales != nullptr && segment == 0 && threadIdx.x == 0) {
    target.row_scales[row] = factor;
  }
}

struct RowConfig {
  int slots;     // vectors a thread holds: 1, 2, 4 or 8
  int threads;   // a multiple of 32
  int segments;  // blocks for a row
  bool is_cluster;
};

// How many vectors a thread of an operation best holds where there are many rows: in segments that
// are independent, and in whole rows.
struct ManyRowsSlots {
  int of_segments;
  int of_rows;
};

// whole_row: something is computed over the whole row, so that a block or a cluster has to hold it.
// Few rows: as many threads as there are vectors, for the shortest way through, and a cluster where
// a block does not have so many. Many rows: what was fastest on an H100 (fused_cuda_bench,
// 2026-11).
RowConfig choose_row_config(int64_t m, int64_t k, bool whole_row, const ManyRowsSlots& many);

bool needs_whole_row(const QuantizedTarget& target);

// Throws kInvalidArgument on what a target cannot be.
void check_target(const QuantizedTarget& target, int64_t m, int64_t k);
void check_aligned(const void* pointer, const char* name);

template <typename Source, typename Out>
void launch_rows(const Source& source, const QuantizedTarget& to, int64_t m, int64_t k,
                 const RowConfig& config, cudaStream_t stream) {
  const RowTarget<Out> target = {static_cast<Out*>(to.data), to.row_scales, to.global_scale,
                                 to.format, static_cast<int>(to.hadamard)};
  const auto num_vectors = static_cast<int>(k / kVectorCols);
  const auto launch = [&](auto kernel) {
    launch_dependent("quantize_rows", kernel, dim3(static_cast<unsigned>(m * config.segments)),
                     dim3(static_cast<unsigned>(config.threads)), 0, stream,
                     config.is_cluster ? static_cast<unsigned>(config.segments) : 1, source, target,
                     num_vectors, config.segments, config.is_cluster);
  };
  switch (config.slots) {
    case 1:
      return launch(quantize_rows<Source, Out, 1>);
    case 2:
      return launch(quantize_rows<Source, Out, 2>);
    case 4:
      return launch(quantize_rows<Source, Out, 4>);
    default:
      return launch(quantize_rows<Source, Out, 8>);
  }
}

template <typename Source>
void launch_rows(const Source& source, const QuantizedTarget& target, int64_t m, int64_t k,
                 bool whole_row, cudaStream_t stream) {
  const ManyRowsSlots many = {Source::kManyRowsSlots,
                              Source::many_whole_rows_slots(k / kVectorCols)};
  const RowConfig config = choose_row_config(m, k, whole_row || needs_whole_row(target), many);
  switch (target.element) {
    case CudaElement::kF32:
      return launch_rows<Source, float>(source, target, m, k, config, stream);
    case CudaElement::kBF16:
      return launch_rows<Source, __nv_bfloat16>(source, target, m, k, config, stream);
    case CudaElement::kE4M3:
      return launch_rows<Source, __nv_fp8_e4m3>(source, target, m, k, config, stream);
  }
}

}  // namespace lathe
