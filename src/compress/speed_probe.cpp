#include "compress/speed_probe.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "compress/gram.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

using Clock = std::chrono::steady_clock;

// Runs `work` (of `flops`) until half a second is over, after one warm-up; GFLOP/s of the best run.
template <typename Work>
double measure_gflops(double flops, Work&& work) {
  work();
  double best = 0;
  const Clock::time_point start = Clock::now();
  do {
    const Clock::time_point begin = Clock::now();
    work();
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::max(best, flops / seconds / 1e9);
  } while (std::chrono::duration<double>(Clock::now() - start).count() < 0.5);
  return best;
}

}  // namespace

double measure_linear_gflops(int64_t n, int64_t k, ComputeType compute, Exec& exec) {
  constexpr int64_t kRows = 256;
  const bool exact = compute == ComputeType::kF32;
  Tensor w(exact ? DType::kF32 : DType::kBF16, {n, k});
  for (int64_t i = 0; i < n * k; ++i) {
    const float value = static_cast<float>(i % 17) - 8.0f;
    if (exact) {
      w.as<float>()[i] = value;
    } else {
      w.as<uint16_t>()[i] = bf16_from_float(value);
    }
  }
  const LinearPart part{.dense = &w, .quantized = nullptr, .bias = nullptr};
  const auto packed = pack_linear({&part, 1}, {}, compute, exec);
  std::vector<float> x(static_cast<std::size_t>(kRows * k), 0.5f);
  std::vector<float> y(static_cast<std::size_t>(kRows * n));
  return measure_gflops(2.0 * double(kRows) * double(n) * double(k), [&] {
    const Workspace::Scope scope(exec.workspace);
    linear(prepare_input(x.data(), kRows, *packed, exec), *packed, y.data(), n, exec);
  });
}

double measure_gram_gflops(int64_t k, Exec& exec) {
  constexpr int64_t kRows = 512;
  std::vector<float> x(static_cast<std::size_t>(kRows * k), 0.5f);
  Buffer gram(k * k * static_cast<int64_t>(sizeof(float)));
  std::fill_n(gram.as<float>(), k * k, 0.0f);
  return measure_gflops(double(kRows) * double(k) * double(k),
                        [&] { add_gram(kRows, k, x.data(), gram.as<float>(), exec); });
}

}  // namespace lathe
