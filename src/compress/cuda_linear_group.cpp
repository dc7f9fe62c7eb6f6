#include "compress/cuda_linear_group.h"

#include <optional>
#include <utility>

#include "base/check.h"
#include "compress/cuda_coordinate_descent.h"
#include "compress/cuda_gptq.h"
#include "compress/cuda_hessian_factor.h"
#include "compress/cuda_rotation.h"
#include "compress/cuda_scale_search.h"
#include "compress/group_trial.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr CudaStream kStream = nullptr;  // waits for the streams on which statistics were collected

struct CudaTrial : GroupTrial {
  std::vector<CudaQuantizedMatrix> matrices;
};

int64_t float_bytes(int64_t count) { return count * static_cast<int64_t>(sizeof(float)); }

DeviceBuffer copy_of(const DeviceBuffer& from) {
  DeviceBuffer to(from.size());
  cuda_check(cudaMemcpyAsync(to.data(), from.data(), static_cast<std::size_t>(from.size()),
                             cudaMemcpyDeviceToDevice, kStream),
             "copying on the GPU");
  return to;
}

// GroupQuantizer of linear_group.cpp on the device.
class CudaGroupQuantizer {
 public:
  CudaGroupQuantizer(std::span<const LinearTask> tasks, const QuantizeOptions& options,
                     bool use_gptq)
      : tasks_(tasks), options_(options), use_gptq_(use_gptq), k_(tasks[0].weight.dim(1)) {
    int64_t most_rows = 0;
    for (const LinearTask& task : tasks) most_rows = std::max(most_rows, task.weight.dim(0));
    difference_ = DeviceBuffer(float_bytes(most_rows * k_));
  }

  // Brings the weights over, rotated.
  void load_weights(int64_t hadamard) {
    weights_.resize(tasks_.size());
    for (std::size_t i = 0; i < tasks_.size(); ++i) {
      const Tensor& weight = tasks_[i].weight;
      weights_[i] = DeviceBuffer::from_host(weight.data(), weight.num_bytes());
      cuda_hadamard_rows(weights_[i].as<float>(), weight.dim(0), k_, hadamard, kStream);
    }
  }

  // h: Hessian of the rotated input, or null; judge: the one that errors are measured with.
  CudaTrial run(int64_t hadamard, double damping, const float* h, const float* judge) {
    CudaTrial trial;
    trial.hadamard = hadamard;
    std::optional<CudaHessianFactor> factor;
    if (use_gptq_) {
      factor = cuda_factor_hessian(h, k_, options_.order, damping, kStream);
      trial.damping = factor->damping;
      trial.escalations = factor->escalations;
      trial.dead_columns = factor->dead_columns;
    }
    const DeviceBuffer weights = column_weights(h, factor ? &*factor : nullptr);
    const float* column_weights = weights.size() > 0 ? weights.as<float>() : nullptr;

    std::vector<CudaScaleProblem> problems;
    trial.matrices.reserve(tasks_.size());
    for (std::size_t i = 0; i < tasks_.size(); ++i) {
      trial.matrices.push_back(
          make_cuda_quantized_matrix(options_.format, tasks_[i].weight.dim(0), k_));
      problems.push_back({&trial.matrices.back(), weights_[i].as<float>(), column_weights});
    }
    cuda_choose_scales(problems, options_.scales, kStream);

    for (std::size_t i = 0; i < tasks_.size(); ++i) {
      const float* w = weights_[i].as<float>();
      CudaQuantizedMatrix& matrix = trial.matrices[i];
      trial.energies.push_back(cuda_output_error(w, matrix.rows, judge, k_, kStream));
      cuda_round_to_nearest(matrix, w, kStream);
      const double rtn_error = error(matrix, w, judge);
      if (!use_gptq_) {
        trial.errors.push_back(rtn_error);
        continue;
      }
      trial.rtn_errors.push_back(rtn_error);
      const double known = run_gptq(matrix, w, *factor, column_weights);
      const int sweeps =
          cuda_coordinate_descent(matrix, w, h, factor->added, options_.sweeps, kStream);
      trial.errors.push_back(judge == h && sweeps == 0 ? known : error(matrix, w, judge));
    }
    return trial;
  }

 private:
  // Fills the codes; returns the output error on the calibration tokens.
  double run_gptq(CudaQuantizedMatrix& matrix, const float* w, const CudaHessianFactor& factor,
                  const float* column_weights) {
    const bool refines =
        options_.refinements > 0 && options_.scales.search == ScaleSearch::kExhaustive;
    if (!refines) return cuda_gptq(matrix, w, factor, kStream).output_error;
    DeviceBuffer targets(float_bytes(matrix.rows * matrix.cols));
    GptqResult best = cuda_gptq(matrix, w, factor, kStream, targets.as<float>());
    ScaleSearchOptions scales = options_.scales;
    scales.keep_global = true;
    for (int round = 0; round < options_.refinements; ++round) {
      CudaQuantizedMatrix again =
          make_cuda_quantized_matrix(matrix.format, matrix.rows, matrix.cols);
      again.global_scale = matrix.global_scale;
      again.log_alpha = matrix.log_alpha;
      again.log_beta = matrix.log_beta;
      again.update_scale_values();
      const CudaScaleProblem problem{&again, targets.as<float>(), column_weights};
      cuda_choose_scales({&problem, 1}, scales, kStream);
      const bool last = round + 1 == options_.refinements;
      const GptqResult result =
          cuda_gptq(again, w, factor, kStream, last ? nullptr : targets.as<float>());
      std::vector<uint8_t> takes(result.row_errors.size());
      for (std::size_t row = 0; row < takes.size(); ++row) {
        takes[row] = result.row_errors[row] < best.row_errors[row];
        if (takes[row] == 0) continue;
        best.output_error += result.row_errors[row] - best.row_errors[row];
        best.row_errors[row] = result.row_errors[row];
      }
      cuda_copy_rows(again, takes, matrix, kStream);
    }
    return best.output_error;
  }

