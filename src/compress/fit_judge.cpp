#include "compress/fit_judge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "base/json.h"
#include "base/rng.h"
#include "compress/judge_statistics.h"
#include "compress/logistic_regression.h"

namespace lathe {
namespace {

constexpr std::size_t kLeastQuestions = 10;
constexpr int kBootstraps = 1000;
constexpr double kRisks[] = {0.01, 0.02, 0.05, 0.1, 0.2};
constexpr double kRecalls[] = {0.98, 0.95, 0.9, 0.8, 0.7};

double sigmoid(double score) { return 1 / (1 + std::exp(-score)); }

struct Rows {
  std::vector<std::vector<int64_t>> by_question;  // only questions with tokens
  std::vector<char> labels;
};

Rows collect(std::span<const MinedQuestion> questions) {
  Rows rows;
  int64_t next = 0;
  for (const MinedQuestion& question : questions) {
    if (question.tokens.empty()) continue;
    rows.by_question.emplace_back();
    for (const MinedToken& token : question.tokens) {
      rows.labels.push_back(token.important);
      rows.by_question.back().push_back(next++);
    }
  }
  return rows;
}

// Questions in random order, the same for the same seed.
std::vector<std::size_t> shuffled(std::size_t count, uint64_t seed) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  Rng rng(seed);
  for (std::size_t i = count; i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);
  return order;
}

std::vector<int64_t> rows_of(const Rows& rows, std::span<const std::size_t> questions) {
  std::vector<int64_t> list;
  for (const std::size_t q : questions) {
    list.insert(list.end(), rows.by_question[q].begin(), rows.by_question[q].end());
  }
  std::sort(list.begin(), list.end());
  return list;
}

struct Scored {
  std::vector<double> probabilities;
  std::vector<char> labels;
};
Scored pick(std::span<const double> probabilities, std::span<const char> labels,
            std::span<const int64_t> rows) {
  Scored scored;
  for (const int64_t row : rows) {
    scored.probabilities.push_back(probabilities[static_cast<std::size_t>(row)]);
    scored.labels.push_back(labels[static_cast<std::size_t>(row)]);
  }
  return scored;
}
double auc_of(const Scored& scored) { return roc_auc(scored.probabilities, scored.labels); }

class Fit {
 public:
  Fit(std::span<const MinedQuestion> questions, std::span<const float> features, int64_t dim,
      const FitJudgeOptions& options, ThreadPool& threads)
      : features_(features),
        dim_(dim),
        options_(options),
        threads_(threads),
        rows_(collect(questions)) {
    const std::size_t count = rows_.by_question.size();
    if (count < kLeastQuestions) {
      fail(ErrorCode::kInvalidArgument, "mining found tokens in ", count,
           " questions; a judge needs at least ", kLeastQuestions, ": mine more (--questions)");
    }
    const std::vector<std::size_t> order = shuffled(count, options.seed);
    const std::size_t tenth = std::max<std::size_t>(1, count / 10);
    test_.assign(order.begin(), order.begin() + static_cast<int64_t>(tenth));
    validation_.assign(order.begin() + static_cast<int64_t>(tenth),
                       order.begin() + static_cast<int64_t>(2 * tenth));
    train_.assign(order.begin() + static_cast<int64_t>(2 * tenth), order.end());
  }

