// How well a judge tells important tokens from unimportant ones, and which threshold to serve with.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace lathe {

// Area under the ROC curve: the chance that a positive scores above a negative, ties half. 0.5
// when one of the two is missing.
double roc_auc(std::span<const double> scores, std::span<const char> labels);

struct RocPoint {
  double false_positives = 0;  // share of the negatives at or above a score
  double true_positives = 0;   // share of the positives
};
// From (0, 0) to (1, 1), one point a score, thinned to at most max_points of them. Only the two
// ends when one of the two classes is missing.
std::vector<RocPoint> roc_curve(std::span<const double> scores, std::span<const char> labels,
                                int64_t max_points);

struct ThresholdRow {
  double threshold = 0;  // of P(important): a mismatch is accepted below it
  double recall = 1;     // of important tokens: kept from being accepted
  double rho = 0;        // share of all mismatches that are accepted
};
// At the thresholds 0 and `count` quantiles of the probabilities, ascending.
std::vector<ThresholdRow> threshold_table(std::span<const double> probabilities,
                                          std::span<const char> labels, int64_t count);
// The largest threshold that keeps the recall at or above `recall`, by the exact counts; 0 where
// there is no important token to go by.
ThresholdRow threshold_for_recall(std::span<const double> probabilities,
                                  std::span<const char> labels, double recall);

// Conformal risk control (Angelopoulos et al. 2024): a question is lost when any of its important
// mismatches would be accepted. The largest threshold with (lost questions + 1) / (questions + 1)
// <= risk: then the expected share of lost questions among new, exchangeable ones is at most
// `risk`. least[i]: the smallest P of an important mismatch of question i (infinite: none). 0 when
// even that is too much.
double certified_threshold(std::span<const double> least, double risk);

struct CalibrationBin {
  int64_t count = 0;
  double predicted = 0;  // mean probability
  double observed = 0;   // share of positives
};
// Ten bins of equal width; empty ones are left out.
std::vector<CalibrationBin> calibration_bins(std::span<const double> probabilities,
                                             std::span<const char> labels);
// Expected calibration error over those bins.
double calibration_error(std::span<const double> probabilities, std::span<const char> labels);

}  // namespace lathe
