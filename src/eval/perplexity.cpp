#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
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

std::unique_ptr<LogitStream> stream_of(const MeasuredModel& measured, int64_t window_tokens,
                                       Exec& exec) {
  return std::make_unique<LogitStream>(*measured.model, measured.make_cache(window_tokens),
                                       window_tokens, measured.chunk_rows, exec, /*stay=*/true);
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
  // Before the reference's model computes something else: its rows are needed until the next chunk.
  void keep([[maybe_unused]] const LogitStream& reference) {
#ifdef LATHE_HAS_CUDA
    if (reference.device_rows() != nullptr) device_.keep(reference);
#endif
  }

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

// What the windows of one model and its reference add up to.
class DivergenceSums {
 public:
  void begin_window() { kl_ = reference_sum_ = model_sum_ = 0; }
  void add(const RowComparison& row) {
    kl_ += row.kl;
    reference_sum_ += row.reference_nll;
    model_sum_ += row.model_nll;
    agreements_ += row.same_top;
    token_kl_.push_back(static_cast<float>(row.kl));
  }
  void end_window(std::size_t tokens) {
    reference_nll_.push_back(reference_sum_);
    model_nll_.push_back(model_sum_);
    window_kl_.push_back(kl_ / static_cast<double>(tokens - 1));
  }
  DivergenceResult result(int64_t seq_len) && {
    DivergenceResult result;
    result.mean_kl = mean_interval(window_kl_).mean;
    result.mean_kl_error = standard_error_of_mean(window_kl_);
    result.median_kl = quantile(token_kl_, 0.5);
    result.p99_kl = quantile(token_kl_, 0.99);
    result.max_kl = quantile(token_kl_, 1);
    result.top1_agreement =
        static_cast<double>(agreements_) / static_cast<double>(token_kl_.size());
    result.reference = summarize_perplexity(std::move(reference_nll_), seq_len);
    result.model = summarize_perplexity(std::move(model_nll_), seq_len);
    return result;
  }

 private:
  double kl_ = 0, reference_sum_ = 0, model_sum_ = 0;  // of the window
  std::vector<double> reference_nll_, model_nll_, window_kl_;
  std::vector<float> token_kl_;
  int64_t agreements_ = 0;
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
  const std::unique_ptr<LogitStream> stream = stream_of(model, longest(windows), exec);
  ChunkComparison comparison;
  const auto vocab_size = static_cast<std::size_t>(model.model->config().vocab_size);
  std::vector<double> window_nll;
  for (const std::vector<int32_t>& window : windows) {
    double nll = 0;
    stream->begin(window);
    while (stream->next()) {
      for (const RowComparison& row : comparison.compare(nullptr, *stream, vocab_size, exec)) {
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
  return measure_divergences(reference, {&model, 1}, windows, exec, done).front();
}

int64_t common_vocabulary(const Model& reference, const Model& model,
                          std::span<const std::vector<int32_t>> windows) {
  const int64_t common = std::min(reference.config().vocab_size, model.config().vocab_size);
  for (const auto& window : windows) {
    for (const int32_t id : window) {
      if (id >= common) {
        fail(ErrorCode::kInvalidArgument, "token ", id, " is beyond the ", common,
             " tokens that both models know: they have different tokenizers");
      }
    }
  }
  return common;
}

std::vector<DivergenceResult> measure_divergences(const MeasuredModel& reference,
                                                  std::span<const MeasuredModel> models,
                                                  std::span<const std::vector<int32_t>> windows,
                                                  Exec& exec, const WindowDone& done) {
  LATHE_CHECK(!windows.empty() && !models.empty());
  std::vector<std::size_t> common;
  for (const MeasuredModel& model : models) {
    LATHE_CHECK(reference.chunk_rows == model.chunk_rows);
    common.push_back(
        static_cast<std::size_t>(common_vocabulary(*reference.model, *model.model, windows)));
  }
  const std::unique_ptr<LogitStream> reference_stream =
      stream_of(reference, longest(windows), exec);
  std::vector<std::unique_ptr<LogitStream>> streams;
  bool shares_model = false;
  for (const MeasuredModel& model : models) {
    streams.push_back(stream_of(model, longest(windows), exec));
    shares_model |= model.model == reference.model;
  }
  ChunkComparison comparison;
  std::vector<DivergenceSums> sums(models.size());
  for (const std::vector<int32_t>& window : windows) {
    reference_stream->begin(window);
    for (std::size_t m = 0; m < models.size(); ++m) {
      streams[m]->begin(window);
      sums[m].begin_window();
    }
    while (reference_stream->next()) {
      if (shares_model) comparison.keep(*reference_stream);
      for (std::size_t m = 0; m < models.size(); ++m) {
        LATHE_CHECK(streams[m]->next());
        for (const RowComparison& row :
             comparison.compare(reference_stream.get(), *streams[m], common[m], exec)) {
          sums[m].add(row);
        }
      }
    }
    for (DivergenceSums& sum : sums) sum.end_window(window.size());
    if (done) done(static_cast<int64_t>(window.size()));
  }
  std::vector<DivergenceResult> results;
  for (DivergenceSums& sum : sums) {
    results.push_back(std::move(sum).result(longest(windows)));
  }
  return results;
}

}  // namespace lathe
