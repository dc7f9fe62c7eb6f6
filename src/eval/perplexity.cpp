#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/error.h"
#include "eval/statistics.h"

#ifdef LATHE_HAS_CUDA
#include "eval/device_comparison.h"
#endif

namespace lathe {
namespace {

int64_t longest(std::span<const std::vector<int32_t>> windows) {
  std::size_t length = 2;
  for (const auto& window : windows) length = std::max(length, window.size());
  return static_cast<int64_t>(length);
}

LogitStream stream_of(const MeasuredModel& measured, int64_t window_tokens, Exec& exec) {
  return LogitStream(*measured.model, measured.make_cache(window_tokens), window_tokens,
                     measured.chunk_rows, exec, /*stay=*/true);
}

// NaN where there are too few values to tell.
double standard_error_of_mean(std::span<const double> values) {
  const double error = mean_interval(values).standard_error;
  return std::isfinite(error) ? error : std::numeric_limits<double>::quiet_NaN();
}

struct RowComparison {
  double kl = 0;
  double reference_nll = 0, model_nll = 0;
  bool same_top = false;
};

RowComparison compare_rows(std::span<const float> reference, std::span<const float> model,
                           int32_t target) {
  const double reference_norm = log_sum_exp_f32(reference);
  const double model_norm = log_sum_exp_f32(model);
  // sum p (log p - log q); the two norms are common to all terms, and sum p = 1 up to rounding.
  const auto shift = static_cast<float>(reference_norm);
  double difference = 0, mass = 0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double p = static_cast<double>(std::exp(reference[i] - shift));
    difference += p * (static_cast<double>(reference[i]) - static_cast<double>(model[i]));
    mass += p;
  }
  const auto at = static_cast<std::size_t>(target);
  const auto top = [](std::span<const float> row) {
    return std::max_element(row.begin(), row.end()) - row.begin();
  };
  return {.kl = difference / mass - reference_norm + model_norm,
          .reference_nll = reference_norm - static_cast<double>(reference[at]),
          .model_nll = model_norm - static_cast<double>(model[at]),
          .same_top = top(reference) == top(model)};
}

// Compares what two streams have computed for one chunk, or one stream by itself (reference null;
// only model_nll counts then), where the rows are.
class ChunkComparison {
 public:
  std::span<const RowComparison> compare(const LogitStream* reference, const LogitStream& stream,
                                         std::size_t common, Exec& exec) {
    rows_.assign(static_cast<std::size_t>(stream.num_rows()), {});
#ifdef LATHE_HAS_CUDA
    if (stream.device_rows() != nullptr) {
      const auto results = device_.compare(reference, stream, static_cast<int64_t>(common));
      std::transform(results.begin(), results.end(), rows_.begin(), [](const LogitComparison& row) {
        return RowComparison{row.kl, row.reference_nll, row.model_nll, row.same_top != 0};
      });
      return rows_;
    }
#endif
    exec.threads.parallel_for(stream.num_rows(), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        RowComparison& row = rows_[static_cast<std::size_t>(i)];
        const std::span<const float> logits = stream.row(i).first(common);
        if (reference != nullptr) {
          row = compare_rows(reference->row(i).first(common), logits, stream.target(i));
        } else {
          row.model_nll = log_sum_exp_f32(logits) -
                          static_cast<double>(logits[static_cast<std::size_t>(stream.target(i))]);
        }
      }
    });
    return rows_;
  }

 private:
  std::vector<RowComparison> rows_;
#ifdef LATHE_HAS_CUDA
  DeviceComparison device_;
#endif
};

}  // namespace

PerplexityResult summarize_perplexity(std::vector<double> window_nll, int64_t seq_len) {
  PerplexityResult result;
  result.windows = static_cast<int64_t>(window_nll.size());
  result.seq_len = seq_len;
  result.scored_tokens = result.windows * (seq_len - 1);
  std::vector<double> means = window_nll;
  for (double& mean : means) mean /= static_cast<double>(seq_len - 1);
  const double total = std::accumulate(means.begin(), means.end(), 0.0);
  result.perplexity = std::exp(total / static_cast<double>(result.windows));
  result.standard_error = result.perplexity * standard_error_of_mean(means);
  result.window_nll = std::move(window_nll);
  return result;
}

