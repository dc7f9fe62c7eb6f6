// The quantizer behind each of the kernels of quantize_cuda.h, and their launch. A kernel is
//   source -> rotation -> quantizer -> store
// where the source fills the registers: Source::load() for the whole block, after
// Source::prefetch() of what no other kernel writes.
//
// The arithmetic is that of quantize_activations_ref.cpp, operation by operation. Divisions by a
// power of two are multiplications by its inverse, which round the same; no multiplication and
// addition are fused where the reference does not.
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

// Nearest E2M1 number, ties to the even mantissa, saturating; zero is +0. Adding 1.5 * 2^23 steps
// of the grid at |r| rounds to a multiple of that step: 0.5 below 2, 1 below 4, 2 above.
__device__ inline float round_e2m1(float r) {
  r = fminf(fmaxf(r, -6.0f), 6.0f);
  const uint32_t binade = max(__float_as_uint(r) & kInfinityBits, 0x3f800000u);
  const float magic = __uint_as_float(binade + 0x0b400000u);
  return __fsub_rn(__fadd_rn(r, magic), magic);
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

// Bits of the largest magnitude of the vector, and of the 2^steps vectors around it.
__device__ inline uint32_t group_max_bits(const float (&x)[kVectorCols], int steps) {
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kVectorCols; ++i) bits = max(bits, __float_as_uint(x[i]) & kMagnitudeBits);
  for (int distance = 1; distance < 1 << steps; distance *= 2) {
    bits = max(bits, __shfl_xor_sync(kFullWarp, bits, distance));
  }
  return bits;
}

template <int kSlots>
__device__ uint32_t row_max_bits(const RowVectors<kSlots>& v, MaxScratch& scratch) {
  uint32_t bits = 0;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) bits = max(bits, group_max_bits(v.x[slot], 0));
  return block_max(bits, scratch);
}

__device__ inline void fill_nan(float (&x)[kVectorCols]) {
#pragma unroll
  for (int i = 0; i < kVectorCols; ++i) x[i] = __uint_as_float(0x7fc00000u);
}

// Replaces v by what is stored and returns the factor of the row. Slots beyond the row hold zeros.
// All threads of the block call it.
template <int kSlots, typename Out>
__device__ float quantize_vectors(RowVectors<kSlots>& v, const RowTarget<Out>& target,
                                  MaxScratch& scratch) {
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
        row_byte = static_cast<int>(block_max(static_cast<uint32_t>(row_byte), scratch));
      }
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        if (bytes[slot] < 0) {
          fill_nan(v.x[slot]);
          continue;
        }
        const float inverse = e8m0_value(254 - bytes[slot]);
        // Codes: the largest byte's groups have 6 * 2^6 = 384 as their largest number.
        const float scale = e8m0_value(kCodes ? max(bytes[slot] - row_byte + 133, 0) : bytes[slot]);
#pragma unroll
        for (int i = 0; i < kVectorCols; ++i) {
          v.x[slot][i] = __fmul_rn(round_e2m1(__fmul_rn(v.x[slot][i], inverse)), scale);
        }
      }
      return kCodes ? __fmul_rn(e8m0_value(row_byte), 0x1p-6f) : 1.0f;
    }

    case ActivationFormat::kNvfp4: {
      float global_scale = target.global_scale;
      if (global_scale == 0) {
        const uint32_t bits = row_max_bits(v, scratch);
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
        const float decoded = factored ? block : scale;
#pragma unroll
        for (int i = 0; i < kVectorCols; ++i) {
          const float code = scale > 0 ? 2.0f * round_e2m1(__fdiv_rn(v.x[slot][i], scale)) : 0.0f;
          v.x[slot][i] = __fmul_rn(code, decoded * 0.5f);
        }
      }
      return factored ? __fdiv_rn(1.0f, global_scale) : 1.0f;
    }

    case ActivationFormat::kFp8: {
      const uint32_t bits = row_max_bits(v, scratch);
      const bool finite = bits < kInfinityBits;
      const float scale =
          finite ? __fdiv_rn(__uint_as_float(bits), 448.0f) : __uint_as_float(0x7fc00000u);
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        if (!finite) fill_nan(v.x[slot]);
#pragma unroll
        for (int i = 0; i < kVectorCols; i += 2) {
          float& low = v.x[slot][i];
          float& high = v.x[slot][i + 1];
          if (!finite) continue;
          low = scale > 0 ? __fdiv_rn(low, scale) : 0.0f;
          high = scale > 0 ? __fdiv_rn(high, scale) : 0.0f;
          if constexpr (!kCodes) {
            round_e4m3(low, high);
            if (!factored && scale > 0) {
              low = __fmul_rn(low, scale);
              high = __fmul_rn(high, scale);
            }
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

// One block for each segment of each row: blockIdx.x = row * segments + segment.
template <typename Source, typename Out, int kSlots>
__global__ void __launch_bounds__(max_row_threads(kSlots))
    quantize_rows(const Source source, const RowTarget<Out> target, int num_vectors, int segments) {
  __shared__ typename Source::Scratch source_scratch;
  __shared__ MaxScratch max_scratch;
  const int64_t row = blockIdx.x / static_cast<unsigned>(segments);
  const int segment = static_cast<int>(blockIdx.x % static_cast<unsigned>(segments));
  const RowPlace place = {row, segment * static_cast<int>(blockDim.x) * kSlots, num_vectors};
  RowVectors<kSlots> v;
  typename Source::template Prefetched<kSlots> constants;
  source.prefetch(place, constants);
  wait_for_previous_kernel();
  allow_next_kernel();
  source.load(place, constants, v, source_scratch);
  if (target.data == nullptr) return;
  rotate_vectors(v, target.hadamard);
  const float factor = quantize_vectors(v, target, max_scratch);
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
};

// whole_row: something is computed over the whole row, so that one block has to hold it.
RowConfig choose_row_config(int64_t m, int64_t k, bool whole_row);

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
                     dim3(static_cast<unsigned>(config.threads)), 0, stream, 1, source, target,
                     num_vectors, config.segments);
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
  const RowConfig config = choose_row_config(m, k, whole_row || needs_whole_row(target));
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
