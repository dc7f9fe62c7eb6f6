#include "kernels/linear/linear.h"

#include <cfloat>
#include <cmath>

#include "base/error.h"
#include "kernels/linear/linear_kernels.h"
#include "quant/encode.h"
#include "support/all_close.h"

namespace lathe {
namespace {

struct Machine {
  ThreadPool threads{2};
  Workspace workspace;
  Exec exec{threads, workspace};
};

std::vector<float> run(const PackedLinear& weight, const std::vector<float>& x, Exec& exec) {
  const int64_t m = static_cast<int64_t>(x.size()) / weight.k;
  std::vector<float> y(static_cast<std::size_t>(m * weight.n));
  const Workspace::Scope scope(exec.workspace);
  const LinearInput input = prepare_input(x.data(), m, weight, exec);
  linear(input, weight, y.data(), weight.n, exec);
  return y;
}

// W4A16 of the reference against a plain product with the decoded weight.
TEST(Linear, ReferenceMultipliesTheDecodedWeight) {
  Machine machine;
  const int64_t n = 5, k = 64, m = 3;
  const auto x = normal_values(m * k, 1);
  for (const char* name : {"mxfp4", "nvfp4", "int4", "int8", "fp8", "mxfp8", "mxfp4-fitted"}) {
    SCOPED_TRACE(name);
    const auto w = normal_values(n * k, 2);
    const QuantizedMatrix matrix = quantize_absmax(weight_format_from_name(name), w.data(), n, k);
    std::vector<float> decoded(w.size());
    dequantize_rows(matrix, 0, n, decoded.data());
    std::vector<float> expected;
    for (int64_t t = 0; t < m; ++t) {
      for (int64_t row = 0; row < n; ++row) {
        double sum = 0;
        for (int64_t j = 0; j < k; ++j) {
          sum += double{x[static_cast<std::size_t>(t * k + j)]} *
                 decoded[static_cast<std::size_t>(row * k + j)];
        }
        expected.push_back(static_cast<float>(sum));
      }
    }
    const LinearPart part{.quantized = &matrix};
    const auto exact = pack_linear_for("ref", {&part, 1}, {}, ComputeType::kF32, machine.exec);
    EXPECT_TRUE(all_close(run(*exact, x, machine.exec), expected, FLT_EPSILON));
    // int8 activations: each of k terms is off by at most half a step of x, max |x| / 254.
    const auto fast = pack_linear_for("ref", {&part, 1}, {}, ComputeType::kAuto, machine.exec);
    EXPECT_TRUE(all_close(run(*fast, x, machine.exec), expected, 0.02));
  }
}

}  // namespace
}  // namespace lathe
