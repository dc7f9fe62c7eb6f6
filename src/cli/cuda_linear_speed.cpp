#include "cli/cuda_linear_speed.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>

#include "base/error.h"
#include "cli/linear_speed_weight.h"
#include "cli/speed.h"
#include "kernels/linear/cuda_linear.h"
#include "kernels/quantize_activations/quantize_cuda.h"
#include "tensor/cuda_check.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr int64_t kMaxRows = 65536;
constexpr std::size_t kGraphs = 11;
constexpr int64_t kLaunches = 16;  // of a graph, at least
// E4M3 inputs (FP8, or a 16-bit input that the many-row kernels round to it) are off by up to
// 2^-4 a number, 2.6 % in the mean square; bf16 weights or inputs by 2^-9.
constexpr double kMaxDifferenceE4m3 = 0.04;
constexpr double kMaxDifference = 0.004;

// Median seconds of one of `count` launches, replayed as a graph.
double time_graph(int64_t count, CudaContext& context, const std::function<void(int64_t)>& launch) {
  for (int64_t i = 0; i < 2; ++i) launch(i);  // scratch memory has its size behind these
  context.synchronize();
  const CudaStream stream = context.stream();
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
  for (int64_t i = 0; i < count; ++i) launch(i);
  cudaGraph_t graph = nullptr;
  cuda_check(cudaStreamEndCapture(stream, &graph), "capturing");
  cudaGraphExec_t instance = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&instance, graph, 0);
  cudaGraphDestroy(graph);
  cuda_check(status, "making a graph");
  cudaEvent_t begin = nullptr, end = nullptr;
  cuda_check(cudaEventCreate(&begin), "making an event");
  cuda_check(cudaEventCreate(&end), "making an event");
  std::vector<double> times;
  for (std::size_t i = 0; i < kGraphs + 2; ++i) {
    cudaEventRecord(begin, stream);
    cudaGraphLaunch(instance, stream);
    cudaEventRecord(end, stream);
    cuda_check(cudaEventSynchronize(end), "timing");
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    if (i >= 2) times.push_back(double{milliseconds} * 1e-3 / static_cast<double>(count));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(instance);
  return median(times);
}

// Copies of one weight, n rows made of repetitions of fewer.
class Weights {
 public:
  Weights(const LinearSpeedOptions& options, const std::string& format, ComputeType compute,
          int64_t bytes, CudaContext& context)
      : weight_(make_random_linear(format,
                                   {std::gcd(options.shape.n, int64_t{4096}), options.shape.k})) {
    if (compute == ComputeType::kF32) weight_.compute = compute;
    const int64_t unit = std::gcd(options.shape.n, int64_t{4096});
    const std::vector<LinearPart> parts(static_cast<std::size_t>(options.shape.n / unit),
                                        weight_.part());
    do {
      copies_.push_back(make_cuda_linear(parts, weight_.scheme, weight_.compute, context));
    } while (static_cast<int64_t>(copies_.size()) * copies_.front()->weight_bytes() < bytes);
  }
  const CudaLinear& operator[](int64_t i) const {
    return *copies_[static_cast<std::size_t>(i) % copies_.size()];
  }
  int64_t num_copies() const { return static_cast<int64_t>(copies_.size()); }
  const LinearScheme& scheme() const { return weight_.scheme; }

 private:
  RandomLinear weight_;
  std::vector<std::unique_ptr<CudaLinear>> copies_;
};

class CudaLinearBench {
 public:
  CudaLinearBench(const LinearSpeedOptions& options, CudaContext& context)
      : options_(options),
        context_(context),
        weights_(options, options.format, ComputeType::kAuto, options.bytes_of_copies, context),
        exact_(options, options.format, ComputeType::kF32, 0, context),
        dense_(options, "bf16", ComputeType::kAuto, options.bytes_of_copies, context) {
    const int64_t max_rows = *std::max_element(options.rows.begin(), options.rows.end());
    std::vector<uint16_t> x;
    for (const float value : repeated_normal(max_rows * options.shape.k, 2)) {
      x.push_back(bf16_from_float(value));
    }
    x_ = DeviceBuffer::from_host(x.data(), static_cast<int64_t>(x.size()) * 2);
    prepared_ = DeviceBuffer(max_rows * options.shape.k * 4);
    row_scales_ = DeviceBuffer(max_rows * 4);
    y_ = DeviceBuffer(max_rows * options.shape.n * 4);
  }

  CudaLinearSpeed measure(int64_t m) {
    const CudaLinear& first = weights_[0];
    CudaLinearSpeed speed;
    speed.rows = m;
    speed.kernels = first.kernels();
    speed.weight_bytes = first.weight_bytes();
    speed.difference = check(m);
    speed.prepare_seconds = time_graph(kLaunches, context_, [&](int64_t) { prepare(first, m); });
    speed.seconds = time(weights_, m);
    speed.cublas_seconds = time(dense_, m);
    return speed;
  }

