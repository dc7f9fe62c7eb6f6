#include "compress/linear_group.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "compress/coordinate_descent.h"
#ifdef LATHE_HAS_CUDA
#include "compress/cuda_linear_group.h"
#endif
#include "compress/gptq.h"
#include "compress/group_trial.h"
#include "quant/encode.h"
#include "quant/hadamard.h"

namespace lathe {
namespace {

std::size_t size_of(const Tensor& tensor) {
  return static_cast<std::size_t>(tensor.num_elements());
}

double num_weights(std::span<const LinearTask> tasks) {
  double count = 0;
  for (const LinearTask& task : tasks) count += static_cast<double>(task.weight.num_elements());
  return count;
}

struct Trial : GroupTrial {
  std::vector<QuantizedMatrix> matrices;
};

class GroupQuantizer {
 public:
  GroupQuantizer(std::span<LinearTask> tasks, const QuantizeOptions& options, bool use_gptq,
                 Exec& exec, CalibrationProfile* profile)
      : tasks_(tasks), options_(options), use_gptq_(use_gptq), exec_(exec), profile_(profile) {}

  // Weights are rotated already. h: Hessian of the rotated input, or null; judge: the one that
  // errors are measured with.
  Trial run(int64_t hadamard, double damping, const float* h, const float* judge) {
    const int64_t k = tasks_[0].weight.dim(1);
    Trial trial;
    trial.hadamard = hadamard;
    std::optional<HessianFactor> factor;
    if (use_gptq_) {
      const auto width = static_cast<double>(k);
      const CalibrationTimer timer(profile_, CalibrationStage::kFactor, width * width * width / 3);
      factor = factor_hessian(h, k, options_.order, damping, exec_);
      trial.damping = factor->damping;
      trial.escalations = factor->escalations;
      trial.dead_columns = factor->dead_columns;
    }
    const std::vector<float> weights = column_weights(h, k, factor ? &*factor : nullptr);

    std::vector<ScaleProblem> problems;
    trial.matrices.reserve(tasks_.size());
    for (const LinearTask& task : tasks_) {
      trial.matrices.push_back(make_quantized_matrix(options_.format, task.weight.dim(0), k));
      problems.push_back({&trial.matrices.back(), task.weight.as<float>(),
                          weights.empty() ? nullptr : weights.data()});
    }
    {
      const CalibrationTimer timer(profile_, CalibrationStage::kScales, num_weights(tasks_));
      choose_scales(problems, options_.scales, exec_);
    }

    for (std::size_t i = 0; i < tasks_.size(); ++i) {
      const float* w = tasks_[i].weight.as<float>();
      QuantizedMatrix& matrix = trial.matrices[i];
      trial.energies.push_back(energy(w, matrix.rows, k, judge));
      round_to_nearest(matrix, w, exec_);
      const double rtn_error = error(matrix, w, judge);
      if (use_gptq_) {
        trial.rtn_errors.push_back(rtn_error);
        const double known = run_gptq(matrix, w, *factor, weights);
        const int sweeps = coordinate_descent(matrix, w, h, factor->added, options_.sweeps, exec_);
        trial.errors.push_back(judge == h && sweeps == 0 ? known : error(matrix, w, judge));
      } else {
        trial.errors.push_back(rtn_error);
      }
    }
    return trial;
  }

 private:
  // Fills the codes; returns the output error on the calibration tokens.
  double run_gptq(QuantizedMatrix& matrix, const float* w, const HessianFactor& factor,
                  const std::vector<float>& weights) {
    const bool refines =
        options_.refinements > 0 && options_.scales.search == ScaleSearch::kExhaustive;
    Buffer targets(refines ? matrix.rows * matrix.cols * static_cast<int64_t>(sizeof(float)) : 0);
    GptqResult best = gptq(matrix, w, factor, exec_, kGptqBlock,
                           refines ? targets.as<float>() : nullptr, profile_);
    for (int round = 0; refines && round < options_.refinements; ++round) {
      QuantizedMatrix again = make_quantized_matrix(matrix.format, matrix.rows, matrix.cols);
      again.global_scale = matrix.global_scale;
      again.log_alpha = matrix.log_alpha;
      again.log_beta = matrix.log_beta;
      ScaleSearchOptions scales = options_.scales;
      scales.keep_global = true;
      const ScaleProblem problem{&again, targets.as<float>(),
                                 weights.empty() ? nullptr : weights.data()};
      {
        const CalibrationTimer timer(
            profile_, CalibrationStage::kScales,
            static_cast<double>(matrix.rows) * static_cast<double>(matrix.cols));
        choose_scales({&problem, 1}, scales, exec_);
      }
      const bool last = round + 1 == options_.refinements;
      const GptqResult result =
          gptq(again, w, factor, exec_, kGptqBlock, last ? nullptr : targets.as<float>(), profile_);
      for (int64_t row = 0; row < matrix.rows; ++row) {
        const auto i = static_cast<std::size_t>(row);
        if (result.row_errors[i] >= best.row_errors[i]) continue;
        best.output_error += result.row_errors[i] - best.row_errors[i];
        best.row_errors[i] = result.row_errors[i];
        copy_row(again, row, matrix);
      }
    }
    return best.output_error;
  }