  FittedJudge run(const Json& mining) {
    Json search = Json::array();
    const double c = choose_c(search);
    const std::vector<int64_t> train_rows = rows_of(rows_, train_);
    const Standardization standardization = standardize(labeled(train_rows));
    const LogisticModel model =
        fit_logistic(labeled(train_rows), standardization, c, nullptr, threads_);
    FittedJudge fitted;
    fitted.probabilities = probabilities(model, standardization);
    fill_file(fitted, model, standardization);
    const Scored train = pick(fitted.probabilities, rows_.labels, train_rows);
    const Scored validation = pick(fitted.probabilities, rows_.labels, rows_of(rows_, validation_));
    const Scored test = pick(fitted.probabilities, rows_.labels, rows_of(rows_, test_));

    const ThresholdRow chosen =
        threshold_for_recall(validation.probabilities, validation.labels, options_.recall);
    fitted.file.default_threshold = chosen.threshold;
    for (const ThresholdRow& row :
         threshold_table(validation.probabilities, validation.labels, 50)) {
      fitted.file.threshold.push_back(static_cast<float>(row.threshold));
      fitted.file.recall.push_back(static_cast<float>(row.recall));
      fitted.file.rho.push_back(static_cast<float>(row.rho));
    }
    Json report;
    report["mining"] = mining;
    report["train"] = {
        {"C", c},
        {"iterations", model.iterations},
        {"converged", model.converged},
        {"cross_validation", search},
        {"split",
         {{"by", "question"},
          {"seed", options_.seed},
          {"train", train_.size()},
          {"validation", validation_.size()},
          {"test", test_.size()}}},
        {"auc",
         {{"train", auc_of(train)},
          {"validation", auc_of(validation)},
          {"test", auc_of(test)},
          {"test_interval_95", bootstrap(fitted.probabilities)}}},
        {"calibration_error", calibration_error(validation.probabilities, validation.labels)}};
    report["recommended"] = Json::array();
    for (const double recall : kRecalls) {
      const ThresholdRow on_validation =
          threshold_for_recall(validation.probabilities, validation.labels, recall);
      report["recommended"].push_back({{"recall", recall},
                                       {"threshold", on_validation.threshold},
                                       {"rho", on_validation.rho},
                                       {"test", on_test(test, on_validation.threshold)}});
    }
    report["test"] = test_json(test, fitted.probabilities);
    report["guard"] = {{"pi_min", 1e-4}};
    report["risk"] = certificate(fitted.probabilities);
    fitted.file.metadata = dump_json(report);
    return fitted;
  }

 private:
  LabeledRows labeled(std::span<const int64_t> rows) const {
    return {.features = features_, .labels = rows_.labels, .rows = rows, .dim = dim_};
  }

  std::vector<double> probabilities(const LogisticModel& model,
                                    const Standardization& standardization) const {
    std::vector<double> values;
    for (std::size_t row = 0; row < rows_.labels.size(); ++row) {
      values.push_back(
          sigmoid(logistic_score(model, standardization,
                                 features_.subspan(row * static_cast<std::size_t>(dim_),
                                                   static_cast<std::size_t>(dim_)))));
    }
    return values;
  }

  // The best mean area under the curve over the folds, each scored by a fit on the others; along
  // the grid every fit begins where the one for the smaller C ended.
  double choose_c(Json& search) const {
    const std::size_t num_folds =
        std::min<std::size_t>(static_cast<std::size_t>(options_.folds), train_.size());
    std::vector<double> c_grid = options_.c_grid;
    std::sort(c_grid.begin(), c_grid.end());
    std::vector<double> sums(c_grid.size(), 0);
    int64_t used = 0;
    for (std::size_t fold = 0; fold < num_folds; ++fold) {
      std::vector<std::size_t> inside, outside;
      for (std::size_t i = 0; i < train_.size(); ++i) {
        (i % num_folds == fold ? outside : inside).push_back(train_[i]);
      }
      const std::vector<int64_t> fit_rows = rows_of(rows_, inside);
      const std::vector<int64_t> score_rows = rows_of(rows_, outside);
      if (!has_both(fit_rows) || !has_both(score_rows)) continue;
      ++used;
      const Standardization standardization = standardize(labeled(fit_rows));
      LogisticModel model;
      for (std::size_t k = 0; k < c_grid.size(); ++k) {
        model = fit_logistic(labeled(fit_rows), standardization, c_grid[k],
                             k == 0 ? nullptr : &model, threads_);
        sums[k] += auc_of(pick(probabilities(model, standardization), rows_.labels, score_rows));
      }
    }
    std::size_t best = c_grid.size() / 2;
    for (std::size_t k = 0; k < c_grid.size(); ++k) {
      if (used > 0) {
        search.push_back({{"C", c_grid[k]}, {"auc", sums[k] / static_cast<double>(used)}});
        if (sums[k] > sums[best]) best = k;
      }
    }
    return c_grid[best];
  }

  bool has_both(std::span<const int64_t> rows) const {
    const auto positives = std::count_if(rows.begin(), rows.end(), [&](int64_t row) {
      return rows_.labels[static_cast<std::size_t>(row)] != 0;
    });
    return positives > 0 && positives < std::ssize(rows);
  }

  // w' = w / scale, b' = b - sum w mean / scale.
  static void fill_file(FittedJudge& fitted, const LogisticModel& model,
                        const Standardization& standardization) {
    double bias = model.bias;
    for (std::size_t j = 0; j < model.weight.size(); ++j) {
      const double folded = model.weight[j] / standardization.scale[j];
      bias -= folded * standardization.mean[j];
      fitted.file.weight.push_back(static_cast<float>(folded));
      fitted.file.raw_weight.push_back(static_cast<float>(model.weight[j]));
      fitted.file.mean.push_back(static_cast<float>(standardization.mean[j]));
      fitted.file.scale.push_back(static_cast<float>(standardization.scale[j]));
    }
    fitted.file.bias = static_cast<float>(bias);
  }

