#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/rng.h"

namespace lathe {
namespace {

constexpr int64_t kVocab = 11;

// Logits that depend on the token and its position alone, so that expected values can be computed
// by hand. Uses the cache only as far as it must.
class TableModel final : public Model {
 public:
  explicit TableModel(uint64_t seed, int64_t vocab_size = kVocab) : seed_(seed) {
    config_.vocab_size = vocab_size;
    config_.hidden_size = config_.head_dim = config_.rotary_dim = 8;
    config_.num_layers = config_.num_heads = config_.num_kv_heads = 1;
    config_.max_position_embeddings = 4096;
    config_.layer_is_sliding = {false};
    config_.layer_is_moe = {false};
  }
  float logit(int32_t token, int64_t position, int64_t id) const {
    if (id >= kVocab) return 0;  // padding
    Rng rng(seed_ + static_cast<uint64_t>(token * 100000 + position * 100 + id));
    return static_cast<float>(3 * rng.normal());
  }
  double logprob(int32_t token, int64_t position, int64_t id) const {
    double sum = 0;
    for (int64_t i = 0; i < kVocab; ++i) {
      sum += std::exp(static_cast<double>(logit(token, position, i)));
    }
    return static_cast<double>(logit(token, position, id)) - std::log(sum);
  }

  const ModelConfig& config() const override { return config_; }
  int64_t weight_bytes() const override { return 0; }
  std::string kernels() const override { return ""; }
  void set_profile(StepProfile*) override {}
  void forward(const ForwardBatch& batch, KvCache& cache, float* logits, float*,
               Exec& exec) override {
    cache.begin_step(batch.sequences, exec);
    cache.commit();
    for (const int32_t row : batch.logit_rows) {
      for (int64_t id = 0; id < config_.vocab_size; ++id) {
        *logits++ = logit(batch.token_ids[static_cast<std::size_t>(row)],
                          batch.positions[static_cast<std::size_t>(row)], id);
      }
    }
  }

 private:
  uint64_t seed_;
  ModelConfig config_;
};

class PerplexityTest : public testing::Test {
 protected:
  ThreadPool threads_{2};
  Workspace workspace_;
  Exec exec_{threads_, workspace_};

  static std::vector<int32_t> random_ids(int64_t count) {
    Rng rng(5);
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(rng.below(kVocab)));
    return ids;
  }
};

TEST_F(PerplexityTest, CutsWindows) {
  const std::vector<int32_t> ids = {1, 2, 3, 4, 5, 6, 7};
  using Windows = std::vector<std::vector<int32_t>>;
  EXPECT_EQ(cut_windows(ids, std::nullopt, {.seq_len = 3}), (Windows{{1, 2, 3}, {4, 5, 6}}));
  EXPECT_EQ(cut_windows(ids, 9, {.seq_len = 3}), (Windows{{9, 1, 2}, {9, 3, 4}, {9, 5, 6}}));
  EXPECT_EQ(cut_windows(ids, 9, {.seq_len = 3, .max_windows = 1}), (Windows{{9, 1, 2}}));
  EXPECT_EQ(cut_windows(ids, std::nullopt, {.seq_len = 7}), (Windows{ids}));
  for (const WindowOptions& bad :
       {WindowOptions{.seq_len = 1}, WindowOptions{.seq_len = 8},
        WindowOptions{.seq_len = 3, .max_windows = -1}, WindowOptions{.seq_len = -5}}) {
    try {
      cut_windows(ids, std::nullopt, bad);
      FAIL() << bad.seq_len;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    }
  }
}

// Windows longer than a chunk of logits, a length that is no multiple of it, two threads.
TEST_F(PerplexityTest, IsTheExponentOfTheMeanNll) {
  TableModel model(1);
  for (const int64_t seq_len : {2, 127, 129, 130, 300}) {
    const auto windows = cut_windows(random_ids(1000), std::nullopt, {.seq_len = seq_len});
    std::vector<double> expected;
    for (const auto& window : windows) {
      double nll = 0;
      for (std::size_t i = 0; i + 1 < window.size(); ++i) {
        nll -= model.logprob(window[i], static_cast<int64_t>(i), window[i + 1]);
      }
      expected.push_back(nll);
    }
    const PerplexityResult result = measure_perplexity(model, KvFormat::kF32, windows, exec_);
    ASSERT_EQ(result.windows, static_cast<int64_t>(windows.size()));
    EXPECT_EQ(result.scored_tokens, result.windows * (seq_len - 1));
    double total = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      // fp32 exponentials: a relative error of some 1e-7 in each token's normaliser.
      EXPECT_NEAR(result.window_nll[i], expected[i], 1e-6 * static_cast<double>(seq_len));
      total += expected[i];
    }
    EXPECT_NEAR(std::log(result.perplexity), total / static_cast<double>(result.scored_tokens),
                1e-6);
    EXPECT_GT(result.standard_error, 0);
  }
}

