#include "eval/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "base/rng.h"

namespace lathe {
namespace {

// Continued fraction of the incomplete beta function, by Lentz's method (DLMF 8.17.22).
double beta_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300;
  double c = 1;
  double d = 1 - (a + b) * x / (a + 1);
  d = 1 / (std::abs(d) < kTiny ? kTiny : d);
  double fraction = d;
  for (int m = 1; m <= 300; ++m) {
    const double terms[2] = {
        m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
        -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
    };
    double change = 1;
    for (const double term : terms) {
      d = 1 + term * d;
      d = 1 / (std::abs(d) < kTiny ? kTiny : d);
      c = 1 + term / c;
      if (std::abs(c) < kTiny) c = kTiny;
      change = c * d;
      fraction *= change;
    }
    if (std::abs(change - 1) < 1e-15) break;
  }
  return fraction;
}

// Regularised incomplete beta function I_x(a, b).
double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) +
                                a * std::log(x) + b * std::log1p(-x));
  return x < (a + 1) / (a + b + 2) ? front * beta_fraction(a, b, x) / a
                                   : 1 - front * beta_fraction(b, a, 1 - x) / b;
}

double student_t_cdf(double t, double degrees) {
  const double tail = 0.5 * incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t));
  return t > 0 ? 1 - tail : tail;
}

}  // namespace

double pass_at_k(int64_t n, int64_t c, int64_t k) {
  if (n < 1 || c < 0 || c > n || k < 1 || k > n) {
    fail(ErrorCode::kInvalidArgument, "pass@", k, " of ", n, " samples with ", c,
         " passing: needs 1 <= k <= n and 0 <= passing <= n");
  }
  if (n - c < k) return 1;
  double all_fail = 1;  // C(n-c, k) / C(n, k) as a product, which does not overflow
  for (int64_t i = n - c + 1; i <= n; ++i) {
    all_fail *= 1 - static_cast<double>(k) / static_cast<double>(i);
  }
  return 1 - all_fail;
}

double mcnemar_exact(int64_t b, int64_t c) {
  const int64_t n = b + c;
  if (n == 0) return 1;
  double tail = 0;  // P(X <= min(b, c)), X ~ Binomial(n, 1/2)
  for (int64_t i = 0; i <= std::min(b, c); ++i) {
    const auto di = static_cast<double>(i);
    const auto dn = static_cast<double>(n);
    tail += std::exp(std::lgamma(dn + 1) - std::lgamma(di + 1) - std::lgamma(dn - di + 1) -
                     dn * std::log(2.0));
  }
  return std::min(1.0, 2 * tail);
}

PairedAccuracy compare_accuracy(std::span<const char> first_right,
                                std::span<const char> second_right) {
  LATHE_CHECK(first_right.size() == second_right.size());
  PairedAccuracy result;
  result.items = static_cast<int64_t>(first_right.size());
  for (std::size_t i = 0; i < first_right.size(); ++i) {
    result.only_first += first_right[i] && !second_right[i];
    result.only_second += !first_right[i] && second_right[i];
  }
  if (result.items == 0) return result;
  const auto n = static_cast<double>(result.items);
  const auto b = static_cast<double>(result.only_first);
  const auto c = static_cast<double>(result.only_second);
  result.difference = (c - b) / n;
  // Fleiss, Levin and Paik 2003, section 13.1.
  const double half_width = 1.959963984540054 * std::sqrt(b + c - (c - b) * (c - b) / n) / n;
  result.low = result.difference - half_width;
  result.high = result.difference + half_width;
  result.p_value = mcnemar_exact(result.only_first, result.only_second);
  return result;
}

double student_t_quantile(double probability, double degrees) {
  LATHE_CHECK(probability > 0 && probability < 1 && degrees >= 1);
  double low = -1, high = 1;
  while (student_t_cdf(low, degrees) > probability) low *= 2;
  while (student_t_cdf(high, degrees) < probability) high *= 2;
  for (int i = 0; i < 200 && high - low > 1e-13 * std::max(1.0, std::abs(high)); ++i) {
    const double middle = 0.5 * (low + high);
    (student_t_cdf(middle, degrees) < probability ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

MeanInterval mean_interval(std::span<const double> values) {
  MeanInterval result;
  result.count = static_cast<int64_t>(values.size());
  if (values.empty()) return result;
  const auto n = static_cast<double>(values.size());
  result.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  if (values.size() == 1) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    result.standard_error = kInfinity;
    result.low = result.bootstrap_low = -kInfinity;
    result.high = result.bootstrap_high = kInfinity;
    return result;
  }
  double squares = 0;
  for (const double value : values) squares += (value - result.mean) * (value - result.mean);
  result.standard_error = std::sqrt(squares / (n - 1) / n);
  const double half_width = student_t_quantile(0.975, n - 1) * result.standard_error;
  result.low = result.mean - half_width;
  result.high = result.mean + half_width;

  constexpr int kResamples = 10000;
  Rng rng(20240517);  // fixed: the same values give the same interval
  std::vector<double> means(kResamples);
  for (double& mean : means) {
    double sum = 0;
    for (std::size_t i = 0; i < values.size(); ++i) sum += values[rng.below(values.size())];
    mean = sum / n;
  }
  std::sort(means.begin(), means.end());
  result.bootstrap_low = means[kResamples * 25 / 1000];
  result.bootstrap_high = means[kResamples * 975 / 1000 - 1];
  return result;
}

double quantile(std::span<const float> values, double q) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::vector<float> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  const double part = at - static_cast<double>(below);
  return static_cast<double>(sorted[below]) * (1 - part) +
         static_cast<double>(sorted[above]) * part;
}

}  // namespace lathe
