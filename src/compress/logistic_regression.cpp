#include "compress/logistic_regression.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace lathe {

Standardization standardize(const LabeledRows& data) {
  const auto dim = static_cast<std::size_t>(data.dim);
  Standardization result{std::vector<double>(dim, 0), std::vector<double>(dim, 0)};
  double count = 0;
  for (const int64_t row : data.rows) {  // Welford
    ++count;
    const float* x = data.features.data() + row * data.dim;
    for (std::size_t j = 0; j < dim; ++j) {
      const double delta = double{x[j]} - result.mean[j];
      result.mean[j] += delta / count;
      result.scale[j] += delta * (double{x[j]} - result.mean[j]);
    }
  }
  for (double& scale : result.scale) {
    scale = std::sqrt(scale / std::max(count, 1.0));
    if (!(scale > 0)) scale = 1;
  }
  return result;
}

namespace {

double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double max_magnitude(std::span<const double> values) {
  double most = 0;
  for (const double value : values) most = std::max(most, std::abs(value));
  return most;
}

// Value and gradient in blocks of rows whose sums are added in order: the same bits whoever
// computes a block.
class Objective {
 public:
  Objective(const LabeledRows& data, const Standardization& standardization, double c,
            ThreadPool& threads)
      : dim_(static_cast<std::size_t>(data.dim)),
        num_rows_(static_cast<int64_t>(data.rows.size())),
        c_(c),
        threads_(threads),
        z_(static_cast<std::size_t>(num_rows_) * dim_),
        sign_(static_cast<std::size_t>(num_rows_)) {
    for (int64_t i = 0; i < num_rows_; ++i) {
      const int64_t row = data.rows[static_cast<std::size_t>(i)];
      const float* x = data.features.data() + row * data.dim;
      float* z = z_.data() + static_cast<std::size_t>(i) * dim_;
      for (std::size_t j = 0; j < dim_; ++j) {
        z[j] =
            static_cast<float>((double{x[j]} - standardization.mean[j]) / standardization.scale[j]);
      }
      sign_[static_cast<std::size_t>(i)] = data.labels[static_cast<std::size_t>(row)] ? 1 : -1;
    }
    const int64_t blocks = (num_rows_ + kBlock - 1) / kBlock;
    values_.resize(static_cast<std::size_t>(blocks));
    gradients_.resize(static_cast<std::size_t>(blocks) * (dim_ + 1));
  }

  // x: weights, then the bias.
  double operator()(std::span<const double> x, std::span<double> gradient) {
    const auto blocks = static_cast<int64_t>(values_.size());
    threads_.parallel_for(blocks, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t block = begin; block < end; ++block) run_block(x, block);
    });
    double value = 0.5 * dot(x.first(dim_), x.first(dim_));
    std::copy(x.begin(), x.end(), gradient.begin());
    gradient[dim_] = 0;
    for (std::size_t block = 0; block < values_.size(); ++block) {
      value += c_ * values_[block];
      const double* part = gradients_.data() + block * (dim_ + 1);
      for (std::size_t j = 0; j <= dim_; ++j) gradient[j] += c_ * part[j];
    }
    return value;
  }

 private:
  static constexpr int64_t kBlock = 64;

  void run_block(std::span<const double> x, int64_t block) {
    double* gradient = gradients_.data() + static_cast<std::size_t>(block) * (dim_ + 1);
    std::fill(gradient, gradient + dim_ + 1, 0.0);
    double value = 0;
    for (int64_t i = block * kBlock; i < std::min(num_rows_, (block + 1) * kBlock); ++i) {
      const float* z = z_.data() + static_cast<std::size_t>(i) * dim_;
      const double sign = sign_[static_cast<std::size_t>(i)];
      double sums[4] = {};  // independent, so that additions overlap
      std::size_t j = 0;
      for (; j + 4 <= dim_; j += 4) {
        for (std::size_t k = 0; k < 4; ++k) sums[k] += x[j + k] * double{z[j + k]};
      }
      for (; j < dim_; ++j) sums[0] += x[j] * double{z[j]};
      const double margin = sign * (x[dim_] + (sums[0] + sums[1]) + (sums[2] + sums[3]));
      // log(1 + exp(-m)) and its derivative without overflow.
      const double e = std::exp(-std::abs(margin));
      value += std::log1p(e) + (margin < 0 ? -margin : 0);
      const double slope = -sign * (margin < 0 ? 1 / (1 + e) : e / (1 + e));
      for (j = 0; j < dim_; ++j) gradient[j] += slope * double{z[j]};
      gradient[dim_] += slope;
    }
    values_[static_cast<std::size_t>(block)] = value;
  }

  std::size_t dim_;
  int64_t num_rows_;
  double c_;
  ThreadPool& threads_;
  std::vector<float> z_;
  std::vector<double> sign_;
  std::vector<double> values_;
  std::vector<double> gradients_;
};

