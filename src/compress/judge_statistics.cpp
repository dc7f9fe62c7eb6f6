#include "compress/judge_statistics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

namespace lathe {
namespace {

std::vector<std::size_t> ascending(std::span<const double> values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
  return order;
}

ThresholdRow at_threshold(std::span<const double> probabilities, std::span<const char> labels,
                          double threshold) {
  int64_t positives = 0, kept = 0, accepted = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const bool is_accepted = probabilities[i] < threshold;
    positives += labels[i] != 0;
    kept += labels[i] != 0 && !is_accepted;
    accepted += is_accepted;
  }
  return {.threshold = threshold,
          .recall = positives == 0 ? 1 : static_cast<double>(kept) / static_cast<double>(positives),
          .rho = labels.empty()
                     ? 0
                     : static_cast<double>(accepted) / static_cast<double>(labels.size())};
}

}  // namespace

double roc_auc(std::span<const double> scores, std::span<const char> labels) {
  const std::vector<std::size_t> order = ascending(scores);
  double negatives_below = 0, positives = 0, pairs = 0;
  for (std::size_t begin = 0; begin < order.size();) {
    std::size_t end = begin;
    double tied_positives = 0, tied_negatives = 0;
    while (end < order.size() && scores[order[end]] == scores[order[begin]]) {
      (labels[order[end]] ? tied_positives : tied_negatives) += 1;
      ++end;
    }
    pairs += tied_positives * (negatives_below + 0.5 * tied_negatives);
    negatives_below += tied_negatives;
    positives += tied_positives;
    begin = end;
  }
  return positives == 0 || negatives_below == 0 ? 0.5 : pairs / (positives * negatives_below);
}

std::vector<RocPoint> roc_curve(std::span<const double> scores, std::span<const char> labels,
                                int64_t max_points) {
  std::vector<std::size_t> order = ascending(scores);
  std::reverse(order.begin(), order.end());
  double positives = 0, negatives = 0;
  for (const char label : labels) (label ? positives : negatives) += 1;
  std::vector<RocPoint> all = {{}};
  if (positives > 0 && negatives > 0) {
    double above = 0, wrongly = 0;
    for (std::size_t i = 0; i < order.size(); ++i) {
      (labels[order[i]] ? above : wrongly) += 1;
      const bool is_tied = i + 1 < order.size() && scores[order[i]] == scores[order[i + 1]];
      if (!is_tied) all.push_back({wrongly / negatives, above / positives});
    }
  } else {
    all.push_back({1, 1});
  }
  const auto wanted = static_cast<std::size_t>(std::max<int64_t>(2, max_points));
  if (all.size() <= wanted) return all;
  std::vector<RocPoint> thinned;
  for (std::size_t i = 0; i < wanted; ++i) {
    thinned.push_back(all[i * (all.size() - 1) / (wanted - 1)]);
  }
  return thinned;
}

std::vector<ThresholdRow> threshold_table(std::span<const double> probabilities,
                                          std::span<const char> labels, int64_t count) {
  std::vector<ThresholdRow> rows = {at_threshold(probabilities, labels, 0)};
  std::vector<double> sorted(probabilities.begin(), probabilities.end());
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 1; i <= count && !sorted.empty(); ++i) {
    const auto idx =
        (sorted.size() - 1) * static_cast<std::size_t>(i) / static_cast<std::size_t>(count);
    if (sorted[idx] > rows.back().threshold) {
      rows.push_back(at_threshold(probabilities, labels, sorted[idx]));
    }
  }
  return rows;
}

ThresholdRow threshold_for_recall(std::span<const double> probabilities,
                                  std::span<const char> labels, double recall) {
  std::vector<double> important;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i]) important.push_back(probabilities[i]);
  }
  std::sort(important.begin(), important.end());
  // A threshold at the k-th smallest lets k - 1 (fewer with ties) pass.
  const double may_pass = (1 - recall) * static_cast<double>(important.size());
  const auto k = static_cast<std::size_t>(std::floor(may_pass + 1e-9));
  // Without an important token nothing is known: exact.
  const double nothing_known = important.empty() ? 0.0 : 1.0;
  const double threshold = k < important.size() ? important[k] : nothing_known;
  return at_threshold(probabilities, labels, threshold);
}

double certified_threshold(std::span<const double> least, double risk) {
  const double allowed =
      std::floor(risk * static_cast<double>(least.size() + 1) - 1 + 1e-9);  // lost questions
  if (allowed < 0) return 0;
  std::vector<double> sorted(least.begin(), least.end());
  std::sort(sorted.begin(), sorted.end());
  const auto k = static_cast<std::size_t>(allowed);
  // At the threshold sorted[k], the questions before it are lost: k of them, or fewer with ties.
  return k < sorted.size() ? std::min(sorted[k], 1.0) : 1.0;
}

std::vector<CalibrationBin> calibration_bins(std::span<const double> probabilities,
                                             std::span<const char> labels) {
  std::array<CalibrationBin, 10> bins{};
  for (std::size_t i = 0; i < labels.size(); ++i) {
    CalibrationBin& bin =
        bins[static_cast<std::size_t>(std::clamp(probabilities[i] * 10, 0.0, 9.0))];
    ++bin.count;
    bin.predicted += probabilities[i];
    bin.observed += labels[i] != 0;
  }
  std::vector<CalibrationBin> filled;
  for (CalibrationBin& bin : bins) {
    if (bin.count == 0) continue;
    bin.predicted /= static_cast<double>(bin.count);
    bin.observed /= static_cast<double>(bin.count);
    filled.push_back(bin);
  }
  return filled;
}

double calibration_error(std::span<const double> probabilities, std::span<const char> labels) {
  double error = 0;
  for (const CalibrationBin& bin : calibration_bins(probabilities, labels)) {
    error += static_cast<double>(bin.count) * std::abs(bin.predicted - bin.observed);
  }
  return labels.empty() ? 0 : error / static_cast<double>(labels.size());
}

}  // namespace lathe
