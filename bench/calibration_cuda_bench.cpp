// Calibration of one layer of Llama-3.1-8B's shape on the GPU, time per stage.
//
//   calibration_cuda_bench [FORMAT [TOKENS]]      nvfp4, 262144 (128 sequences of 2048)
//
// Gram matrices are timed over a few steps of 2048 tokens and scaled to TOKENS; everything else is
// done once in full, after a warm-up. Inputs and weights are normal numbers.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/rng.h"
#include "compress/cuda_coordinate_descent.h"
#include "compress/cuda_gptq.h"
#include "compress/cuda_hessian_factor.h"
#include "compress/cuda_linear_group.h"
#include "compress/cuda_rotation.h"
#include "compress/cuda_scale_search.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int64_t kStep = 2048;

struct LayerShape {
  const char* name;
  std::vector<int64_t> rows;  // of the linear layers that share the input
  int64_t k;
};
const LayerShape kLayerShapes[] = {{"qkv", {4096, 1024, 1024}, 4096},
                                   {"o", {4096}, 4096},
                                   {"gate_up", {14336, 14336}, 4096},
                                   {"down", {4096}, 14336}};

double seconds_of(const std::function<void()>& body) {
  cuda_check(cudaDeviceSynchronize(), "waiting for the GPU");
  const auto start = std::chrono::steady_clock::now();
  body();
  cuda_check(cudaDeviceSynchronize(), "waiting for the GPU");
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Repeats with a prime period, so that rows differ.
const std::vector<float>& normal_numbers() {
  static const std::vector<float> values = [] {
    std::vector<float> out(4194301);
    Rng rng(7);
    for (float& x : out) x = static_cast<float>(rng.normal());
    return out;
  }();
  return values;
}

void fill(float* out, int64_t count, float factor) {
  const std::vector<float>& source = normal_numbers();
  for (int64_t i = 0; i < count; ++i) {
    out[i] = factor * source[static_cast<std::size_t>(i) % source.size()];
  }
}

std::vector<LinearTask> tasks_of(const LayerShape& shape) {
  std::vector<LinearTask> tasks;
  for (const int64_t rows : shape.rows) {
    LinearTask task;
    task.module = shape.name;
    task.weight = Tensor(DType::kF32, {rows, shape.k});
    fill(task.weight.as<float>(), rows * shape.k, 0.02f);
    tasks.push_back(std::move(task));
  }
  return tasks;
}

void print(const LayerShape& shape, const char* stage, double seconds, double flops = 0) {
  std::printf("%-8s %-28s %10.2f ms", shape.name, stage, seconds * 1e3);
  if (flops > 0) std::printf("  %6.1f TFLOP/s", flops / seconds * 1e-12);
  std::printf("\n");
  std::fflush(stdout);
}

// Returns the seconds that the layer's group would take with so many tokens.
double bench(const LayerShape& shape, const WeightFormat& format, int64_t tokens) {
  const int64_t k = shape.k;
  const auto kd = static_cast<double>(k);
  DeviceBuffer x(kStep * k * static_cast<int64_t>(sizeof(float)));
  {
    std::vector<float> host(static_cast<std::size_t>(kStep * k));
    fill(host.data(), kStep * k, 1);
    x = DeviceBuffer::from_host(host.data(), x.size());
  }
  CudaInputStatistics statistics(k, true);
  statistics.add(x.as<float>(), kStep, nullptr);
  constexpr int kSteps = 6;
  const double step = seconds_of([&] {
                        for (int i = 0; i < kSteps; ++i) {
                          statistics.add(x.as<float>(), kStep, nullptr);
                        }
                      }) /
                      kSteps;
  print(shape, "Gram, 2048 tokens", step, kd * kd * static_cast<double>(kStep));
  const double gram = step * static_cast<double>(tokens) / static_cast<double>(kStep);
  print(shape, "Gram, all tokens (scaled)", gram);

  DeviceBuffer h;
  print(shape, "Hessian", seconds_of([&] { h = statistics.take_hessian(); }));
  print(shape, "rotation of the Hessian",
        seconds_of([&] { cuda_rotate_hessian(h.as<float>(), k, 32, nullptr); }));
  CudaHessianFactor factor;
  for (int i = 0; i < 2; ++i) {
    const double seconds = seconds_of([&] {
      factor = cuda_factor_hessian(h.as<float>(), k, ColumnOrder::kActivation, 0.01, nullptr);
    });
    if (i == 1) print(shape, "factor", seconds, kd * kd * kd / 3);
  }

  std::vector<LinearTask> tasks = tasks_of(shape);
  for (const LinearTask& task : tasks) {
    const int64_t rows = task.weight.dim(0);
    const double weights = static_cast<double>(rows) * kd;
    if (&task != tasks.data() && rows == tasks[0].weight.dim(0)) continue;
    std::printf("  [%lld, %lld]\n", static_cast<long long>(rows), static_cast<long long>(k));
    DeviceBuffer w;
    print(shape, "upload", seconds_of([&] {
            w = DeviceBuffer::from_host(task.weight.data(), task.weight.num_bytes());
          }));
    print(shape, "rotation of the weight",
          seconds_of([&] { cuda_hadamard_rows(w.as<float>(), rows, k, 32, nullptr); }));
    CudaQuantizedMatrix matrix = make_cuda_quantized_matrix(format, rows, k);
    const CudaScaleProblem problem{&matrix, w.as<float>(), nullptr};
    int rounds = 0;
    print(shape, "scales", seconds_of([&] {
            rounds = cuda_choose_scales({&problem, 1}, {}, nullptr).global_rounds;
          }));
    std::printf("  (%d rounds of the global scale)\n", rounds);
    print(shape, "round to nearest",
          seconds_of([&] { cuda_round_to_nearest(matrix, w.as<float>(), nullptr); }));
    DeviceBuffer d(w.size());
    double rtn_error = 0;
    print(shape, "output error", seconds_of([&] {
            cuda_weight_error(matrix, w.as<float>(), d.as<float>(), nullptr);
            rtn_error = cuda_output_error(d.as<float>(), rows, h.as<float>(), k, nullptr);
          }),
          2 * weights * kd);
    double error = 0;
    for (int i = 0; i < 2; ++i) {
      const double seconds = seconds_of(
          [&] { error = cuda_gptq(matrix, w.as<float>(), factor, nullptr).output_error; });
      if (i == 1) print(shape, "GPTQ", seconds, weights * kd);
    }
    std::printf("  (output error %.4f of plain rounding's)\n", error / rtn_error);
    print(shape, "coordinate descent, 1 sweep", seconds_of([&] {
            cuda_coordinate_descent(matrix, w.as<float>(), h.as<float>(), factor.added, 1, nullptr);
          }),
          2 * weights * kd);
  }

  QuantizeOptions options =
      recommended_options(format, QuantizeMethod::kMrGptq, ActivationFormat::kNone);
  ThreadPool threads(8);
  Workspace workspace;
  Exec exec{threads, workspace, 0};
  CudaGroupInput input;
  input.tokens = tokens;
  input.hessian = std::move(h);
  factor = {};
  const double group =
      seconds_of([&] { cuda_quantize_group(tasks, std::move(input), options, true, exec); });
  print(shape, "whole group, without Gram", group);
  return gram + group;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  const std::string format = argc > 1 ? argv[1] : "nvfp4";
  const int64_t tokens = argc > 2 ? std::stoll(argv[2]) : 128 * 2048;
  cudaDeviceProp properties;
  lathe::cuda_check(cudaGetDeviceProperties(&properties, 0), "asking for the GPU");
  std::printf("%s, %s, %lld tokens\n", properties.name, format.c_str(),
              static_cast<long long>(tokens));
  double total = 0;
  for (const lathe::LayerShape& shape : lathe::kLayerShapes) {
    total += lathe::bench(shape, lathe::weight_format_from_name(format), tokens);
  }
  std::printf("layer: %.3f s; 32 layers: %.1f s, without the forward passes\n", total, 32 * total);
  return 0;
}