// A point on the search line.
struct LinePoint {
  double step = 0;
  double value = 0;
  double slope = 0;
};

// Of the cubic through two points with slopes; the middle where it has none between them.
double cubic_minimum(const LinePoint& a, const LinePoint& b) {
  const double d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step);
  const double radicand = d1 * d1 - a.slope * b.slope;
  const double low = std::min(a.step, b.step);
  const double high = std::max(a.step, b.step);
  if (radicand >= 0) {
    const double d2 = std::copysign(std::sqrt(radicand), b.step - a.step);
    const double step =
        b.step - (b.step - a.step) * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2);
    const double margin = 0.1 * (high - low);
    if (step > low + margin && step < high - margin) return step;
  }
  return 0.5 * (low + high);
}

}  // namespace

MinimizeResult minimize_lbfgs(
    const std::function<double(std::span<const double>, std::span<double>)>& evaluate,
    std::vector<double>& x, const MinimizeOptions& options) {
  constexpr std::size_t kPairs = 10;
  constexpr double kDecrease = 1e-4;  // of the Wolfe conditions
  constexpr double kCurvature = 0.9;
  const std::size_t n = x.size();
  std::vector<std::vector<double>> steps, changes;  // the latest pairs, oldest first
  std::vector<double> gradient(n), direction(n), trial(n), trial_gradient(n);
  double value = evaluate(x, gradient);
  MinimizeResult result;
  const auto done = [&] {
    const double size = std::sqrt(dot(x, x));
    return max_magnitude(gradient) <= options.tolerance * std::max(1.0, size);
  };
  while (!(result.converged = done()) && result.iterations < options.max_iterations) {
    // direction = -H gradient, by the two-loop recursion.
    for (std::size_t i = 0; i < n; ++i) direction[i] = -gradient[i];
    std::vector<double> alphas(steps.size());
    for (std::size_t k = steps.size(); k-- > 0;) {
      alphas[k] = dot(steps[k], direction) / dot(steps[k], changes[k]);
      for (std::size_t i = 0; i < n; ++i) direction[i] -= alphas[k] * changes[k][i];
    }
    if (!steps.empty()) {
      const double scale = dot(steps.back(), changes.back()) / dot(changes.back(), changes.back());
      for (double& d : direction) d *= scale;
    }
    for (std::size_t k = 0; k < steps.size(); ++k) {
      const double beta = dot(changes[k], direction) / dot(steps[k], changes[k]);
      for (std::size_t i = 0; i < n; ++i) direction[i] += (alphas[k] - beta) * steps[k][i];
    }
    const double slope = dot(gradient, direction);
    if (!(slope < 0)) {  // rounding has eaten the curvature: start again from the gradient
      if (steps.empty()) break;
      steps.clear();
      changes.clear();
      continue;
    }
    const auto at = [&](double step) {
      for (std::size_t i = 0; i < n; ++i) trial[i] = x[i] + step * direction[i];
      const double f = evaluate(trial, trial_gradient);
      return LinePoint{step, f, dot(trial_gradient, direction)};
    };
    const LinePoint start{0, value, slope};
    // Near the minimum a step changes the value by less than its rounding, and the slope tells more
    // (the approximate Wolfe condition of Hager and Zhang 2005, "A new conjugate gradient method
    // with guaranteed descent", eq. 4.1).
    const double rounding = 1e-12 * std::abs(value);
    const auto decreases = [&](const LinePoint& p) {
      return p.value <= value + kDecrease * p.step * slope ||
             (p.value <= value + rounding && p.slope <= (2 * kDecrease - 1) * slope);
    };
    const auto flat = [&](const LinePoint& p) { return std::abs(p.slope) <= -kCurvature * slope; };
    double first_step = steps.empty() ? std::min(1.0, 1 / std::sqrt(dot(gradient, gradient))) : 1;
    LinePoint low = start, high{}, point = at(first_step);
    bool bracketed = false, found = false;
    LinePoint previous = start;
    for (int i = 0; i < 40 && !found; ++i) {
      if (!bracketed) {
        if (!decreases(point) || (i > 0 && point.value > previous.value + rounding)) {
          low = previous;
          high = point;
          bracketed = true;
        } else if (flat(point)) {
          found = true;
          break;
        } else if (point.slope >= 0) {
          low = point;
          high = previous;
          bracketed = true;
        } else {
          previous = point;
          point = at(2 * point.step);
          continue;
        }
      } else if (!decreases(point) || point.value > low.value + rounding) {
        high = point;
      } else {
        if (flat(point)) {
          found = true;
          break;
        }
        if (point.slope * (high.step - low.step) >= 0) high = low;
        low = point;
      }
      point = at(cubic_minimum(low, high));
    }
    // Near the minimum the value cannot fall by more than its rounding: take what is not worse.
    if (!found && !(point.value <= value)) {
      if (steps.empty()) break;
      steps.clear();
      changes.clear();
      ++result.iterations;
      continue;
    }
    std::vector<double> step(n), change(n);
    for (std::size_t i = 0; i < n; ++i) {
      step[i] = trial[i] - x[i];
      change[i] = trial_gradient[i] - gradient[i];
    }
    x = trial;
    gradient = trial_gradient;
    value = point.value;
    ++result.iterations;
    if (dot(step, change) > 1e-300) {
      if (steps.size() == kPairs) {
        steps.erase(steps.begin());
        changes.erase(changes.begin());
      }
      steps.push_back(std::move(step));
      changes.push_back(std::move(change));
    }
  }
  return result;
}