  static void copy_row(const QuantizedMatrix& from, int64_t row, QuantizedMatrix& to) {
    const int64_t codes = from.code_row_bytes();
    const int64_t scales = from.num_groups() * scale_bytes(from.format.scale);
    std::memcpy(to.codes.data() + row * codes, from.codes.data() + row * codes,
                static_cast<std::size_t>(codes));
    std::memcpy(to.scales.data() + row * scales, from.scales.data() + row * scales,
                static_cast<std::size_t>(scales));
  }

  std::vector<float> column_weights(const float* h, int64_t k, const HessianFactor* factor) const {
    std::vector<float> weights;
    if (h == nullptr || options_.column_weights == ColumnWeights::kNone) return weights;
    weights.resize(static_cast<std::size_t>(k));
    if (options_.column_weights == ColumnWeights::kPivot && factor != nullptr) {
      for (std::size_t c = 0; c < weights.size(); ++c) {
        weights[static_cast<std::size_t>(factor->order[c])] = factor->pivot[c] * factor->pivot[c];
      }
    } else {
      for (int64_t j = 0; j < k; ++j) weights[static_cast<std::size_t>(j)] = h[j * k + j];
    }
    return weights;
  }

  double energy(const float* w, int64_t rows, int64_t k, const float* judge) const {
    const CalibrationTimer timer(profile_, CalibrationStage::kError,
                                 judge != nullptr ? error_work(rows, k) : 0);
    if (judge != nullptr) return output_error(w, rows, judge, k, exec_);
    return sum_of_squares(w, rows * k);
  }

  double error(const QuantizedMatrix& matrix, const float* w, const float* judge) {
    const CalibrationTimer timer(profile_, CalibrationStage::kError,
                                 judge != nullptr ? error_work(matrix.rows, matrix.cols) : 0);
    const int64_t count = matrix.rows * matrix.cols;
    difference_.reserve(count * static_cast<int64_t>(sizeof(float)));
    float* d = difference_.as<float>();
    exec_.threads.parallel_for(matrix.rows, 16, [&](int64_t begin, int64_t end, int) {
      dequantize_rows(matrix, begin, end, d + begin * matrix.cols);
      for (int64_t i = begin * matrix.cols; i < end * matrix.cols; ++i) d[i] = w[i] - d[i];
    });
    if (judge != nullptr) return output_error(d, matrix.rows, judge, matrix.cols, exec_);
    return sum_of_squares(d, count);
  }

  static double error_work(int64_t rows, int64_t k) {
    return static_cast<double>(rows) * static_cast<double>(k) * static_cast<double>(k);
  }

  static double sum_of_squares(const float* values, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += double{values[i]} * double{values[i]};
    return sum;
  }

