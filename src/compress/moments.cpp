#include "compress/moments.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/error.h"
#include "compress/blas.h"
#include "compress/gram.h"
#include "tensor/buffer.h"

namespace lathe {
namespace {

std::size_t index(int64_t i) { return static_cast<std::size_t>(i); }

// Copies columns of the chosen rows side by side, less `shift`.
void gather(std::span<const RowColumns> tables, std::span<const int32_t> rows, const float* shift,
            int64_t size, float* out, Exec& exec) {
  exec.threads.parallel_for(
      static_cast<int64_t>(rows.size()), 64, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
          float* to = out + r * size;
          int64_t column = 0;
          for (const RowColumns& table : tables) {
            const float* from = table.data + int64_t{rows[index(r)]} * table.width;
            for (int64_t j = 0; j < table.width; ++j) to[column + j] = from[j] - shift[column + j];
            column += table.width;
          }
        }
      });
}

// num_rows: of all ranks.
std::vector<double> means_of(std::span<const RowColumns> tables, std::span<const int32_t> rows,
                             int64_t size, int64_t num_rows, Communicator& ranks) {
  std::vector<double> mean(index(size), 0.0);
  for (const int32_t row : rows) {
    double* to = mean.data();
    for (const RowColumns& table : tables) {
      const float* from = table.data + int64_t{row} * table.width;
      for (int64_t j = 0; j < table.width; ++j) to[j] += double{from[j]};
      to += table.width;
    }
  }
  all_reduce_sum(ranks, mean);
  for (double& value : mean) {
    value /= static_cast<double>(num_rows);
    if (!std::isfinite(value)) {
      fail(ErrorCode::kInvalidArgument,
           "the model's keys or values are not finite on the calibration text");
    }
  }
  return mean;
}

// The matrix whose element (i, j) is moments.at(row_begin + i, column_begin + j).
std::vector<double> block(const Moments& moments, int64_t row_begin, int64_t num_rows,
                          int64_t column_begin, int64_t num_columns) {
  std::vector<double> result(index(num_rows * num_columns));
  for (int64_t i = 0; i < num_rows; ++i) {
    const double* from = moments.covariance.data() + (row_begin + i) * moments.size + column_begin;
    std::copy(from, from + num_columns, result.data() + i * num_columns);
  }
  return result;
}

// An eigenvector decomposition of n columns is n matrix-vector products behind one another: small
// ones wait for their threads longer than they compute.
int eigen_threads(int64_t n, const Exec& exec) { return n < 1024 ? 1 : exec.threads.num_threads(); }

}  // namespace

double Moments::variance(int64_t begin, int64_t end) const {
  double sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += at(i, i);
  return sum;
}

Moments Moments::select(std::span<const int64_t> columns) const {
  Moments result;
  result.size = static_cast<int64_t>(columns.size());
  result.num_rows = num_rows;
  for (const int64_t i : columns) {
    LATHE_CHECK(i >= 0 && i < size);
    result.mean.push_back(mean[index(i)]);
    for (const int64_t j : columns) result.covariance.push_back(at(i, j));
  }
  return result;
}

