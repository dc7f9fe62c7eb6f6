#include "kernels/activation/gated_activation.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>

#include "base/error.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

// gate_up: [num_rows][gate, up][size].
std::vector<float> run(const Kernel<GatedActivationArgs>& kernel, GateFunction function,
                       const std::vector<float>& gate_up, int64_t num_rows, int64_t size) {
  OwnedExec owned(2);
  GuardedFloats input(gate_up);
  GuardedFloats output(num_rows * size);
  kernel.run({.gate = input.data(),
              .up = input.data() + size,
              .y = output.data(),
              .num_rows = num_rows,
              .size = size,
              .gate_stride = 2 * size,
              .up_stride = 2 * size,
              .y_stride = size,
              .function = function},
             owned.exec);
  EXPECT_TRUE(output.guards_intact());
  return output.values();
}

TEST(GatedActivation, KnownValues) {
  // silu(1) = 1 / (1 + e^-1); gelu_tanh(1) = 0.8411919906, as torch prints it.
  const float gate[] = {1, 0, -1};
  const float up[] = {2, 5, 1};
  float y[3];
  OwnedExec owned(1);
  GatedActivationArgs args{.gate = gate, .up = up, .y = y, .num_rows = 1, .size = 3};
  gated_activation(args, owned.exec);
  EXPECT_NEAR(y[0], 1.4621171573, 1e-6);
  EXPECT_EQ(y[1], 0);
  EXPECT_NEAR(y[2], -0.2689414214, 1e-6);
  args.function = GateFunction::kGeluTanh;
  gated_activation(args, owned.exec);
  EXPECT_NEAR(y[0], 2 * 0.8411919906, 1e-6);
  EXPECT_NEAR(y[2], -0.1588080094, 1e-6);
}

TEST(GatedActivation, EveryKernelMatchesTheReferenceValueByValue) {
  const auto& reference = gated_activation_kernels().back();
  for (const auto& kernel : runnable(gated_activation_kernels())) {
    for (const auto function : {GateFunction::kSilu, GateFunction::kGeluTanh}) {
      for (const int64_t size : {1, 7, 8, 9, 16, 31, 1536}) {
        SCOPED_TRACE(testing::Message()
                     << kernel.name << " size=" << size << " function " << int(function));
        const auto gate_up = normal_values(3 * 2 * size, static_cast<uint64_t>(size), 3);
        const auto actual = run(kernel, function, gate_up, 3, size);
        const auto expected = run(reference, function, gate_up, 3, size);
        const auto columns = static_cast<std::size_t>(size);
        for (std::size_t i = 0; i < actual.size(); ++i) {
          // silu: exp (2 ulp), a sum, a quotient, a product. gelu: 1 + tanh cancels where x < 0, so
          // its error is absolute: a few eps of |x * up|.
          const float x = gate_up[i / columns * 2 * columns + i % columns];
          const float up = gate_up[i / columns * 2 * columns + columns + i % columns];
          const double size_of_terms =
              function == GateFunction::kSilu ? std::fabs(expected[i]) : std::fabs(x * up);
          EXPECT_LE(std::fabs(double{actual[i]} - double{expected[i]}),
                    6 * FLT_EPSILON * size_of_terms + 1e-37)
              << "x=" << x << " up=" << up;
        }
      }
    }
  }
}

TEST(GatedActivation, Extremes) {
  const std::vector<float> gate = {0,   -0.0f,  88, -88,     104, -104, 1e30f, -1e30f,    INFINITY,
                                   NAN, 1e-40f, 20, -1e-40f, -20, 10,   -10,   -INFINITY, 5};
  const auto size = static_cast<int64_t>(gate.size());
  auto gate_up = gate;
  gate_up.resize(2 * gate.size(), 1.0f);
  for (const auto& kernel : runnable(gated_activation_kernels())) {
    for (const auto function : {GateFunction::kSilu, GateFunction::kGeluTanh}) {
      const auto y = run(kernel, function, gate_up, 1, size);
      for (std::size_t i = 0; i < gate.size(); ++i) {
        SCOPED_TRACE(testing::Message() << kernel.name << " " << gate[i] << " -> " << y[i]);
        if (std::isnan(gate[i]) || gate[i] == -INFINITY) {
          EXPECT_TRUE(std::isnan(y[i])) << "-inf * 0";
        } else if (gate[i] == INFINITY) {
          EXPECT_EQ(y[i], INFINITY);
        } else if (gate[i] >= 10) {
          EXPECT_NEAR(y[i] / gate[i], 1, 1e-4) << "linear";
        } else if (gate[i] <= -20) {
          EXPECT_NEAR(y[i], 0, 1e-6) << "shut";
        } else if (std::fabs(gate[i]) < 1e-30f) {
          EXPECT_NEAR(y[i], gate[i] / 2, 1e-38);
        }
      }
    }
  }
}

TEST(GatedActivation, RowsAreIndependentAndMayBeInPlace) {
  for (const auto& kernel : runnable(gated_activation_kernels())) {
    const int64_t size = 45;
    const auto gate_up = normal_values(40 * 2 * size, 9);
    const auto all = run(kernel, GateFunction::kSilu, gate_up, 40, size);
    const auto alone =
        run(kernel, GateFunction::kSilu,
            {gate_up.begin() + 17 * 2 * size, gate_up.begin() + 18 * 2 * size}, 1, size);
    EXPECT_TRUE(same_bits(alone, {all.data() + 17 * size, 45}));
    auto in_place = gate_up;
    OwnedExec owned(1);
    kernel.run({.gate = in_place.data(),
                .up = in_place.data() + size,
                .y = in_place.data(),
                .num_rows = 40,
                .size = size,
                .gate_stride = 2 * size,
                .up_stride = 2 * size,
                .y_stride = 2 * size},
               owned.exec);
    EXPECT_TRUE(same_bits({in_place.data() + 17 * 2 * size, 45}, alone));
  }
}

TEST(GatedActivation, RefusesBadArguments) {
  OwnedExec owned(1);
  float x[4] = {};
  GatedActivationArgs args{.gate = x, .up = x, .y = x, .num_rows = 1, .size = 4, .up_stride = 3};
  EXPECT_THROW(gated_activation(args, owned.exec), Error);
  args.up_stride = 4;
  args.num_rows = -1;
  EXPECT_THROW(gated_activation(args, owned.exec), Error);
}

}  // namespace
}  // namespace lathe
