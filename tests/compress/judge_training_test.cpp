// Training of a judge: the optimizer against scikit-learn, statistics against plain definitions,
// and the file.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/atomic_file.h"
#include "base/json.h"
#include "base/rng.h"
#include "compress/fit_judge.h"
#include "compress/judge_statistics.h"
#include "compress/logistic_regression.h"
#include "formats/expect_error.h"
#include "formats/temporary_directory.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

struct Data {
  std::vector<float> features;
  std::vector<char> labels;
  std::vector<int64_t> rows;
  int64_t dim;
  LabeledRows view() const {
    return {.features = features, .labels = labels, .rows = rows, .dim = dim};
  }
};

// As scripts/make-logistic-golden makes them.
Data golden_data() {
  constexpr int64_t kRows = 4000;
  Data data{.features = {}, .labels = {}, .rows = {}, .dim = 64};
  uint64_t state = 1;
  const auto next = [&] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 33) / 2147483648.0 - 0.5;
  };
  for (int64_t i = 0; i < kRows * data.dim; ++i) {
    data.features.push_back(static_cast<float>(next()));
  }
  for (int64_t i = 0; i < kRows; ++i) {
    float* x = data.features.data() + i * data.dim;
    x[7] = 3;
    x[8] *= 1000;
    double score = 0;
    for (int j = 0; j < 6; ++j) score += (j % 2 ? 1 : -1) * double{x[j]};
    data.labels.push_back(score + 2 * next() > 0.6);
    data.rows.push_back(i);
  }
  return data;
}

TEST(LogisticRegression, AgreesWithScikitLearn) {
  const Data data = golden_data();
  const Json golden = read_json_file(golden_path("logistic.json"));
  ASSERT_EQ(std::count(data.labels.begin(), data.labels.end(), 1), golden["positives"]);
  const Standardization standardization = standardize(data.view());
  EXPECT_EQ(standardization.scale[7], 1);
  ThreadPool one(1), two(2);
  for (const Json& fit : golden["fits"]) {
    SCOPED_TRACE(dump_json(fit["C"]));
    const double c = fit["C"].get<double>();
    const LogisticModel model = fit_logistic(data.view(), standardization, c, nullptr, two);
    EXPECT_TRUE(model.converged);
    // |gradient| <= 1e-6 over a curvature of at least 1 (the penalty).
    EXPECT_NEAR(model.bias, fit["bias"].get<double>(), 2e-6);
    for (std::size_t j = 0; j < 64; ++j) {
      EXPECT_NEAR(model.weight[j], fit["weight"][j].get<double>(), 1e-6) << j;
    }
    const LogisticModel again = fit_logistic(data.view(), standardization, c, nullptr, one);
    EXPECT_EQ(again.weight, model.weight);  // whatever the number of threads
    EXPECT_EQ(again.bias, model.bias);
  }
}

TEST(LogisticRegression, EdgeCases) {
  Data data = golden_data();
  ThreadPool threads(1);
  const Standardization standardization = standardize(data.view());
  // C -> 0: no weights, the base rate.
  const LogisticModel model = fit_logistic(data.view(), standardization, 1e-12, nullptr, threads);
  const double rate = 1036 / 4000.0;
  for (const double weight : model.weight) EXPECT_NEAR(weight, 0, 1e-6);
  EXPECT_NEAR(model.bias, std::log(rate / (1 - rate)), 1e-6);
  // A warm start ends where a cold one ends.
  const LogisticModel warm = fit_logistic(data.view(), standardization, 1, &model, threads);
  const LogisticModel cold = fit_logistic(data.view(), standardization, 1, nullptr, threads);
  for (std::size_t j = 0; j < 64; ++j) EXPECT_NEAR(warm.weight[j], cold.weight[j], 2e-6);
  // Every row twice at half the C is the same problem.
  Data twice = data;
  twice.rows.insert(twice.rows.end(), data.rows.begin(), data.rows.end());
  const LogisticModel doubled = fit_logistic(twice.view(), standardization, .5, nullptr, threads);
  for (std::size_t j = 0; j < 64; ++j) EXPECT_NEAR(doubled.weight[j], cold.weight[j], 2e-6);

  Data one_class = data;
  std::fill(one_class.labels.begin(), one_class.labels.end(), 0);
  expect_error(ErrorCode::kInvalidArgument, "unimportant",
               [&] { fit_logistic(one_class.view(), standardization, 1, nullptr, threads); });
  data.features[5] = std::numeric_limits<float>::quiet_NaN();
  expect_error(ErrorCode::kInvalidArgument, "not finite",
               [&] { fit_logistic(data.view(), standardization, 1, nullptr, threads); });
  data.rows.clear();
  expect_error(ErrorCode::kInvalidArgument, "no rows",
               [&] { fit_logistic(data.view(), standardization, 1, nullptr, threads); });
}

