// How fast this machine does what calibration consists of: half a second each, for plans.
#pragma once
#include <cstdint>

#include "kernels/linear/linear.h"
#include "tensor/exec.h"

namespace lathe {

// GFLOP/s of a dense linear layer [n, k] over 256 rows, in fp32 or as a bf16 checkpoint runs.
double measure_linear_gflops(int64_t n, int64_t k, ComputeType compute, Exec& exec);
// GFLOP/s of X^T X with k columns, counted as k^2 a row.
double measure_gram_gflops(int64_t k, Exec& exec);

}  // namespace lathe
