// Improving the codes of a matrix one column at a time, all others fixed, under fixed scales.
//
// With D = W - W^ and H the Hessian, the output error tr(D H D^T) as a function of column c alone
// is a parabola around  w_c + sum_{j != c} D_j H_jc / H_cc;  its best code is the one nearest to
// that. GPTQ looks at later columns only once, in one order; sweeps of this from its result never
// raise the error, and lower it.  Source: Behdin et al., "QuantEase" (2023), algorithm 1.
#pragma once
#include <cstdint>
#include <vector>

#include "quant/weight_format.h"
#include "tensor/exec.h"

namespace lathe {

// Changes matrix.codes. w: [rows, cols]; h: [cols, cols], symmetric; `added` goes onto its diagonal
// (the damping that GPTQ used: without it the codes fit the calibration text too closely). Stops
// early when a sweep changes less than one code in a thousand. Returns the number of sweeps made.
int coordinate_descent(QuantizedMatrix& matrix, const float* w, const float* h, double added,
                       int max_sweeps, Exec& exec);

}  // namespace lathe
