// The rounding error of one group of weights under one scale: what the search for scales minimises.
#pragma once
#include <cstdint>

#include "quant/weight_format.h"

namespace lathe {

struct GroupErrorArgs {
  const float* x;        // [n]
  const float* weights;  // [n], factor of each term; null: all 1
  int64_t n;
  double scale;  // effective: a code stands for element * scale; 0: everything becomes 0
};

// sum_i weights_i |x_i - x^_i|^norm.
double group_error(const WeightFormat& format, const GroupErrorArgs& args, double norm);

// Plain loops in double precision, any format and norm.
double group_error_ref(const WeightFormat& format, const GroupErrorArgs& args, double norm);
// E2M1, INT4 and INT8 with norm 2 and n a multiple of 8, in fp32 (near a tie between two codes both
// have the same error, so it does not matter which one fp32 takes).
bool group_error_avx2_fits(const WeightFormat& format, int64_t n, double norm);
double group_error_avx2(const WeightFormat& format, const GroupErrorArgs& args);

}  // namespace lathe