 private:
  CudaLinearInput prepare(const CudaLinear& weight, int64_t m) {
    const CudaInputClass input = weight.input_class(m);
    quantize_cuda({.x = x_.data(),
                   .element = CudaElement::kBF16,
                   .m = m,
                   .k = options_.shape.k,
                   .target = {.format = input.format,
                              .hadamard = input.hadamard,
                              .element = input.element,
                              .data = prepared_.data(),
                              .row_scales = row_scales_.as<float>(),
                              .global_scale = input.global_scale}},
                  context_.stream());
    return {.element = input.element,
            .data = prepared_.data(),
            .row_scales = row_scales_.as<float>(),
            .m = m,
            .k = options_.shape.k};
  }

  double time(const Weights& weights, int64_t m) {
    const CudaLinearInput x = prepare(weights[0], m);
    return time_graph(std::max(kLaunches, weights.num_copies()), context_, [&](int64_t i) {
      weights[i].run(
          x, {.element = CudaElement::kBF16, .data = y_.data(), .stride = options_.shape.n});
    });
  }

  std::vector<float> product(const CudaLinear& weight, int64_t m) {
    cuda_check(
        cudaMemsetAsync(y_.data(), 0xff, static_cast<std::size_t>(y_.size()), context_.stream()),
        "poisoning the result");
    weight.run(prepare(weight, m),
               {.element = CudaElement::kF32, .data = y_.data(), .stride = options_.shape.n});
    std::vector<float> y(static_cast<std::size_t>(m * options_.shape.n));
    y_.to_host(y.data(), static_cast<int64_t>(y.size() * sizeof(float)), context_.stream());
    return y;
  }

  double check(int64_t m) {
    const auto got = product(weights_[0], m), expected = product(exact_[0], m);
    double off = 0, size = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      off += (double{got[i]} - double{expected[i]}) * (double{got[i]} - double{expected[i]});
      size += double{expected[i]} * double{expected[i]};
    }
    const double difference = std::sqrt(off / size);
    const double allowed = weights_[0].input_class(m).element == CudaElement::kE4M3
                               ? kMaxDifferenceE4m3
                               : kMaxDifference;
    if (!(difference <= allowed)) {
      fail(ErrorCode::kInternal, "linear ", options_.format, " ", options_.shape.n, "x",
           options_.shape.k, ", ", m, " rows, ", weights_[0].kernels(),
           ": differs from exact fp32 by ", difference, " (root mean square; ", allowed,
           " is allowed); speeds of wrong results are not reported");
    }
    return difference;
  }

  const LinearSpeedOptions& options_;
  CudaContext& context_;
  Weights weights_, exact_, dense_;
  DeviceBuffer x_, prepared_, row_scales_, y_;
};

}  // namespace

std::vector<CudaLinearSpeed> measure_cuda_linear_speed(const LinearSpeedOptions& options,
                                                       CudaContext& context) {
  if (!options.kernel.empty()) {
    fail(ErrorCode::kInvalidArgument, "--kernel ", options.kernel,
         ": on a GPU the number of rows decides which kernel runs");
  }
  for (const int64_t rows : options.rows) {
    if (rows < 1 || rows > kMaxRows) {
      fail(ErrorCode::kInvalidArgument, "rows ", rows, ": 1 to ", kMaxRows);
    }
  }
  std::vector<CudaLinearSpeed> speeds;
  CudaLinearBench bench(options, context);
  for (const int64_t rows : options.rows) speeds.push_back(bench.measure(rows));
  return speeds;
}

double measure_cuda_bf16_rate(CudaContext& context) {
  constexpr int64_t kSize = 8192;
  LinearSpeedOptions options;
  options.format = "bf16";
  options.shape = {kSize, kSize};
  const Weights weights(options, "bf16", ComputeType::kAuto, 0, context);
  std::vector<uint16_t> numbers;
  for (const float value : repeated_normal(kSize * kSize, 3)) {
    numbers.push_back(bf16_from_float(value));
  }
  const DeviceBuffer x = DeviceBuffer::from_host(numbers.data(), kSize * kSize * 2);
  DeviceBuffer y(kSize * kSize * 2);
  const double seconds = time_graph(4, context, [&](int64_t) {
    weights[0].run({.element = CudaElement::kBF16, .data = x.data(), .m = kSize, .k = kSize},
                   {.element = CudaElement::kBF16, .data = y.data(), .stride = kSize});
  });
  return 2.0 * kSize * kSize * kSize / seconds;
}

}  // namespace lathe