TEST(JudgeStatistics, AucIsThatOfAllPairs) {
  Rng rng(1);
  for (int round = 0; round < 50; ++round) {
    std::vector<double> scores;
    std::vector<char> labels;
    for (int i = 0; i < 60; ++i) {
      labels.push_back(rng.below(3) == 0);
      scores.push_back(static_cast<double>(rng.below(round % 2 ? 8 : 1000)) + labels.back());
    }
    double pairs = 0, count = 0;
    for (std::size_t i = 0; i < scores.size(); ++i) {
      for (std::size_t j = 0; j < scores.size(); ++j) {
        if (!labels[i] || labels[j]) continue;
        ++count;
        pairs += scores[i] > scores[j] ? 1 : scores[i] == scores[j] ? .5 : 0;
      }
    }
    EXPECT_NEAR(roc_auc(scores, labels), pairs / count, 1e-12);
  }
  EXPECT_EQ(roc_auc(std::vector<double>{1, 2}, std::vector<char>{0, 0}), .5);
}

TEST(JudgeStatistics, ThresholdsKeepTheirRecall) {
  const std::vector<double> p = {.1, .2, .3, .4, .5, .6, .7, .8, .9, .95};
  const std::vector<char> labels = {0, 0, 1, 0, 1, 0, 1, 1, 0, 1};  // five are important
  const ThresholdRow all = threshold_for_recall(p, labels, 1);
  EXPECT_EQ(all.threshold, .3);  // accepts .1 and .2
  EXPECT_EQ(all.recall, 1);
  EXPECT_EQ(all.rho, .2);
  const ThresholdRow most = threshold_for_recall(p, labels, .8);
  EXPECT_EQ(most.threshold, .5);
  EXPECT_EQ(most.recall, .8);
  EXPECT_EQ(most.rho, .4);
  EXPECT_EQ(threshold_for_recall(p, std::vector<char>(10, 0), .9).threshold, 0);
  const auto table = threshold_table(p, labels, 10);
  EXPECT_EQ(table.front().threshold, 0);
  for (std::size_t i = 1; i < table.size(); ++i) {
    EXPECT_GE(table[i].rho, table[i - 1].rho);
    EXPECT_LE(table[i].recall, table[i - 1].recall);
  }
  EXPECT_NEAR(
      calibration_error(std::vector<double>{.25, .25, .25, .25}, std::vector<char>{0, 0, 0, 1}), 0,
      1e-12);
}

// The area under the points is the AUC, ties included; the bins add up to the labels.
TEST(JudgeStatistics, CurvesSayWhatTheNumbersSay) {
  Rng rng(2);
  std::vector<double> scores;
  std::vector<char> labels;
  for (int i = 0; i < 300; ++i) {
    labels.push_back(rng.below(3) == 0);
    scores.push_back(static_cast<double>(rng.below(40) + 8 * labels.back()) / 50);
  }
  const auto curve = roc_curve(scores, labels, 1000);
  double area = 0;
  for (std::size_t i = 1; i < curve.size(); ++i) {
    EXPECT_GE(curve[i].true_positives, curve[i - 1].true_positives);
    area += (curve[i].false_positives - curve[i - 1].false_positives) *
            (curve[i].true_positives + curve[i - 1].true_positives) / 2;
  }
  EXPECT_NEAR(area, roc_auc(scores, labels), 1e-12);
  const auto few = roc_curve(scores, labels, 5);
  ASSERT_EQ(few.size(), 5u);
  EXPECT_EQ(few.front().true_positives, 0);
  EXPECT_EQ(few.back().true_positives, 1);
  EXPECT_EQ(roc_curve(scores, std::vector<char>(300, 1), 9).size(), 2u);

  double positives = 0, predicted = 0;
  for (const CalibrationBin& bin : calibration_bins(scores, labels)) {
    positives += bin.observed * static_cast<double>(bin.count);
    predicted += bin.predicted * static_cast<double>(bin.count);
  }
  EXPECT_NEAR(positives, static_cast<double>(std::count(labels.begin(), labels.end(), 1)), 1e-9);
  EXPECT_NEAR(predicted, std::accumulate(scores.begin(), scores.end(), 0.0), 1e-9);
}

