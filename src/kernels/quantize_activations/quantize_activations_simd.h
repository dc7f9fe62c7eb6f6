// quantize_activations() in vectors, for every vector length (V is IntAvx2 or IntAvx512). The
// arithmetic is that of the reference, operation by operation; only the rotation may differ from it
// by its rounding (butterflies in fp32 instead of sums in double).
#pragma once
#include <cstdint>

#include "kernels/hadamard/hadamard_simd.h"
#include "kernels/quantize_activations/quantize_activations.h"

namespace lathe {
namespace {

inline constexpr uint32_t kInfinityBits = 0x7f800000;  // not finite: this or above
inline constexpr float kSmallestAmax = 0x1p-100f;      // below it, 127 / amax might overflow

inline float float_from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Bits of the largest magnitude: as integers they order like the numbers, with NaN and infinity on
// top. count: any; a multiple of kWidth is fast.
template <typename V>
uint32_t max_bits(const float* x, int64_t count) {
  const auto mask = V::set_int(0x7fffffff);
  auto largest = V::set_int(0);
  int64_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) {
    largest = V::max_u32(largest, V::and_int(V::load_int(x + i), mask));
  }
  uint32_t result = V::largest_u32(largest);
  for (; i < count; ++i) {
    const uint32_t bits = bits_of(x[i]) & 0x7fffffffu;
    result = bits > result ? bits : result;
  }
  return result;
}

// Power-of-two scale of a group; see mx_scale() of the reference.
inline float mx_scale_from_bits(uint32_t amax_bits, int mantissa_bits, int emax) {
  const uint32_t half_step = 1u << (22 - mantissa_bits);
  int byte = static_cast<int>((amax_bits + half_step) >> 23) - emax;
  byte = byte < 0 ? 0 : byte > 254 ? 254 : byte;
  return float_from_bits(byte == 0 ? 0x00400000u : static_cast<uint32_t>(byte) << 23);
}

// Nearest E4M3 number of a >= 0, ties to even, saturating.
template <typename V>
typename V::F round_e4m3(typename V::F a) {
  a = V::min(a, V::set(448.0f));
  // Normal numbers: three bits of mantissa stay. Below 2^-6: multiples of 2^-9, which is the last
  // place of floats in [2^14, 2^15).
  const auto bits = V::as_int(a);
  const auto odd = V::and_int(V::template shift_right<20>(bits), V::set_int(1));
  const auto rounded = V::add_int(V::add_int(bits, V::set_int(0x7ffff)), odd);
  const auto normal = V::as_float(V::and_int(rounded, V::set_int(~0xfffff)));
  const auto small = V::sub(V::add(a, V::set(0x1p14f)), V::set(0x1p14f));
  return V::select_less(a, V::set(0x1p-6f), small, normal);
}

// Twice the nearest E2M1 number (0, 1, 2, 3, 4, 6, 8, 12 and sign), ties to the even mantissa.
template <typename V>
typename V::I round_e2m1_doubled(typename V::F r) {
  const auto sign_mask = V::set_int(INT32_MIN);
  const auto a = V::as_float(V::and_int(V::as_int(r), V::set_int(0x7fffffff)));
  const auto one = V::set_int(1);
  const auto two = V::set_int(2);
  auto code = V::where_greater(a, V::set(0.25f), one);
  code = V::add_int(code, V::where_greater_equal(a, V::set(0.75f), one));
  code = V::add_int(code, V::where_greater(a, V::set(1.25f), one));
  code = V::add_int(code, V::where_greater_equal(a, V::set(1.75f), one));
  code = V::add_int(code, V::where_greater(a, V::set(2.5f), two));
  code = V::add_int(code, V::where_greater_equal(a, V::set(3.5f), two));
  code = V::add_int(code, V::where_greater(a, V::set(5.0f), V::set_int(4)));
  // Negative where the sign bit is set: (code ^ -1) + 1.
  const auto negative = V::template shift_right_signed<31>(V::and_int(V::as_int(r), sign_mask));
  return V::sub_int(V::xor_int(code, negative), negative);
}

// How the values of one group become numbers of the format.
struct GroupScale {
  float scale;    // of the values
  float inverse;  // int8
  bool finite;
};

inline GroupScale choose_group_scale(ActivationFormat format, uint32_t amax_bits,
                                     float global_scale, float (*round_scale)(float)) {
  if (amax_bits >= kInfinityBits || global_scale != global_scale) {
    return {float_from_bits(0x7fc00000), 0, false};
  }
  const float amax = float_from_bits(amax_bits);
  switch (format) {
    case ActivationFormat::kInt8:
      if (amax < kSmallestAmax) return {0, 0, true};
      return {amax / 127, 127 / amax, true};
    case ActivationFormat::kMxfp4:
      return {mx_scale_from_bits(amax_bits, 1, 2), 0, true};
    case ActivationFormat::kNvfp4:
      return {round_scale(global_scale * (amax / 6)) / global_scale, 0, true};
    case ActivationFormat::kFp8:
      return {amax / 448, 0, true};
    case ActivationFormat::kMxfp8:
      return {mx_scale_from_bits(amax_bits, 3, 8), 0, true};
    case ActivationFormat::kNone:
      break;
  }
  return {1, 0, true};
}

template <typename V>
float round_e4m3_scalar(float value) {
  float lanes[V::kWidth];
  V::store(lanes, round_e4m3<V>(V::set(value)));
  return lanes[0];
}

// kWidth values: integer codes (int8, mxfp4, nvfp4).
template <typename V>
typename V::I integer_codes(ActivationFormat format, const GroupScale& group, typename V::F x) {
  if (format == ActivationFormat::kInt8) {
    return V::round_to_int(V::mul(x, V::set(group.inverse)));
  }
  return round_e2m1_doubled<V>(V::div(x, V::set(group.scale)));
}

// kWidth values rounded to the format's grid, as floats.
template <typename V>
typename V::F rounded_values(ActivationFormat format, const GroupScale& group, typename V::F x) {
  if (!group.finite) return V::set(group.scale);
  if (!(group.scale > 0)) return V::zero();
  if (format == ActivationFormat::kFp8 || format == ActivationFormat::kMxfp8) {
    const auto r = V::div(x, V::set(group.scale));
    const auto sign = V::and_int(V::as_int(r), V::set_int(INT32_MIN));
    const auto a = V::as_float(V::and_int(V::as_int(r), V::set_int(0x7fffffff)));
    const auto value = V::as_float(V::or_int(V::as_int(round_e4m3<V>(a)), sign));
    return V::mul(value, V::set(group.scale));
  }
  const float scale = format == ActivationFormat::kInt8 ? group.scale : group.scale * 0.5f;
  return V::mul(V::float_from_int(integer_codes<V>(format, group, x)), V::set(scale));
}

template <typename V>
void quantize_group_to_values(ActivationFormat format, const GroupScale& group, const float* x,
                              int64_t count, float* out) {
  int64_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) {
    V::store(out + i, rounded_values<V>(format, group, V::load(x + i)));
  }
  if (i == count) return;
  float lanes[V::kWidth] = {};
  for (int64_t j = i; j < count; ++j) lanes[j - i] = x[j];
  V::store(lanes, rounded_values<V>(format, group, V::load(lanes)));
  for (int64_t j = i; j < count; ++j) out[j] = lanes[j - i];
}

