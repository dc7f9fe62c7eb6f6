#include "model/output_head.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/all_close.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

LinearWeights head_of(DType dtype, int64_t rows, int64_t cols, uint64_t seed) {
  const std::vector<float> values = normal_values(rows * cols, seed, 0.05);
  LinearWeights head;
  head.dense = convert(
      {DType::kF32, {rows, cols}, reinterpret_cast<const std::byte*>(values.data())}, dtype);
  return head;
}

class OutputHead : public testing::Test {
 protected:
  ThreadPool threads_{2};
  Workspace workspace_;
  Exec exec_{threads_, workspace_};
};

TEST_F(OutputHead, IsWithinHalfAStepOfTheDenseOne) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    LinearWeights head = head_of(dtype, 300, 64, 3);
    const Tensor dense = convert(head.dense.view(), DType::kF32);
    head = int8_output_head(std::move(head), exec_);
    ASSERT_TRUE(head.quantized.has_value());
    std::vector<float> decoded(300 * 64);
    dequantize_rows(*head.quantized, 0, 300, decoded.data());
    for (int64_t row = 0; row < 300; ++row) {
      for (int64_t col = 0; col < 64; ++col) {
        const float scale = effective_scale(*head.quantized, row, col / 32);
        const float expected = dense.as<float>()[row * 64 + col];
        // Half a step; a scale that bf16 rounded down (2^-9 relative) clips the largest value by up
        // to 127 * 2^-9 = a quarter step, which is less.
        EXPECT_LE(std::fabs(decoded[static_cast<std::size_t>(row * 64 + col)] - expected),
                  0.5001f * scale);
      }
    }
  }
}

TEST_F(OutputHead, ZeroGroupsStayZeroAndNanShows) {
  LinearWeights head = head_of(DType::kF32, 2, 64, 4);
  std::fill_n(head.dense.as<float>(), 32, 0.0f);
  head.dense.as<float>()[64 + 5] = std::nanf("");
  head = int8_output_head(std::move(head), exec_);
  std::vector<float> decoded(128);
  dequantize_rows(*head.quantized, 0, 2, decoded.data());
  for (int i = 0; i < 32; ++i) EXPECT_EQ(decoded[static_cast<std::size_t>(i)], 0.0f);
  EXPECT_TRUE(std::isnan(decoded[64 + 5]));
}

TEST_F(OutputHead, OddSizesStayDense) {
  const LinearWeights head = int8_output_head(head_of(DType::kBF16, 4, 48, 5), exec_);
  EXPECT_FALSE(head.quantized.has_value());
  EXPECT_EQ(head.dense.shape(), (Shape{4, 48}));
}

}  // namespace
}  // namespace lathe