// Q1: the share of new questions that are lost is at most the risk, on average.
TEST(JudgeStatistics, CertifiedThresholdsHold) {
  Rng rng(5);
  for (const double risk : {.02, .05, .2}) {
    double lost = 0;
    const int rounds = 2000;
    for (int round = 0; round < rounds; ++round) {
      std::vector<double> least;
      for (int i = 0; i < 100; ++i) least.push_back(rng.uniform());
      lost += certified_threshold(least, risk);  // of a uniform new one: P(least < threshold)
    }
    // The standard error of a mean of Beta variables with mean <= risk.
    EXPECT_LE(lost / rounds, risk + 4 * std::sqrt(risk / 100 / rounds));
    EXPECT_GT(lost / rounds, risk - .012);  // and not needlessly careful
  }
  EXPECT_EQ(certified_threshold(std::vector<double>(10, .5), .05), 0);   // too few to say anything
  EXPECT_EQ(certified_threshold(std::vector<double>(99, 2.0), .05), 1);  // nothing important at all
}

// Questions with a planted direction.
struct Mined {
  std::vector<MinedQuestion> questions;
  std::vector<float> features;
};
Mined planted(int num_questions, int64_t dim, double signal) {
  Rng rng(3);
  Mined mined;
  for (int q = 0; q < num_questions; ++q) {
    mined.questions.push_back({.question = q,
                               .used = true,
                               .outcome = "1",
                               .answer = {},
                               .tokens = {},
                               .features = {},
                               .generated_tokens = 10});
    for (int t = 0; t < 12; ++t) {
      const bool important = rng.below(4) == 0;
      mined.questions.back().tokens.push_back({.position = t, .important = important});
      for (int64_t j = 0; j < dim; ++j) {
        mined.features.push_back(
            static_cast<float>(rng.normal() + (j == 2 && important ? signal : 0)));
      }
    }
  }
  return mined;
}

// F7: two normal laws at a distance s have a Bayes AUC of Phi(s / sqrt 2): .9 for s = 1.8124.
TEST(FitJudge, FindsAPlantedDirection) {
  const Mined mined = planted(1000, 16, 1.8124);
  ThreadPool threads(2);
  const FittedJudge fitted =
      fit_judge(mined.questions, mined.features, 16, Json::object(), {}, threads);
  const Json report = parse_json(fitted.file.metadata, "report");
  EXPECT_NEAR(report["train"]["auc"]["train"].get<double>(), .9, .01);
  // 1200 rows, 300 of them positive: a standard error of .011.
  EXPECT_NEAR(report["train"]["auc"]["test"].get<double>(), .9, .035);
  EXPECT_NEAR(report["train"]["auc"]["validation"].get<double>(), .9, .035);
  const Json& test = report["test"];
  EXPECT_EQ(test["roc"].front(), Json({0.0, 0.0}));
  EXPECT_EQ(test["roc"].back(), Json({1.0, 1.0}));
  EXPECT_EQ(test["by_threshold"].front()["questions_changed"], 0.0);
  EXPECT_GT(test["by_threshold"].back()["questions_changed"].get<double>(), .9);
  EXPECT_GT(test["calibration"].size(), 4u);
  EXPECT_GT(fitted.file.default_threshold, 0);
  EXPECT_LT(fitted.file.default_threshold, 1);
  // J7: folded weights give the probabilities of the unfolded model.
  for (std::size_t row = 0; row < 100; ++row) {
    double score = double{fitted.file.bias};
    for (std::size_t j = 0; j < 16; ++j) {
      score += double{fitted.file.weight[j]} * double{mined.features[row * 16 + j]};
    }
    EXPECT_NEAR(1 / (1 + std::exp(-score)), fitted.probabilities[row], 1e-5);
  }
}

TEST(FitJudge, TooLittleIsAnError) {
  ThreadPool threads(1);
  const Mined few = planted(9, 4, 1);
  expect_error(ErrorCode::kInvalidArgument, "9 questions",
               [&] { fit_judge(few.questions, few.features, 4, Json::object(), {}, threads); });
}

