#include "eval/fingerprint.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "eval/windows.h"

namespace lathe {
namespace {

constexpr int64_t kPromptTokens = 16;
constexpr std::size_t kTopLogits = 16;

// Another kernel level rounds differently, and a rounding that tips an int8 or 4-bit activation
// code is amplified from layer to layer, until the logits differ as two draws of the model's own
// quantization noise do. How much that is depends on the model, so it is measured: the cache in its
// other format (bf16 or fp32) is a difference in rounding too. kNoise times the RMS that this moves
// all logits by is allowed: the largest of 16 normal numbers is below 3.5 sigma but for once in a
// hundred times, the difference of two draws has sqrt(2) sigma, and the two kinds of rounding may
// differ in size by the rest. Measured: docs/results/robustness.md. A kernel that computes
// something else is off by the size of the logits.
constexpr double kNoise = 8;
constexpr double kFloor = 0.01;              // of the largest logit: models with hardly any noise
constexpr double kTelling = 0.1;             // of the largest logit: no accident
constexpr double kSamePathTolerance = 1e-3;  // the same kernels give the same bits

std::vector<float> last_logits(const std::vector<int32_t>& ids, Model& model, KvFormat kv_format,
                               Exec& exec) {
  LogitStream stream(model, kv_format, static_cast<int64_t>(ids.size()), exec);
  std::vector<float> logits;
  for (stream.begin(ids, /*with_last=*/true); stream.next();) {
    const auto row = stream.row(stream.num_rows() - 1);
    logits.assign(row.begin(), row.end());
  }
  return logits;
}

// RMS over the vocabulary of what the other cache format changes.
double rounding_noise(const std::vector<float>& logits, const std::vector<int32_t>& ids,
                      Model& model, KvFormat kv_format, Exec& exec) {
  const std::vector<float> others =
      last_logits(ids, model, kv_format == KvFormat::kF32 ? KvFormat::kBF16 : KvFormat::kF32, exec);
  double sum_sq = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double difference = double{logits[i]} - double{others[i]};
    sum_sq += difference * difference;
  }
  return std::sqrt(sum_sq / static_cast<double>(logits.size()));
}

}  // namespace

LogitsFingerprint compute_fingerprint(Model& model, KvFormat kv_format, const std::string& path,
                                      Exec& exec) {
  LogitsFingerprint fingerprint;
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < kPromptTokens; ++i) {
    ids.push_back(static_cast<int32_t>((1000 + i * 7919) % model.config().vocab_size));
  }
  fingerprint.token_ids.assign(ids.begin(), ids.end());
  const std::vector<float> logits = last_logits(ids, model, kv_format, exec);
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const std::size_t count = std::min(kTopLogits, order.size());
  const auto logit = [&](int64_t id) { return logits[static_cast<std::size_t>(id)]; };
  std::partial_sort(
      order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
      [&](int64_t a, int64_t b) { return logit(a) > logit(b) || (logit(a) == logit(b) && a < b); });
  double largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto value = static_cast<double>(logit(order[i]));
    if (!std::isfinite(value)) fail(ErrorCode::kInternal, "a logit is not a finite number");
    fingerprint.top_ids.push_back(order[i]);
    fingerprint.top_logits.push_back(value);
    largest = std::max(largest, std::abs(value));
  }
  const double noise = rounding_noise(logits, ids, model, kv_format, exec);
  if (!std::isfinite(noise)) fail(ErrorCode::kInternal, "a logit is not a finite number");
  fingerprint.tolerance = std::max(kFloor * largest, kNoise * noise);
  fingerprint.computed_with = path;
  return fingerprint;
}

FingerprintComparison compare_fingerprint(const LogitsFingerprint& stored, Model& model,
                                          KvFormat kv_format, const std::string& path, Exec& exec) {
  const ModelConfig& config = model.config();
  const auto check_ids = [&](const std::vector<int64_t>& ids) {
    for (const int64_t id : ids) {
      if (id >= 0 && id < config.vocab_size) continue;
      fail(ErrorCode::kCorruptData, "logits fingerprint: token ", id, " is not below ",
           config.vocab_size, "; it belongs to another model");
    }
  };
  check_ids(stored.token_ids);
  check_ids(stored.top_ids);
  if (stored.token_ids.empty() || stored.top_ids.size() != stored.top_logits.size() ||
      static_cast<int64_t>(stored.token_ids.size()) > config.max_position_embeddings) {
    fail(ErrorCode::kCorruptData,
         "logits fingerprint: the prompt is empty or too long, or there is "
         "not one logit for each id");
  }
  std::vector<int32_t> ids;
  for (const int64_t id : stored.token_ids) ids.push_back(static_cast<int32_t>(id));
  const std::vector<float> logits = last_logits(ids, model, kv_format, exec);
  FingerprintComparison result;
  result.same_path = stored.computed_with == path;
  result.tolerance =
      result.same_path ? std::min(kSamePathTolerance, stored.tolerance) : stored.tolerance;
  for (std::size_t i = 0; i < stored.top_ids.size(); ++i) {
    const double here = static_cast<double>(logits[static_cast<std::size_t>(stored.top_ids[i])]);
    const double difference = std::abs(here - stored.top_logits[i]);
    result.max_difference =
        std::max(result.max_difference,
                 std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference);
  }
  double largest = 0;
  for (const double logit : stored.top_logits) largest = std::max(largest, std::abs(logit));
  result.telling = result.max_difference < kTelling * largest;
  result.matches = result.max_difference <= result.tolerance;
  return result;
}

}  // namespace lathe