Moments collect_moments(std::span<const RowColumns> tables, std::span<const int32_t> rows,
                        Exec& exec, Communicator* all_ranks) {
  SoloCommunicator solo;
  Communicator& ranks = all_ranks != nullptr ? *all_ranks : solo;
  Moments moments;
  for (const RowColumns& table : tables) moments.size += table.width;
  double num_rows = static_cast<double>(rows.size());
  all_reduce_sum(ranks, {&num_rows, 1});
  moments.num_rows = static_cast<int64_t>(num_rows);
  if (moments.num_rows == 0 || moments.size == 0) {
    fail(ErrorCode::kInvalidArgument, "no tokens to fit the cache's predictors to");
  }
  const int64_t size = moments.size;
  moments.mean = means_of(tables, rows, size, moments.num_rows, ranks);
  std::vector<float> shift(index(size));
  for (int64_t i = 0; i < size; ++i) shift[index(i)] = static_cast<float>(moments.mean[index(i)]);

  moments.covariance.assign(index(size * size), 0.0);
  Buffer chunk(std::min<int64_t>(kMomentRows, std::ssize(rows)) * size * int64_t{sizeof(float)});
  Buffer gram(size * size * int64_t{sizeof(float)});
  for (std::size_t first = 0; first < rows.size(); first += index(kMomentRows)) {
    const auto part = rows.subspan(first, std::min(rows.size() - first, index(kMomentRows)));
    gather(tables, part, shift.data(), size, chunk.as<float>(), exec);
    std::fill_n(gram.as<float>(), size * size, 0.0f);
    add_gram(static_cast<int64_t>(part.size()), size, chunk.as<float>(), gram.as<float>(), exec, {},
             /*in_two_terms=*/false);
    exec.threads.parallel_for(size, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const float* from = gram.as<float>() + i * size;
        double* to = moments.covariance.data() + i * size;
        for (int64_t j = i; j < size; ++j) to[j] += double{from[j]};
      }
    });
  }
  reduce_sum(ranks, 0, moments.covariance);
  if (ranks.rank() != 0) return moments;
  const auto n = static_cast<double>(moments.num_rows);
  for (int64_t i = 0; i < size; ++i) {
    const double off_i = moments.mean[index(i)] - double{shift[index(i)]};
    for (int64_t j = i; j < size; ++j) {
      const double off_j = moments.mean[index(j)] - double{shift[index(j)]};
      double& value = moments.covariance[index(i * size + j)];
      value = value / n - off_i * off_j;
      moments.covariance[index(j * size + i)] = value;
    }
    if (!std::isfinite(moments.at(i, i))) {
      fail(ErrorCode::kInvalidArgument,
           "the model's keys or values are too large for fp32 sums on the calibration text");
    }
  }
  return moments;
}

LinearFit fit_ridge(const Moments& moments, int64_t num_inputs, double ridge, Exec& exec) {
  LATHE_CHECK(num_inputs >= 0 && num_inputs < moments.size && ridge > 0);
  LinearFit fit;
  fit.num_inputs = num_inputs;
  fit.num_outputs = moments.size - num_inputs;
  const auto target_mean = moments.mean.begin() + num_inputs;
  fit.bias.assign(target_mean, moments.mean.end());
  // Rows of C_yx are the right-hand sides of C_xx w = c.
  fit.weight = block(moments, num_inputs, fit.num_outputs, 0, num_inputs);
  const double mean_diagonal =
      num_inputs == 0 ? 0 : moments.variance(0, num_inputs) / static_cast<double>(num_inputs);
  if (mean_diagonal <= 0) {  // nothing varies: the mean is all there is
    std::fill(fit.weight.begin(), fit.weight.end(), 0.0);
    return fit;
  }
  const BlasThreads threads(exec.threads.num_threads());
  std::vector<double> c = block(moments, 0, num_inputs, 0, num_inputs);
  for (int64_t i = 0; i < num_inputs; ++i) c[index(i * num_inputs + i)] += ridge * mean_diagonal;
  if (!cholesky_lower(num_inputs, c.data())) {
    fail(ErrorCode::kInternal, "the ridge system of ", num_inputs,
         " inputs is not positive definite");
  }
  solve_cholesky_rows(num_inputs, c.data(), fit.num_outputs, fit.weight.data());
  for (int64_t o = 0; o < fit.num_outputs; ++o) {
    for (int64_t i = 0; i < num_inputs; ++i) {
      fit.bias[index(o)] -= fit.weight[index(o * num_inputs + i)] * moments.mean[index(i)];
    }
  }
  return fit;
}