  // As column_weights() of the CPU's GroupQuantizer; empty: all 1.
  DeviceBuffer column_weights(const float* h, const CudaHessianFactor* factor) const {
    if (h == nullptr || options_.column_weights == ColumnWeights::kNone) return {};
    std::vector<float> weights(static_cast<std::size_t>(k_));
    if (options_.column_weights == ColumnWeights::kPivot && factor != nullptr) {
      for (std::size_t c = 0; c < weights.size(); ++c) {
        weights[static_cast<std::size_t>(factor->order[c])] = factor->pivot[c] * factor->pivot[c];
      }
    } else {
      weights = cuda_diagonal(h, k_, kStream);
    }
    return DeviceBuffer::from_host(weights.data(), float_bytes(k_));
  }

  double error(const CudaQuantizedMatrix& matrix, const float* w, const float* judge) {
    auto* d = difference_.as<float>();
    cuda_weight_error(matrix, w, d, kStream);
    return cuda_output_error(d, matrix.rows, judge, k_, kStream);
  }

  std::span<const LinearTask> tasks_;
  const QuantizeOptions& options_;
  bool use_gptq_;
  int64_t k_;
  std::vector<DeviceBuffer> weights_;
  DeviceBuffer difference_;
};

DeviceBuffer upload_hessian(InputStatistics& statistics, Exec& exec) {
  const Buffer h = statistics.take_hessian(exec);
  return DeviceBuffer::from_host(h.data(), h.size());
}

}  // namespace

CudaGroupInput cuda_group_input(CudaInputStatistics* statistics, CudaInputStatistics* held_out) {
  CudaGroupInput input;
  if (statistics == nullptr || statistics->tokens() == 0) return input;
  input.tokens = statistics->tokens();
  if (!statistics->has_gram()) return input;
  input.hessian = statistics->take_hessian();
  if (held_out != nullptr && held_out->tokens() > 0) input.judge = held_out->take_hessian();
  return input;
}

CudaGroupInput cuda_group_input(InputStatistics* statistics, InputStatistics* held_out,
                                Exec& exec) {
  CudaGroupInput input;
  if (statistics == nullptr || statistics->tokens() == 0) return input;
  input.tokens = statistics->tokens();
  if (!statistics->has_gram()) return input;
  input.hessian = upload_hessian(*statistics, exec);
  if (held_out != nullptr && held_out->tokens() > 0) {
    input.judge = upload_hessian(*held_out, exec);
  }
  return input;
}

std::vector<LinearReport> cuda_quantize_group(std::span<LinearTask> tasks, CudaGroupInput input,
                                              const QuantizeOptions& options, bool use_gptq,
                                              Exec& exec) {
  LATHE_CHECK(!tasks.empty() && exec.on_cuda());
  cuda_check(cudaSetDevice(exec.cuda_device), "choosing GPU ", exec.cuda_device);
  const int64_t k = tasks[0].weight.dim(1);
  const bool has_hessian = input.hessian.size() > 0;
  const bool has_judge = input.judge.size() > 0;
  LATHE_CHECK(has_hessian || !use_gptq);
  std::vector<double> dampings = options.damping;
  if (!use_gptq) dampings.resize(1);

  CudaGroupQuantizer quantizer(tasks, options, use_gptq);
  std::optional<CudaTrial> best;
  const std::vector<int64_t> rotations = usable_rotations(options, k, tasks[0].module);
  for (const int64_t block : rotations) {
    quantizer.load_weights(block);
    const bool last = block == rotations.back();
    const auto rotated = [&](DeviceBuffer& h) {
      DeviceBuffer out = last ? std::move(h) : copy_of(h);
      cuda_rotate_hessian(out.as<float>(), k, block, kStream);
      return out;
    };
    const DeviceBuffer h = has_hessian ? rotated(input.hessian) : DeviceBuffer();
    const DeviceBuffer judge = has_judge ? rotated(input.judge) : DeviceBuffer();
    const float* h_data = has_hessian ? h.as<float>() : nullptr;
    for (const double damping : dampings) {
      CudaTrial trial =
          quantizer.run(block, damping, h_data, has_judge ? judge.as<float>() : h_data);
      if (!best || trial.total() < best->total()) best = std::move(trial);
    }
  }
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    tasks[i].quantized = download(best->matrices[i], kStream);
  }
  return group_reports(tasks, *best, options, use_gptq, input.tokens);
}

}  // namespace lathe