  static Json on_test(const Scored& test, double threshold) {
    int64_t important = 0, kept = 0, accepted = 0;
    for (std::size_t i = 0; i < test.labels.size(); ++i) {
      const bool accepts = test.probabilities[i] < threshold;
      accepted += accepts;
      important += test.labels[i];
      kept += test.labels[i] && !accepts;
    }
    const auto share = [](int64_t a, int64_t b) {
      return b == 0 ? Json(nullptr) : Json(static_cast<double>(a) / static_cast<double>(b));
    };
    return {{"recall", share(kept, important)}, {"rho", share(accepted, std::ssize(test.labels))}};
  }

  // How the judge does on questions that nothing was chosen by.
  Json test_json(const Scored& test, std::span<const double> probabilities) const {
    Json json = {
        {"roc", Json::array()}, {"calibration", Json::array()}, {"by_threshold", Json::array()}};
    for (const RocPoint& point : roc_curve(test.probabilities, test.labels, 60)) {
      json["roc"].push_back({point.false_positives, point.true_positives});
    }
    for (const CalibrationBin& bin : calibration_bins(test.probabilities, test.labels)) {
      json["calibration"].push_back(
          {{"predicted", bin.predicted}, {"observed", bin.observed}, {"tokens", bin.count}});
    }
    const std::vector<double> least = least_important(test_, probabilities);
    for (const ThresholdRow& row : threshold_table(test.probabilities, test.labels, 20)) {
      const auto changed =
          std::count_if(least.begin(), least.end(), [&](double p) { return p < row.threshold; });
      json["by_threshold"].push_back(
          {{"threshold", row.threshold},
           {"recall", row.recall},
           {"rho", row.rho},
           {"questions_changed",
            static_cast<double>(changed) / static_cast<double>(least.size())}});
    }
    return json;
  }

  // Of each question, the smallest probability of an important token; infinite without one.
  std::vector<double> least_important(std::span<const std::size_t> questions,
                                      std::span<const double> probabilities) const {
    std::vector<double> least;
    for (const std::size_t q : questions) {
      least.push_back(std::numeric_limits<double>::infinity());
      for (const int64_t row : rows_.by_question[q]) {
        const auto i = static_cast<std::size_t>(row);
        if (rows_.labels[i]) least.back() = std::min(least.back(), probabilities[i]);
      }
    }
    return least;
  }

  // Of the area on the test questions, drawn again with replacement.
  Json bootstrap(std::span<const double> probabilities) const {
    Rng rng(options_.seed);
    std::vector<double> values;
    for (int i = 0; i < kBootstraps; ++i) {
      Scored scored;
      for (std::size_t k = 0; k < test_.size(); ++k) {
        for (const int64_t row : rows_.by_question[test_[rng.below(test_.size())]]) {
          scored.probabilities.push_back(probabilities[static_cast<std::size_t>(row)]);
          scored.labels.push_back(rows_.labels[static_cast<std::size_t>(row)]);
        }
      }
      values.push_back(auc_of(scored));
    }
    std::sort(values.begin(), values.end());
    return {values[kBootstraps / 40], values[kBootstraps - 1 - kBootstraps / 40]};
  }

  // On the validation questions: neither the fit nor the report has seen how they fare.
  Json certificate(std::span<const double> probabilities) const {
    const std::vector<double> least = least_important(validation_, probabilities);
    Json list = Json::array();
    for (const double risk : kRisks) {
      list.push_back({{"epsilon", risk},
                      {"threshold", certified_threshold(least, risk)},
                      {"questions", least.size()}});
    }
    return {{"method", "conformal risk control, on mined paths"}, {"certified", list}};
  }

  std::span<const float> features_;
  int64_t dim_;
  const FitJudgeOptions& options_;
  ThreadPool& threads_;
  Rows rows_;
  std::vector<std::size_t> train_, validation_, test_;
};

}  // namespace

FittedJudge fit_judge(std::span<const MinedQuestion> questions, std::span<const float> features,
                      int64_t dim, const Json& mining, const FitJudgeOptions& options,
                      ThreadPool& threads) {
  return Fit(questions, features, dim, options, threads).run(mining);
}

}  // namespace lathe
