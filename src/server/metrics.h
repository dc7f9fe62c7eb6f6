// Counters, gauges and histograms in Prometheus' text format (version 0.0.4). A dashboard needs
// names, labels and buckets that stay; server_metrics.h has those of this server.
//
// Threads: every member may be called from any thread. Values are atomics: one that is being
// written while it is read shows the old or the new number.
#pragma once
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lathe {

class Counter {
 public:
  void add(int64_t amount = 1) { value_.fetch_add(amount, std::memory_order_relaxed); }
  int64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

class Histogram {
 public:
  // bounds: upper ends of the buckets, ascending; one for everything above is added.
  explicit Histogram(std::vector<double> bounds);
  // Of what was counted elsewhere: so many values in each bucket, none above.
  Histogram(std::vector<double> bounds, std::span<const int64_t> counts, double sum);
  void observe(double value);
  const std::vector<double>& bounds() const { return bounds_; }
  int64_t count_in(std::size_t bucket) const { return counts_[bucket].value(); }  // not cumulative
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::vector<double> bounds_;
  std::vector<Counter> counts_;  // [bounds_.size() + 1]
  std::atomic<double> sum_{0};
};

// 1, 2, 5, 10, 20, 50, ... up to max.
std::vector<double> buckets_1_2_5(int64_t max);

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

// Writes families of metrics one after the other.
class MetricText {
 public:
  // type: "counter", "gauge" or "histogram". The samples of the family follow.
  void family(std::string_view name, std::string_view type, std::string_view help);
  void sample(std::string_view name, const MetricLabels& labels, double value);
  void histogram(std::string_view name, const MetricLabels& labels, const Histogram& histogram);
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace lathe