MeasuredModel measured(Model& model, KvFormat kv_format) {
  return {.model = &model, .make_cache = [&model, kv_format](int64_t tokens) {
            return model.make_cache(kv_format, tokens, tokens);
          }};
}

PerplexityResult measure_perplexity(Model& model, KvFormat kv_format,
                                    std::span<const std::vector<int32_t>> windows, Exec& exec,
                                    const WindowDone& done) {
  return measure_perplexity(measured(model, kv_format), windows, exec, done);
}

PerplexityResult measure_perplexity(const MeasuredModel& model,
                                    std::span<const std::vector<int32_t>> windows, Exec& exec,
                                    const WindowDone& done) {
  LATHE_CHECK(!windows.empty());
  LogitStream stream = stream_of(model, longest(windows), exec);
  ChunkComparison comparison;
  const auto vocab_size = static_cast<std::size_t>(model.model->config().vocab_size);
  std::vector<double> window_nll;
  for (const std::vector<int32_t>& window : windows) {
    double nll = 0;
    stream.begin(window);
    while (stream.next()) {
      for (const RowComparison& row : comparison.compare(nullptr, stream, vocab_size, exec)) {
        nll += row.model_nll;
      }
    }
    window_nll.push_back(nll);
    if (done) done(static_cast<int64_t>(window.size()));
  }
  return summarize_perplexity(std::move(window_nll), longest(windows));
}

DivergenceResult measure_divergence(Model& reference, KvFormat reference_kv_format, Model& model,
                                    KvFormat kv_format,
                                    std::span<const std::vector<int32_t>> windows, Exec& exec,
                                    const WindowDone& done) {
  return measure_divergence(measured(reference, reference_kv_format), measured(model, kv_format),
                            windows, exec, done);
}

DivergenceResult measure_divergence(const MeasuredModel& reference, const MeasuredModel& model,
                                    std::span<const std::vector<int32_t>> windows, Exec& exec,
                                    const WindowDone& done) {
  LATHE_CHECK(!windows.empty() && reference.chunk_rows == model.chunk_rows);
  const int64_t common =
      std::min(reference.model->config().vocab_size, model.model->config().vocab_size);
  for (const auto& window : windows) {
    for (const int32_t id : window) {
      if (id >= common) {
        fail(ErrorCode::kInvalidArgument, "token ", id, " is beyond the ", common,
             " tokens that both models know: they have different tokenizers");
      }
    }
  }
  LogitStream reference_stream = stream_of(reference, longest(windows), exec);
  LogitStream stream = stream_of(model, longest(windows), exec);
  ChunkComparison comparison;
  std::vector<double> reference_nll, model_nll, window_kl;
  std::vector<float> token_kl;
  int64_t agreements = 0;
  for (const std::vector<int32_t>& window : windows) {
    double kl = 0, reference_sum = 0, model_sum = 0;
    reference_stream.begin(window);
    stream.begin(window);
    while (reference_stream.next() && stream.next()) {
      for (const RowComparison& row :
           comparison.compare(&reference_stream, stream, static_cast<std::size_t>(common), exec)) {
        kl += row.kl;
        reference_sum += row.reference_nll;
        model_sum += row.model_nll;
        agreements += row.same_top;
        token_kl.push_back(static_cast<float>(row.kl));
      }
    }
    reference_nll.push_back(reference_sum);
    model_nll.push_back(model_sum);
    window_kl.push_back(kl / static_cast<double>(window.size() - 1));
    if (done) done(static_cast<int64_t>(window.size()));
  }
  const int64_t seq_len = longest(windows);
  DivergenceResult result;
  result.mean_kl = mean_interval(window_kl).mean;
  result.mean_kl_error = standard_error_of_mean(window_kl);
  result.median_kl = quantile(token_kl, 0.5);
  result.p99_kl = quantile(token_kl, 0.99);
  result.max_kl = quantile(token_kl, 1);
  result.top1_agreement = static_cast<double>(agreements) / static_cast<double>(token_kl.size());
  result.reference = summarize_perplexity(std::move(reference_nll), seq_len);
  result.model = summarize_perplexity(std::move(model_nll), seq_len);
  return result;
}

}  // namespace lathe