TEST_F(PerplexityTest, OneWindowHasNoStandardError) {
  EXPECT_TRUE(std::isnan(summarize_perplexity({12.0}, 5).standard_error));
  EXPECT_NEAR(summarize_perplexity({12.0}, 5).perplexity, std::exp(3.0), 1e-12);
  // Means 3 and 1, standard deviation sqrt(2), of the mean 1; times the perplexity.
  EXPECT_NEAR(summarize_perplexity({12.0, 4.0}, 5).standard_error, std::exp(2.0), 1e-12);
}

TEST_F(PerplexityTest, DivergenceOfAModelFromItselfIsZero) {
  TableModel model(1), same(1);
  const auto windows = cut_windows(random_ids(600), std::nullopt, {.seq_len = 200});
  const DivergenceResult result =
      measure_divergence(model, KvFormat::kF32, same, KvFormat::kF32, windows, exec_);
  EXPECT_NEAR(result.mean_kl, 0, 1e-6);
  EXPECT_NEAR(result.max_kl, 0, 1e-6);
  EXPECT_EQ(result.top1_agreement, 1);
  EXPECT_EQ(result.reference.perplexity, result.model.perplexity);
}

TEST_F(PerplexityTest, DivergenceIsTheExpectedLogRatio) {
  TableModel reference(1), model(2, kVocab + 3);  // padded vocabulary
  const auto windows = cut_windows(random_ids(300), std::nullopt, {.seq_len = 150});
  double sum = 0, largest = 0, agreements = 0;
  for (const auto& window : windows) {
    for (std::size_t i = 0; i + 1 < window.size(); ++i) {
      const auto position = static_cast<int64_t>(i);
      double kl = 0;
      int64_t best_reference = 0, best_model = 0;
      for (int64_t id = 0; id < kVocab; ++id) {
        const double p = reference.logprob(window[i], position, id);
        kl += std::exp(p) * (p - model.logprob(window[i], position, id));
        const auto better = [&](const TableModel& m, int64_t best) {
          return m.logit(window[i], position, id) > m.logit(window[i], position, best);
        };
        if (better(reference, best_reference)) best_reference = id;
        if (better(model, best_model)) best_model = id;
      }
      sum += kl;
      largest = std::max(largest, kl);
      agreements += best_reference == best_model;
    }
  }
  const double count = 2 * 149;
  const DivergenceResult result =
      measure_divergence(reference, KvFormat::kF32, model, KvFormat::kF32, windows, exec_);
  EXPECT_NEAR(result.mean_kl, sum / count, 1e-5);
  EXPECT_NEAR(result.max_kl, largest, 1e-5);
  EXPECT_NEAR(result.top1_agreement, agreements / count, 1e-12);
  EXPECT_LT(result.median_kl, result.p99_kl);
}

TEST_F(PerplexityTest, TokensBeyondTheCommonVocabularyAreRefused) {
  TableModel reference(1), model(2, kVocab + 3);
  const std::vector<std::vector<int32_t>> windows = {{1, static_cast<int32_t>(kVocab) + 1}};
  EXPECT_THROW(measure_divergence(reference, KvFormat::kF32, model, KvFormat::kF32, windows, exec_),
               Error);
}

TEST(LogSumExp, StaysFiniteAndKeepsNan) {
  const std::vector<float> large = {1000, 1000};
  EXPECT_NEAR(log_sum_exp_f32(large), 1000 + std::log(2.0), 1e-9);
  const std::vector<float> small = {-1e30f, -1e30f};
  EXPECT_NEAR(log_sum_exp_f32(small), -1e30, 1e24);
  const std::vector<float> broken = {1, std::nanf(""), 2};
  EXPECT_TRUE(std::isnan(log_sum_exp_f32(broken)));
}

}  // namespace
}  // namespace lathe