  std::span<LinearTask> tasks_;
  const QuantizeOptions& options_;
  bool use_gptq_;
  Exec& exec_;
  CalibrationProfile* profile_;
  Buffer difference_;
};

void rotate_weights(std::span<LinearTask> tasks, int64_t block, Exec& exec) {
  for (LinearTask& task : tasks) {
    float* w = task.weight.as<float>();
    const int64_t k = task.weight.dim(1);
    exec.threads.parallel_for(task.weight.dim(0), 16, [&](int64_t begin, int64_t end, int) {
      hadamard_rows(w + begin * k, end - begin, k, block);
    });
  }
}

}  // namespace

std::vector<LinearReport> quantize_group(std::span<LinearTask> tasks, InputStatistics* statistics,
                                         InputStatistics* held_out, const QuantizeOptions& options,
                                         bool use_gptq, Exec& exec, CalibrationProfile* profile) {
  LATHE_CHECK(!tasks.empty());
  const int64_t k = tasks[0].weight.dim(1);
  const int64_t tokens = statistics != nullptr ? statistics->tokens() : 0;
  const bool has_hessian = tokens > 0 && statistics->has_gram();
  LATHE_CHECK(has_hessian || !use_gptq);
#ifdef LATHE_HAS_CUDA
  if (exec.on_cuda()) {
    return cuda_quantize_group(tasks, cuda_group_input(statistics, held_out, exec), options,
                               use_gptq, exec);
  }
#endif
  const CalibrationTimer timer(profile, CalibrationStage::kFactor);
  Buffer h = has_hessian ? statistics->take_hessian(exec) : Buffer();
  const bool has_judge = has_hessian && held_out != nullptr && held_out->tokens() > 0;
  Buffer judge = has_judge ? held_out->take_hessian(exec) : Buffer();

  // Rotations compose, H_a then H_b is not H_b: each candidate starts from the weights as they
  // came.
  std::vector<Tensor> original;
  if (options.hadamard.size() > 1) {
    for (const LinearTask& task : tasks) original.push_back(task.weight.clone());
  }
  std::vector<double> dampings = options.damping;
  if (!use_gptq) dampings.resize(1);

  GroupQuantizer quantizer(tasks, options, use_gptq, exec, profile);
  std::optional<Trial> best;
  int64_t rotated_by = 0;
  const std::vector<int64_t> rotations = usable_rotations(options, k, tasks[0].module);
  for (const int64_t block : rotations) {
    if (!original.empty()) {
      for (std::size_t i = 0; i < tasks.size(); ++i) {
        std::memcpy(tasks[i].weight.data(), original[i].data(),
                    size_of(original[i]) * sizeof(float));
      }
    }
    rotate_weights(tasks, block, exec);
    rotated_by = block;
    const bool last = block == rotations.back();
    Buffer h_rotated;
    Buffer judge_rotated;
    if (has_hessian) {
      h_rotated = last ? std::move(h) : h.clone();
      rotate_hessian(h_rotated.as<float>(), k, block, exec);
    }
    if (has_judge) {
      judge_rotated = last ? std::move(judge) : judge.clone();
      rotate_hessian(judge_rotated.as<float>(), k, block, exec);
    }
    const float* h_data = has_hessian ? h_rotated.as<float>() : nullptr;
    for (const double damping : dampings) {
      Trial trial =
          quantizer.run(block, damping, h_data, has_judge ? judge_rotated.as<float>() : h_data);
      if (!best || trial.total() < best->total()) best = std::move(trial);
    }
  }
  if (best->hadamard != rotated_by && !original.empty()) {
    for (std::size_t i = 0; i < tasks.size(); ++i) tasks[i].weight = std::move(original[i]);
    rotate_weights(tasks, best->hadamard, exec);
  }

  for (std::size_t i = 0; i < tasks.size(); ++i) {
    tasks[i].quantized = std::move(best->matrices[i]);
  }
  return group_reports(tasks, *best, options, use_gptq, tokens);
}

std::string reports_to_json(const std::vector<LinearReport>& reports) {
  Json list = Json::array();
  for (const LinearReport& report : reports) {
    list.push_back({{"module", report.module},
                    {"rows", report.rows},
                    {"cols", report.cols},
                    {"tokens", report.tokens},
                    {"hadamard", report.hadamard},
                    {"damping", report.damping},
                    {"escalations", report.escalations},
                    {"dead_columns", report.dead_columns},
                    {"rtn_fallback", report.rtn_fallback},
                    {"error", report.error},
                    {"rtn_error", report.rtn_error}});
  }
  return dump_json(list);
}

std::vector<LinearReport> reports_from_json(const std::string& text) {
  std::vector<LinearReport> reports;
  try {
    for (const Json& entry : parse_json(text, "quantization record")) {
      LinearReport report;
      report.module = entry.at("module").get<std::string>();
      report.rows = entry.at("rows").get<int64_t>();
      report.cols = entry.at("cols").get<int64_t>();
      report.tokens = entry.at("tokens").get<int64_t>();
      report.hadamard = entry.at("hadamard").get<int64_t>();
      report.damping = entry.at("damping").get<double>();
      report.escalations = entry.at("escalations").get<int>();
      report.dead_columns = entry.at("dead_columns").get<int64_t>();
      report.rtn_fallback = entry.at("rtn_fallback").get<bool>();
      report.error = entry.at("error").get<double>();
      report.rtn_error = entry.at("rtn_error").get<double>();
      reports.push_back(std::move(report));
    }
  } catch (const Json::exception& error) {
    fail(ErrorCode::kCorruptData, "quantization record: ", error.what());
  }
  return reports;
}

}  // namespace lathe
