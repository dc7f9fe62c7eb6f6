#include "kernels/rms_norm/rms_norm.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>

#include "base/error.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

struct Problem {
  int64_t num_tokens = 1;
  int64_t num_heads = 1;
  int64_t norm_size = 1;
  int64_t pad = 0;  // floats between the tokens of x
  bool plus_one = false;

  int64_t x_stride() const { return num_heads * norm_size + pad; }
};

std::vector<float> run(const Kernel<RmsNormArgs>& kernel, const Problem& p,
                       const std::vector<float>& x, const std::vector<float>& weight) {
  OwnedExec owned(2);
  GuardedFloats input(x);
  GuardedFloats output(p.num_tokens * p.num_heads * p.norm_size);
  kernel.run({.x = input.data(),
              .weight = weight.data(),
              .y = output.data(),
              .num_tokens = p.num_tokens,
              .num_heads = p.num_heads,
              .norm_size = p.norm_size,
              .x_stride = p.x_stride(),
              .y_stride = p.num_heads * p.norm_size,
              .eps = 1e-5f,
              .plus_one = p.plus_one},
             owned.exec);
  EXPECT_TRUE(output.guards_intact());
  return output.values();
}

TEST(RmsNorm, AHandComputedRow) {
  // mean of squares (1 + 4 + 4) / 3 = 3, so 1 / sqrt(3 + 1) = 1/2 with eps 1.
  const std::vector<float> x = {1, 2, -2};
  const std::vector<float> weight = {1, 10, 100};
  std::vector<float> y(3);
  OwnedExec owned(1);
  RmsNormArgs args{.x = x.data(),
                   .weight = weight.data(),
                   .y = y.data(),
                   .num_tokens = 1,
                   .norm_size = 3,
                   .eps = 1};
  rms_norm(args, owned.exec);
  EXPECT_EQ(y, (std::vector<float>{0.5f, 10, -100}));
  args.plus_one = true;
  rms_norm(args, owned.exec);
  EXPECT_EQ(y, (std::vector<float>{1, 11, -101}));
}

TEST(RmsNorm, EveryKernelMatchesTheReference) {
  const auto& reference = rms_norm_kernels().back();
  for (const auto& kernel : runnable(rms_norm_kernels())) {
    for (const int64_t norm_size : {1, 7, 8, 9, 24, 64, 80, 127, 576, 896, 4097}) {
      for (const bool plus_one : {false, true}) {
        for (const int64_t num_heads : {1, 3}) {
          SCOPED_TRACE(testing::Message() << kernel.name << " norm_size=" << norm_size
                                          << " heads=" << num_heads << " plus_one=" << plus_one);
          const Problem p{3, num_heads, norm_size, /*pad=*/5, plus_one};
          const auto x =
              normal_values(p.num_tokens * p.x_stride(), static_cast<uint64_t>(norm_size));
          const auto weight = normal_values(norm_size, 1);
          // n positive terms summed in f32: at most n eps relative; the root halves it.
          const double rel = (0.5 * static_cast<double>(norm_size) + 4) * FLT_EPSILON;
          EXPECT_TRUE(all_close(run(kernel, p, x, weight), run(reference, p, x, weight), rel));
        }
      }
    }
  }
}

TEST(RmsNorm, ARowAloneHasTheBitsOfTheRowInABatch) {
  for (const auto& kernel : runnable(rms_norm_kernels())) {
    const auto x = normal_values(70 * 200, 3);
    const auto weight = normal_values(100, 4);
    const auto all = run(kernel, {70, 2, 100}, x, weight);
    for (const int64_t t : {0, 1, 33, 69}) {
      const auto alone =
          run(kernel, {1, 2, 100}, {x.begin() + t * 200, x.begin() + (t + 1) * 200}, weight);
      EXPECT_TRUE(same_bits(alone, {all.data() + t * 200, 200})) << kernel.name << " row " << t;
    }
  }
}

TEST(RmsNorm, InPlaceZeroAndNan) {
  for (const auto& kernel : runnable(rms_norm_kernels())) {
    SCOPED_TRACE(kernel.name);
    const Problem p{.norm_size = 40};
    auto x = normal_values(40, 5);
    const std::vector<float> weight(40, 1.0f);
    const auto expected = run(kernel, p, x, weight);
    OwnedExec owned(1);
    auto y = x;
    kernel.run({.x = y.data(),
                .weight = weight.data(),
                .y = y.data(),
                .num_tokens = 1,
                .norm_size = 40,
                .x_stride = 40,
                .y_stride = 40,
                .eps = 1e-5f},
               owned.exec);
    EXPECT_TRUE(same_bits(y, expected));
    for (const float value : run(kernel, p, std::vector<float>(40, 0.0f), weight)) {
      EXPECT_EQ(value, 0);
    }
    x[17] = NAN;
    for (const float value : run(kernel, p, x, weight)) EXPECT_TRUE(std::isnan(value));
  }
}

TEST(RmsNorm, RefusesBadArguments) {
  OwnedExec owned(1);
  float x[4] = {};
  const RmsNormArgs good{.x = x, .weight = x, .y = x, .num_tokens = 1, .norm_size = 4, .eps = 1};
  rms_norm(good, owned.exec);
  const auto bad = [&](auto change) {
    RmsNormArgs args = good;
    change(args);
    try {
      rms_norm(args, owned.exec);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT_TRUE(bad([](RmsNormArgs& a) { a.eps = 0; }));
  EXPECT_TRUE(bad([](RmsNormArgs& a) { a.eps = NAN; }));
  EXPECT_TRUE(bad([](RmsNormArgs& a) { a.norm_size = 0; }));
  EXPECT_TRUE(bad([](RmsNormArgs& a) { a.num_tokens = -1; }));
  EXPECT_TRUE(bad([](RmsNormArgs& a) { a.x_stride = 3; }));
  EXPECT_TRUE(bad([](RmsNormArgs& a) { a.y_stride = 3; }));
}

}  // namespace
}  // namespace lathe
