// The two inner steps of GPTQ on a slab of rows, one row per lane: round a piece of one column,
// each weight under its own scale; add the column's error to the columns behind it.
#pragma once
#include <cstdint>

#include "quant/weight_format.h"

namespace lathe {

struct RoundColumnArgs {
  const float* target;     // [n]
  const double* scale;     // [n], as stored_scale() decodes it; 0 gives code 0
  const float* effective;  // [n], as effective_scale()
  double global_scale;
  int64_t n;
  uint8_t* codes;  // [n], one code a byte
  float* values;   // [n], element * effective
};

// The same codes as encode_row(), whatever the machine.
void round_column(const WeightFormat& format, const RoundColumnArgs& args);

// Plain loops, any format.
void round_column_ref(const WeightFormat& format, const RoundColumnArgs& args);
// E2M1, INT4 and INT8, full vectors of eight; returns how many lanes it did.
int64_t round_column_avx2(const WeightFormat& format, const RoundColumnArgs& args);

// Rows handled at a time: with 128 columns, 32 KiB of targets, which stay in L1.
inline constexpr int64_t kSlab = 64;

// t[j, 0..kSlab) += factor[j] * error[0..kSlab) for j in [begin, end); t has row stride kSlab.
void add_outer(float* t, const float* factor, const float* error, int64_t begin, int64_t end);
void add_outer_avx2(float* t, const float* factor, const float* error, int64_t begin, int64_t end);

}  // namespace lathe