class JudgeFileTest : public ::testing::Test {
 protected:
  JudgeFile judge() const {
    const Mined mined = planted(40, 8, 2);
    ThreadPool threads(1);
    FittedJudge fitted = fit_judge(mined.questions, mined.features, 8, Json::object(), {}, threads);
    fitted.file.target = {.config_sha256 = "c",
                          .weights_sha256 = "w",
                          .weight_format = "mxfp4",
                          .hidden_size = 8,
                          .layers_sha256 = "l",
                          .tokenizer_sha256 = "t",
                          .compute = "auto",
                          .kv_format = "bf16",
                          .name = "tiny"};
    return fitted.file;
  }
  TemporaryDirectory directory_;
};

TEST_F(JudgeFileTest, RoundTripsWithTheSameBytes) {
  const JudgeFile written = judge();
  write_judge_file(directory_ / "a", written);
  write_judge_file(directory_ / "b", judge());
  EXPECT_EQ(read_file(directory_ / "a"), read_file(directory_ / "b"));
  const JudgeFile read = read_judge_file(directory_ / "a");
  EXPECT_EQ(read.weight, written.weight);
  EXPECT_EQ(read.bias, written.bias);
  EXPECT_EQ(read.threshold, written.threshold);
  EXPECT_EQ(read.target, written.target);
  EXPECT_EQ(read.default_threshold, written.default_threshold);
  const Json certificate = parse_json(written.metadata, "metadata")["risk"]["certified"];
  ASSERT_FALSE(certificate.empty());
  ASSERT_EQ(read.certified.size(), certificate.size());
  for (std::size_t i = 0; i < certificate.size(); ++i) {
    EXPECT_EQ(read.certified[i], certificate[i]["threshold"].get<double>());
  }
}

TEST_F(JudgeFileTest, DamagedFilesAreRefused) {
  write_judge_file(directory_ / "good", judge());
  const std::string good = read_file(directory_ / "good");
  Rng rng(2);
  // Cut anywhere, or with any byte changed: an Error, or a file that still checks out.
  for (int i = 0; i < 400; ++i) {
    std::string bad = good;
    if (i % 2 == 0) {
      bad.resize(rng.below(good.size()));
    } else {
      bad[rng.below(i % 4 == 1 ? std::min<std::size_t>(good.size(), 4000) : good.size())] ^=
          static_cast<char>(1 + rng.below(255));
    }
    const std::string path = directory_.write("bad", bad);
    try {
      const JudgeFile read = read_judge_file(path);
      EXPECT_EQ(i % 2, 1);
      EXPECT_EQ(read.weight.size(), 8u);
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("bad"), std::string::npos) << error.what();
    }
  }
  JudgeFile broken = judge();
  broken.weight[3] = std::numeric_limits<float>::quiet_NaN();
  write_judge_file(directory_ / "nan", broken);
  expect_error(ErrorCode::kCorruptData, "not finite", [&] { read_judge_file(directory_ / "nan"); });
  broken = judge();
  broken.recall.pop_back();
  write_judge_file(directory_ / "sizes", broken);
  expect_error(ErrorCode::kCorruptData, "contradict",
               [&] { read_judge_file(directory_ / "sizes"); });
  broken = judge();
  broken.default_threshold = 1.5;
  write_judge_file(directory_ / "threshold", broken);
  expect_error(ErrorCode::kCorruptData, "1.5", [&] { read_judge_file(directory_ / "threshold"); });
  broken = judge();
  broken.threshold.back() = 1.25f;
  write_judge_file(directory_ / "table", broken);
  expect_error(ErrorCode::kCorruptData, "1.25", [&] { read_judge_file(directory_ / "table"); });
  std::string renamed = good;
  renamed.replace(renamed.find("\"bias\""), 6, "\"bios\"");
  expect_error(ErrorCode::kCorruptData, "no tensor 'bias'",
               [&] { read_judge_file(directory_.write("missing", renamed)); });
  for (const Json& risk : {Json{{"certified", 3}}, Json::object(), Json("low"),
                           Json{{"certified", {{{"threshold", 1.5}}}}},
                           Json{{"certified", {{{"threshold", "0.5"}}}}}}) {
    broken = judge();
    Json metadata = parse_json(broken.metadata, "metadata");
    metadata["risk"] = risk;
    broken.metadata = dump_json(metadata);
    write_judge_file(directory_ / "risk", broken);
    expect_error(ErrorCode::kCorruptData, "risk", [&] { read_judge_file(directory_ / "risk"); });
  }
}

}  // namespace
}  // namespace lathe
