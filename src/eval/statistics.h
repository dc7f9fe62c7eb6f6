// The statistics that a comparison of two models needs.
#pragma once
#include <cstdint>
#include <span>

namespace lathe {

// Unbiased pass@k from n samples of which c pass: 1 - C(n-c, k) / C(n, k).
// Source: Chen et al. 2021, eq. 1. Requires 1 <= k <= n, 0 <= c <= n (kInvalidArgument).
double pass_at_k(int64_t n, int64_t c, int64_t k);

// Two models on the same items, right or wrong.
struct PairedAccuracy {
  int64_t items = 0;
  int64_t only_first = 0;  // items that only the first model got right
  int64_t only_second = 0;
  double difference = 0;     // accuracy of the second minus that of the first
  double low = 0, high = 0;  // 95 % Wald interval of the difference for paired proportions
  double p_value = 1;        // exact McNemar test, two-sided
};
PairedAccuracy compare_accuracy(std::span<const char> first_right,
                                std::span<const char> second_right);
// Two-sided exact McNemar test: of b + c discordant items, is b a fair coin's?
double mcnemar_exact(int64_t b, int64_t c);

struct MeanInterval {
  int64_t count = 0;
  double mean = 0;
  double standard_error = 0;
  double low = 0, high = 0;                      // 95 %, Student's t with count - 1 degrees
  double bootstrap_low = 0, bootstrap_high = 0;  // 95 %, percentiles of 10,000 seeded resamples
};
// Of independent values, for example the differences of two models' mean nll, window by window.
// One value: the interval is unbounded (infinite).
MeanInterval mean_interval(std::span<const double> values);

// The quantile of Student's t distribution; probability in (0, 1), degrees >= 1.
double student_t_quantile(double probability, double degrees);

// q-quantile (0 <= q <= 1) with linear interpolation; sorts a copy. NaN for no values.
double quantile(std::span<const float> values, double q);

}  // namespace lathe
