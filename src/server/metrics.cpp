#include "server/metrics.h"

#include <algorithm>
#include <cstdio>

namespace lathe {
namespace {

std::string number(double value) {
  char text[40];
  // Whole numbers without an exponent; others so that reading them gives the same double.
  if (value == static_cast<double>(static_cast<int64_t>(value)) && value < 1e15 && value > -1e15) {
    std::snprintf(text, sizeof text, "%lld", static_cast<long long>(value));
  } else {
    std::snprintf(text, sizeof text, "%.17g", value);
  }
  return text;
}

// Bounds are written short: 0.001, not 0.001000000000000000021.
std::string bound(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%g", value);
  return std::string(text).find('e') == std::string::npos ? text : number(value);
}

std::string escaped(std::string_view value) {
  std::string result;
  for (const char c : value) {
    if (c == '\n') {
      result += "\\n";
      continue;
    }
    if (c == '\\' || c == '"') result += '\\';
    result += c;
  }
  return result;
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}

Histogram::Histogram(std::vector<double> bounds, std::span<const int64_t> counts, double sum)
    : Histogram(std::move(bounds)) {
  for (std::size_t i = 0; i < counts.size(); ++i) counts_[i].add(counts[i]);
  sum_ = sum;
}

void Histogram::observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<std::size_t>(bucket)].add();
  sum_.fetch_add(value, std::memory_order_relaxed);
}

std::vector<double> buckets_1_2_5(int64_t max) {
  std::vector<double> bounds;
  for (int64_t power = 1; power <= max; power *= 10) {
    for (const int64_t digit : {1, 2, 5}) {
      if (digit <= max / power) bounds.push_back(static_cast<double>(digit * power));
    }
    if (power > max / 10) break;
  }
  return bounds;
}

void MetricText::family(std::string_view name, std::string_view type, std::string_view help) {
  text_ += "# HELP ";
  text_ += name;
  text_ += ' ';
  text_ += help;
  text_ += "\n# TYPE ";
  text_ += name;
  text_ += ' ';
  text_ += type;
  text_ += '\n';
}

void MetricText::sample(std::string_view name, const MetricLabels& labels, double value) {
  text_ += name;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    text_ += i == 0 ? '{' : ',';
    text_ += labels[i].first + "=\"" + escaped(labels[i].second) + '"';
  }
  if (!labels.empty()) text_ += '}';
  text_ += ' ' + number(value) + '\n';
}

void MetricText::histogram(std::string_view name, const MetricLabels& labels,
                           const Histogram& histogram) {
  const std::string base(name);
  MetricLabels with_bound = labels;
  with_bound.emplace_back("le", "");
  int64_t count = 0;
  for (std::size_t i = 0; i <= histogram.bounds().size(); ++i) {
    count += histogram.count_in(i);
    with_bound.back().second =
        i < histogram.bounds().size() ? bound(histogram.bounds()[i]) : "+Inf";
    sample(base + "_bucket", with_bound, static_cast<double>(count));
  }
  sample(base + "_sum", labels, histogram.sum());
  sample(base + "_count", labels, static_cast<double>(count));
}

}  // namespace lathe
