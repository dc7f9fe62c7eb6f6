#include "kernels/rope/rope.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>

#include "base/error.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

struct Tables {
  Tables(int64_t num_positions, int64_t half)
      : num(num_positions),
        cos(static_cast<std::size_t>(num_positions * half)),
        sin(static_cast<std::size_t>(num_positions * half)) {
    for (std::size_t i = 0; i < cos.size(); ++i) {
      cos[i] = std::cos(0.37f * static_cast<float>(i));
      sin[i] = std::sin(0.37f * static_cast<float>(i));
    }
  }
  int64_t num;
  std::vector<float> cos, sin;
};

// The rows lie pad floats apart.
std::vector<float> run(const Kernel<RopeArgs>& kernel, const Tables& tables,
                       const std::vector<float>& x, const std::vector<int64_t>& positions,
                       int64_t num_heads, int64_t head_dim, int64_t rotary_dim, int64_t pad) {
  OwnedExec owned(2);
  GuardedFloats input(x);
  const auto num_rows = static_cast<int64_t>(positions.size());
  GuardedFloats output(num_rows * num_heads * head_dim);
  kernel.run({.x = input.data(),
              .y = output.data(),
              .positions = positions.data(),
              .cos = tables.cos.data(),
              .sin = tables.sin.data(),
              .num_positions = tables.num,
              .num_rows = num_rows,
              .num_heads = num_heads,
              .head_dim = head_dim,
              .rotary_dim = rotary_dim,
              .x_stride = num_heads * head_dim + pad,
              .y_stride = num_heads * head_dim},
             owned.exec);
  EXPECT_TRUE(output.guards_intact());
  return output.values();
}

TEST(Rope, RotatesHalfSplitPairsAndKeepsTheRest) {
  // Position 1: pair 0 turns by 90 degrees, pair 1 by 180; dims 4 and 5 do not rotate.
  const std::vector<float> cos = {1, 1, 0, -1};
  const std::vector<float> sin = {0, 0, 1, 0};
  std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const int64_t position = 1;
  OwnedExec owned(1);
  rope({.x = x.data(),
        .y = x.data(),
        .positions = &position,
        .cos = cos.data(),
        .sin = sin.data(),
        .num_positions = 2,
        .num_rows = 1,
        .num_heads = 1,
        .head_dim = 6,
        .rotary_dim = 4},
       owned.exec);
  EXPECT_EQ(x, (std::vector<float>{-3, -2, 1, -4, 5, 6}));
}

TEST(Rope, EveryKernelMatchesTheReference) {
  const auto& reference = rope_kernels().back();
  const std::vector<int64_t> positions = {5, 0, 7, 6, 2};
  for (const auto& kernel : runnable(rope_kernels())) {
    for (const int64_t head_dim : {2, 16, 24, 64, 80, 96, 128, 256}) {
      for (const int64_t rotary_dim : {head_dim, head_dim * 3 / 4 / 2 * 2, int64_t{0}}) {
        SCOPED_TRACE(testing::Message()
                     << kernel.name << " head_dim=" << head_dim << " rotary_dim=" << rotary_dim);
        const Tables tables(8, rotary_dim / 2);
        const auto x = normal_values(5 * (3 * head_dim + 7), static_cast<uint64_t>(head_dim));
        const auto actual = run(kernel, tables, x, positions, 3, head_dim, rotary_dim, 7);
        const auto expected = run(reference, tables, x, positions, 3, head_dim, rotary_dim, 7);
        // Two products and a sum of at most 2 max|x|, one rounding each.
        EXPECT_TRUE(all_close(actual, expected, 4 * FLT_EPSILON));

        // In place: the same bits, and what lies between the rows stays.
        OwnedExec owned(1);
        auto y = x;
        kernel.run({.x = y.data(),
                    .y = y.data(),
                    .positions = positions.data(),
                    .cos = tables.cos.data(),
                    .sin = tables.sin.data(),
                    .num_positions = 8,
                    .num_rows = 5,
                    .num_heads = 3,
                    .head_dim = head_dim,
                    .rotary_dim = rotary_dim,
                    .x_stride = 3 * head_dim + 7,
                    .y_stride = 3 * head_dim + 7},
                   owned.exec);
        const auto size = static_cast<std::size_t>(3 * head_dim);
        for (std::size_t row = 0; row < 5; ++row) {
          const float* in_place = y.data() + row * (size + 7);
          EXPECT_TRUE(same_bits({in_place, size}, {actual.data() + row * size, size}));
          EXPECT_TRUE(same_bits({in_place + size, 7}, {x.data() + row * (size + 7) + size, 7}));
        }
      }
    }
  }
}

TEST(Rope, RefusesBadArguments) {
  OwnedExec owned(1);
  float x[8] = {};
  const float table[4] = {};
  const int64_t position = 0;
  const RopeArgs good{.x = x,
                      .y = x,
                      .positions = &position,
                      .cos = table,
                      .sin = table,
                      .num_positions = 1,
                      .num_rows = 1,
                      .num_heads = 1,
                      .head_dim = 8,
                      .rotary_dim = 8};
  rope(good, owned.exec);
  const auto bad = [&](auto change) {
    RopeArgs args = good;
    change(args);
    try {
      rope(args, owned.exec);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  const int64_t one = 1;
  const int64_t minus_one = -1;
  EXPECT_TRUE(bad([&](RopeArgs& a) { a.positions = &one; }));
  EXPECT_TRUE(bad([&](RopeArgs& a) { a.positions = &minus_one; }));
  EXPECT_TRUE(bad([](RopeArgs& a) { a.rotary_dim = 10; }));
  EXPECT_TRUE(bad([](RopeArgs& a) { a.rotary_dim = 3; }));
  EXPECT_TRUE(bad([](RopeArgs& a) { a.x_stride = 7; }));
}

}  // namespace
}  // namespace lathe