LowRankFit reduce_rank(const Moments& moments, const LinearFit& full, int64_t rank, Exec& exec) {
  LATHE_CHECK(rank >= 1 && rank <= full.num_outputs);
  const int64_t m = full.num_inputs, p = full.num_outputs;
  const BlasThreads threads(eigen_threads(p, exec));
  // C_yx (C_xx + ridge)^-1 C_xy = W C_xy, symmetric but for rounding.
  const std::vector<double> c_yx = block(moments, m, p, 0, m);
  std::vector<double> predicted(index(p * p));
  gemm_a_bt(p, p, m, full.weight.data(), m, c_yx.data(), m, 0, predicted.data(), p);
  for (int64_t i = 0; i < p; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      const double mean = (predicted[index(i * p + j)] + predicted[index(j * p + i)]) / 2;
      predicted[index(i * p + j)] = predicted[index(j * p + i)] = mean;
    }
  }
  std::vector<double> eigenvalues(index(p));
  symmetric_eigenvectors(p, predicted.data(), eigenvalues.data());

  LowRankFit fit;
  fit.rank = rank;
  fit.up.resize(index(p * rank));
  std::vector<double> directions(index(rank * p));  // strongest first
  for (int64_t r = 0; r < rank; ++r) {
    for (int64_t j = 0; j < p; ++j) {
      const double value = predicted[index((p - 1 - r) * p + j)];
      directions[index(r * p + j)] = value;
      fit.up[index(j * rank + r)] = value;
    }
  }
  fit.down.resize(index(rank * m));
  gemm_a_b(rank, m, p, directions.data(), p, full.weight.data(), m, 0, fit.down.data(), m);
  // bias = mean_y - up down mean_x
  fit.bias.assign(moments.mean.begin() + m, moments.mean.end());
  for (int64_t r = 0; r < rank; ++r) {
    double at_mean = 0;
    for (int64_t i = 0; i < m; ++i) at_mean += fit.down[index(r * m + i)] * moments.mean[index(i)];
    for (int64_t j = 0; j < p; ++j) fit.bias[index(j)] -= fit.up[index(j * rank + r)] * at_mean;
  }
  return fit;
}

LinearFit fit_block_diagonal(const Moments& moments, int64_t num_inputs, int64_t source_width,
                             int64_t num_blocks, double ridge, Exec& exec) {
  const int64_t num_outputs = moments.size - num_inputs;
  LATHE_CHECK(num_blocks >= 1 && source_width % num_blocks == 0 && num_outputs % num_blocks == 0 &&
              num_inputs % source_width == 0);
  LinearFit fit;
  fit.num_inputs = num_inputs;
  fit.num_outputs = num_outputs;
  fit.weight.assign(index(num_outputs * num_inputs), 0.0);
  fit.bias.assign(index(num_outputs), 0.0);
  const int64_t block_in = source_width / num_blocks;
  const int64_t block_out = num_outputs / num_blocks;
  for (int64_t b = 0; b < num_blocks; ++b) {
    std::vector<int64_t> columns;
    for (int64_t source = 0; source < num_inputs; source += source_width) {
      for (int64_t j = 0; j < block_in; ++j) columns.push_back(source + b * block_in + j);
    }
    const auto block_inputs = static_cast<int64_t>(columns.size());
    for (int64_t j = 0; j < block_out; ++j) columns.push_back(num_inputs + b * block_out + j);
    const LinearFit own = fit_ridge(moments.select(columns), block_inputs, ridge, exec);
    for (int64_t o = 0; o < block_out; ++o) {
      const int64_t row = b * block_out + o;
      fit.bias[index(row)] = own.bias[index(o)];
      for (int64_t i = 0; i < block_inputs; ++i) {
        fit.weight[index(row * num_inputs + columns[index(i)])] =
            own.weight[index(o * block_inputs + i)];
      }
    }
  }
  return fit;
}

PrincipalComponents principal_components(const Moments& moments, int64_t rank, Exec& exec) {
  LATHE_CHECK(rank >= 1 && rank <= moments.size);
  const int64_t n = moments.size;
  const BlasThreads threads(eigen_threads(n, exec));
  std::vector<double> c = moments.covariance;
  std::vector<double> eigenvalues(index(n));
  symmetric_eigenvectors(n, c.data(), eigenvalues.data());
  PrincipalComponents result;
  result.rank = rank;
  for (int64_t r = 0; r < rank; ++r) {
    const double* row = c.data() + (n - 1 - r) * n;
    // The sign of an eigenvector is arbitrary: the largest component is made positive, so that the
    // same statistics give the same file.
    const double* largest = std::max_element(
        row, row + n, [](double a, double b) { return std::fabs(a) < std::fabs(b); });
    const double sign = *largest < 0 ? -1 : 1;
    for (int64_t j = 0; j < n; ++j) result.basis.push_back(sign * row[j]);
    result.variance.push_back(std::max(0.0, eigenvalues[index(n - 1 - r)]));
  }
  return result;
}

}  // namespace lathe