LogisticModel fit_logistic(const LabeledRows& data, const Standardization& standardization,
                           double c, const LogisticModel* start, ThreadPool& threads) {
  if (data.rows.empty()) fail(ErrorCode::kInvalidArgument, "no rows to learn from");
  if (!(c > 0)) fail(ErrorCode::kInvalidArgument, "C is ", c, "; it must be above 0");
  int64_t positives = 0;
  for (const int64_t row : data.rows) {
    positives += data.labels[static_cast<std::size_t>(row)] != 0;
    const auto x = data.features.subspan(static_cast<std::size_t>(row * data.dim),
                                         static_cast<std::size_t>(data.dim));
    if (!std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); })) {
      fail(ErrorCode::kInvalidArgument, "row ", row, " has a feature that is not finite");
    }
  }
  const auto count = static_cast<int64_t>(data.rows.size());
  if (positives == 0 || positives == count) {
    fail(ErrorCode::kInvalidArgument, "all ", count, " rows are ",
         positives == 0 ? "unimportant" : "important", "; there is nothing to tell apart");
  }
  Objective objective(data, standardization, c, threads);
  std::vector<double> x(static_cast<std::size_t>(data.dim) + 1, 0.0);
  x.back() = std::log(static_cast<double>(positives) / static_cast<double>(count - positives));
  if (start != nullptr) {
    std::copy(start->weight.begin(), start->weight.end(), x.begin());
    x.back() = start->bias;
  }
  const MinimizeResult run = minimize_lbfgs(std::ref(objective), x);
  LogisticModel model;
  model.bias = x.back();
  x.pop_back();
  model.weight = std::move(x);
  model.iterations = run.iterations;
  model.converged = run.converged;
  return model;
}

double logistic_score(const LogisticModel& model, const Standardization& standardization,
                      std::span<const float> features) {
  double sum = model.bias;
  for (std::size_t j = 0; j < features.size(); ++j) {
    sum += model.weight[j] * (double{features[j]} - standardization.mean[j]) /
           standardization.scale[j];
  }
  return sum;
}

}  // namespace lathe
