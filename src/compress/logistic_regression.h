// L2-regularized logistic regression by L-BFGS, in the scaling of scikit-learn:
//   1/2 |w|^2 + C sum_i c_i log(1 + exp(-s_i (w . z_i + b))),   s_i = +1 or -1,
// with z standardized by the mean and the population deviation of each feature (1 where it is 0).
// The intercept is not penalized. Sources: Nocedal and Wright, "Numerical Optimization" (2006),
// algorithms 7.5 (L-BFGS, 10 pairs), 3.5 and 3.6 (strong Wolfe line search).
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/thread_pool.h"

namespace lathe {

// Rows of features and their labels; borrows.
struct LabeledRows {
  std::span<const float> features;  // [rows, dim], row-major
  std::span<const char> labels;     // [rows], 1: positive
  std::span<const int64_t> rows;    // those that count, as indices
  int64_t dim = 0;
};

struct Standardization {
  std::vector<double> mean;   // [dim]
  std::vector<double> scale;  // [dim], > 0
};
Standardization standardize(const LabeledRows& data);

struct LogisticModel {
  std::vector<double> weight;  // [dim], of standardized features
  double bias = 0;
  int64_t iterations = 0;
  bool converged = false;
};

// Converges to max |gradient| <= 1e-6 max(1, |w|). start: weights to begin from (a solution for a
// smaller C), or null. The same bits for every number of threads. Throws kInvalidArgument when
// there are no rows, one class only, or a feature is not finite.
LogisticModel fit_logistic(const LabeledRows& data, const Standardization& standardization,
                           double c, const LogisticModel* start, ThreadPool& threads);

// w . z + b of one row.
double logistic_score(const LogisticModel& model, const Standardization& standardization,
                      std::span<const float> features);

// Minimizes a smooth function of x from where x is. evaluate fills the gradient and returns the
// value. Returns the iterations; x is the result.
struct MinimizeOptions {
  double tolerance = 1e-6;  // of max |gradient|, relative to max(1, |x|)
  int64_t max_iterations = 2000;
};
struct MinimizeResult {
  int64_t iterations = 0;
  bool converged = false;
};
MinimizeResult minimize_lbfgs(
    const std::function<double(std::span<const double> x, std::span<double> gradient)>& evaluate,
    std::vector<double>& x, const MinimizeOptions& options = {});

}  // namespace lathe