// Rows that are quantized together, group by group: neighbours in the blocks of codes. One after
// the other they would fill a cache line half, and groups of a row lie a multiple of 4 KiB apart,
// in few sets of the cache (512 rows of 1536, Zen 5, one thread: 292 us one by one, 222 us in
// tiles).
inline constexpr int64_t kTileRows = 8;

struct RowTile {
  int64_t first_row;
  int64_t num_rows;
  const float* x[kTileRows];
  float global_scales[kTileRows];
};

// Codes and scales of one group of one row, `span` columns from `begin` on, as groups of a.group.
template <typename V>
void quantize_group_to_codes(const QuantizeActivationsArgs& a, int64_t row, int64_t begin,
                             int64_t span, float global_scale, const float* x) {
  const int64_t block_begin = row / a.block_rows * a.block_rows;
  const int64_t rows = a.m - block_begin < a.block_rows ? a.m - block_begin : a.block_rows;
  const GroupScale group = choose_group_scale(a.format, max_bits<V>(x + begin, span), global_scale,
                                              round_e4m3_scalar<V>);
  const bool zero = !group.finite || !(group.scale > 0);
  // Codes of E2M1 are twice the value, so the scale is halved.
  const float scale = a.format == ActivationFormat::kInt8 ? group.scale : group.scale * 0.5f;
  for (int64_t part = begin; part < begin + span; part += a.group) {
    const int64_t index = block_begin * (a.k / a.group) + part / a.group * rows + row - block_begin;
    a.scales[index] = scale;
    for (int64_t i = 0; i < a.group; i += V::kWidth) {
      const auto codes =
          zero ? V::set_int(0) : integer_codes<V>(a.format, group, V::load(x + part + i));
      V::store_low_bytes(a.codes + index * a.group + i, codes);
    }
    a.corrections[index] = V::scaled_pair_sums(a.codes + index * a.group, a.group, -kCodeOffset);
  }
}

