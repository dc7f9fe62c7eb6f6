// Means and centred second moments of rows of numbers, and the least squares that follow from them:
// what the predictors of the key-value cache are fitted by.
//
//   C = (1/n) sum (z - mean)(z - mean)^T        z = [inputs ; targets] of one token
//
// Ridge regression with a free bias, rank-reduced regression and principal components need nothing
// but C and the means, so every variant of a predictor (dense, low rank, block-diagonal, fewer
// inputs) comes from one pass over the rows. Sources: Hoerl and Kennard, "Ridge regression" (1970);
// Izenman, "Reduced-rank regression for the multivariate linear model" (1975); spec/aqua-kv.md 2.1
// to 2.3.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "tensor/exec.h"

namespace lathe {

// Columns of a table of rows: [num_rows, width] fp32, dense.
struct RowColumns {
  const float* data = nullptr;
  int64_t width = 0;
};

struct Moments {
  int64_t size = 0;                // numbers in a row
  int64_t num_rows = 0;            // rows that were seen
  std::vector<double> mean;        // [size]
  std::vector<double> covariance;  // [size, size], full and symmetric; divided by num_rows

  double at(int64_t i, int64_t j) const {
    return covariance[static_cast<std::size_t>(i * size + j)];
  }
  // Sum of the variances of columns [begin, end).
  double variance(int64_t begin, int64_t end) const;
  // The moments of some of the columns, in the order given.
  Moments select(std::span<const int64_t> columns) const;
};

// Of the rows `rows` lists (indices into the tables), over all tables side by side. Means in fp64,
// products of centred rows in fp32 over chunks of kMomentRows rows, their sums in fp64: relative
// error of an element at most kMomentRows * 2^-24 of sqrt(C_ii C_jj). On AVX-512 the result does
// not depend on the number of threads. Throws kInvalidArgument on a NaN or an infinity, or without
// rows.
//
// ranks: each with rows of its own, possibly none; the moments are those of all rows, sums in the
// order of ranks. The covariance is then whole on rank 0 only. null: this process alone.
inline constexpr int64_t kMomentRows = 1024;
Moments collect_moments(std::span<const RowColumns> tables, std::span<const int32_t> rows,
                        Exec& exec, Communicator* ranks = nullptr);

// y = weight x + bias
struct LinearFit {
  int64_t num_inputs = 0;
  int64_t num_outputs = 0;
  std::vector<double> weight;  // [num_outputs, num_inputs]
  std::vector<double> bias;    // [num_outputs]
};

// The linear map from the first num_inputs columns to the others that minimises
//   E |y - weight x - bias|^2 + ridge * mean(diag C_xx) * |weight|^2
// (the bias is not damped). Inputs that never vary get weight zero. ridge > 0.
LinearFit fit_ridge(const Moments& moments, int64_t num_inputs, double ridge, Exec& exec);

// weight = up down
struct LowRankFit {
  int64_t rank = 0;
  std::vector<double> down;  // [rank, num_inputs]
  std::vector<double> up;    // [num_outputs, rank]
  std::vector<double> bias;  // [num_outputs]
};
// The best map of that rank for the same objective: `full` projected on the `rank` strongest
// principal directions of what it predicts. rank <= num_outputs.
LowRankFit reduce_rank(const Moments& moments, const LinearFit& full, int64_t rank, Exec& exec);

// `full` that uses, for outputs [b * block_out, ...), only inputs of block b in each of the sources
// (each source_width wide, of as many blocks): zero elsewhere. num_blocks divides both widths.
LinearFit fit_block_diagonal(const Moments& moments, int64_t num_inputs, int64_t source_width,
                             int64_t num_blocks, double ridge, Exec& exec);

// The `rank` principal directions: rows of `basis` [rank, size], orthonormal, strongest first;
// variance along each.
struct PrincipalComponents {
  int64_t rank = 0;
  std::vector<double> basis;
  std::vector<double> variance;  // [rank]
};
PrincipalComponents principal_components(const Moments& moments, int64_t rank, Exec& exec);

}  // namespace lathe
