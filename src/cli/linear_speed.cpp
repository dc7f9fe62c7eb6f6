#include "cli/linear_speed.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <span>

#include "base/error.h"
#include "cli/linear_speed_weight.h"
#include "cli/speed.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_kernels.h"

namespace lathe {
namespace {

constexpr int64_t kMaxWeights = int64_t{1} << 32;
constexpr int64_t kMaxRows = 65536;
constexpr std::size_t kMinRepetitions = 10;
// Kernels add the same numbers in another order: k terms of fp32 (or k / group exact sums), so the
// difference is some sqrt(k) * 2^-24 of the terms' size, below 1e-5 of the largest of n results for
// every k up to 10^4. Anything computed wrongly is off by more than 1e-3.
constexpr double kMaxDifference = 1e-5;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Cycles per second right now, from a chain of dependent additions: what a busy machine grants.
double clock_rate() {
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    uint64_t x = 1;
    for (int i = 0; i < 20000; ++i) {
#if defined(__x86_64__)
      asm volatile("add $1, %0" : "+r"(x));
#else
      x += x >> 63;
#endif
    }
    best = std::max(best, 20000 / seconds_since(start));
  }
  return best;
}

class LinearBench {
 public:
  LinearBench(const LinearSpeedOptions& options, Exec& exec)
      : options_(options),
        exec_(exec),
        weight_(make_random_linear(options.format, options.shape)),
        part_(weight_.part()) {
    const int64_t max_rows = *std::max_element(options.rows.begin(), options.rows.end());
    x_ = repeated_normal(max_rows * options.shape.k, 2);
    y_.resize(static_cast<std::size_t>(max_rows * options.shape.n));
    reference_ = pack("ref");
    copies_.push_back(pack(options.kernel));
    while (static_cast<int64_t>(copies_.size()) * copies_[0]->weight_bytes <
           options.bytes_of_copies) {
      copies_.push_back(pack(options.kernel));
    }
  }

  LinearSpeed measure(int64_t m) {
    LinearSpeed result;
    result.rows = m;
    result.kernel = copies_[0]->kernel;
    result.weight_bytes = copies_[0]->weight_bytes;
    result.difference = check(m);
    std::vector<double> times, prepare_times;
    double clock = 0;
    const auto begin = std::chrono::steady_clock::now();
    while (times.size() < kMinRepetitions || seconds_since(begin) < options_.seconds) {
      const Workspace::Scope scope(exec_.workspace);
      const PackedLinear& w = *copies_[times.size() % copies_.size()];
      auto start = std::chrono::steady_clock::now();
      const LinearInput input = prepare_input(x_.data(), m, w, exec_);
      prepare_times.push_back(seconds_since(start));
      start = std::chrono::steady_clock::now();
      linear(input, w, y_.data(), options_.shape.n, exec_);
      times.push_back(seconds_since(start));
      if (times.size() % 16 == 1) clock = std::max(clock, clock_rate());
    }
    result.median_seconds = median(times);
    result.fastest_seconds = *std::min_element(times.begin(), times.end());
    result.prepare_seconds = median(prepare_times);
    result.macs_per_cycle = static_cast<double>(m * options_.shape.n * options_.shape.k) /
                            result.fastest_seconds / clock / exec_.threads.num_threads();
    return result;
  }

 private:
  std::unique_ptr<PackedLinear> pack(const std::string& kernel) {
    const std::span<const LinearPart> parts(&part_, 1);
    return kernel.empty() ? pack_linear(parts, weight_.scheme, weight_.compute, exec_)
                          : pack_linear_for(kernel, parts, weight_.scheme, weight_.compute, exec_);
  }

  // The first, the middle and the last of m rows against the reference, which is slow: it computes
  // these three by themselves (a row alone has the bits that it has in a batch).
  double check(int64_t m) {
    const int64_t n = options_.shape.n;
    const int64_t k = options_.shape.k;
    std::fill(y_.begin(), y_.end(), std::numeric_limits<float>::quiet_NaN());
    {
      const Workspace::Scope scope(exec_.workspace);
      linear(prepare_input(x_.data(), m, *copies_[0], exec_), *copies_[0], y_.data(), n, exec_);
    }
    std::vector<float> expected(static_cast<std::size_t>(n));
    double largest = 0;
    double worst = 0;
    for (const int64_t row : {int64_t{0}, m / 2, m - 1}) {
      const Workspace::Scope scope(exec_.workspace);
      linear(prepare_input(x_.data() + row * k, 1, *reference_, exec_), *reference_,
             expected.data(), n, exec_);
      for (int64_t j = 0; j < n; ++j) {
        const double value = double{expected[static_cast<std::size_t>(j)]};
        const double difference =
            std::fabs(double{y_[static_cast<std::size_t>(row * n + j)]} - value);
        largest = std::max(largest, std::fabs(value));
        if (!(difference <= worst)) worst = difference;  // NaN stays
      }
    }
    const double relative = worst / largest;
    if (!(relative <= kMaxDifference)) {
      fail(ErrorCode::kInternal, "linear ", options_.format, " ", n, "x", k, ", ", m, " rows, ",
           copies_[0]->kernel, ": differs from the reference by ", relative,
           " of the largest result; speeds of wrong results are not reported");
    }
    return relative;
  }

  const LinearSpeedOptions& options_;
  Exec& exec_;
  RandomLinear weight_;
  LinearPart part_;
  std::vector<float> x_, y_;
  std::unique_ptr<PackedLinear> reference_;
  std::vector<std::unique_ptr<PackedLinear>> copies_;
};

}  // namespace

LinearShape linear_shape_from_text(const std::string& text) {
  LinearShape shape;
  const char* end = text.data() + text.size();
  const auto n = std::from_chars(text.data(), end, shape.n);
  if (n.ec == std::errc() && n.ptr != end && *n.ptr == 'x') {
    const auto k = std::from_chars(n.ptr + 1, end, shape.k);
    if (k.ec == std::errc() && k.ptr == end && shape.n > 0 && shape.k > 0 &&
        shape.n <= kMaxWeights / shape.k) {
      return shape;
    }
  }
  fail(ErrorCode::kInvalidArgument, "shape '", text,
       "': expected outputs x inputs, for example 1536x8960");
}

std::vector<LinearSpeed> measure_linear_speed(const LinearSpeedOptions& options, Exec& exec) {
  for (const int64_t rows : options.rows) {
    if (rows < 1 || rows > kMaxRows) {
      fail(ErrorCode::kInvalidArgument, "rows ", rows, ": 1 to ", kMaxRows);
    }
  }
  std::vector<LinearSpeed> speeds;
  LinearBench bench(options, exec);
  for (const int64_t rows : options.rows) speeds.push_back(bench.measure(rows));
  return speeds;
}

}  // namespace lathe