// The nvfp4 scale of a row that the format leaves open.
template <typename V>
float row_global_scale(const QuantizeActivationsArgs& a, const float* x) {
  if (a.format != ActivationFormat::kNvfp4 || a.global_scale != 0) return a.global_scale;
  const uint32_t bits = max_bits<V>(x, a.k);
  if (bits >= kInfinityBits) return float_from_bits(0x7fc00000);
  const float amax = float_from_bits(bits);
  return amax < kSmallestAmax ? 1.0f : 2688 / amax;
}

template <typename V>
void quantize_tile(const QuantizeActivationsArgs& a, const RowTile& tile, int64_t own_group) {
  if (a.format == ActivationFormat::kNone) {
    for (int64_t t = 0; t < tile.num_rows; ++t) {
      float* values = a.values + (tile.first_row + t) * a.k;
      for (int64_t j = 0; j < a.k; ++j) values[j] = tile.x[t][j];
    }
    return;
  }
  for (int64_t j = 0; j < a.k; j += own_group) {
    for (int64_t t = 0; t < tile.num_rows; ++t) {
      const float* x = tile.x[t];
      const int64_t row = tile.first_row + t;
      if (a.values == nullptr) {
        quantize_group_to_codes<V>(a, row, j, own_group, tile.global_scales[t], x);
        continue;
      }
      const GroupScale group = choose_group_scale(a.format, max_bits<V>(x + j, own_group),
                                                  tile.global_scales[t], round_e4m3_scalar<V>);
      quantize_group_to_values<V>(a.format, group, x + j, own_group, a.values + row * a.k + j);
    }
  }
}

template <typename V>
void run_quantize_activations(const QuantizeActivationsArgs& a, Exec& exec) {
  // About 10 microseconds of work: less is not worth waking another thread.
  constexpr int64_t kChunkElements = 16384;
  const int64_t num_threads = exec.threads.num_threads();
  int64_t grain = kChunkElements / a.k < 1 ? 1 : kChunkElements / a.k;
  if (a.m >= kTileRows * num_threads) grain = kTileRows;
  const int64_t own_group =
      a.format == ActivationFormat::kInt8                                            ? a.group
      : a.format == ActivationFormat::kNvfp4                                         ? 16
      : a.format == ActivationFormat::kMxfp4 || a.format == ActivationFormat::kMxfp8 ? 32
                                                                                     : a.k;
  const Workspace::Scope scope(exec.workspace);
  const int64_t thread_floats = a.hadamard == 0 ? 0 : kTileRows * a.k;
  auto* buffers = reinterpret_cast<float*>(
      exec.workspace.allocate(num_threads * thread_floats * static_cast<int64_t>(sizeof(float))));
  exec.threads.parallel_for(a.m, grain, [&](int64_t begin, int64_t end, int thread_idx) {
    RowTile tile;
    for (int64_t row = begin; row < end; row += kTileRows) {
      tile.first_row = row;
      tile.num_rows = end - row < kTileRows ? end - row : kTileRows;
      for (int64_t t = 0; t < tile.num_rows; ++t) {
        tile.x[t] = a.x + (row + t) * a.k;
        if (a.hadamard != 0) {
          float* rotated = buffers + thread_idx * thread_floats + t * a.k;
          rotate_row<V>(tile.x[t], rotated, a.k, a.hadamard);
          tile.x[t] = rotated;
        }
        tile.global_scales[t] = row_global_scale<V>(a, tile.x[t]);
      }
      quantize_tile<V>(a, tile, own_group);
    }
  });
}

}  // namespace
}  // namespace lathe
