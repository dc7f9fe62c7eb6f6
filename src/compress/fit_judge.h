// From mined tokens to a judge: split by question, choice of C by cross-validation, fit, thresholds
// on validation, report on test.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "compress/judge_miner.h"
#include "formats/judge_file.h"

namespace lathe {

struct FitJudgeOptions {
  uint64_t seed = 52;  // of the split
  std::vector<double> c_grid = {1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1};
  int64_t folds = 5;
  double recall = 0.9;  // of important tokens, at the default threshold
};

struct FittedJudge {
  JudgeFile file;                     // but for target
  std::vector<double> probabilities;  // of every mined token, in their order
};

// questions: mined, with tokens; features: [all their tokens, dim] in order. `mining`: what the
// report says of it, copied. The report becomes the file's metadata. The same bits for the same
// input. Throws kInvalidArgument when there is too little to learn from: fewer than ten questions
// with tokens, or one class only.
FittedJudge fit_judge(std::span<const MinedQuestion> questions, std::span<const float> features,
                      int64_t dim, const nlohmann::ordered_json& mining,
                      const FitJudgeOptions& options, ThreadPool& threads);

}  // namespace lathe
