#include "quant/hadamard.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "quant/encode.h"
#include "quant/golden_vectors.h"
#include "support/all_close.h"

namespace lathe {
namespace {

TEST(Hadamard, EntriesMatchTheGoldenSigns) {
  const Json& rows = golden_vectors()["hadamard16"]["rows_sign_bits_msb_first"];
  for (int64_t i = 0; i < 16; ++i) {
    const auto bits = rows[static_cast<std::size_t>(i)].get<std::string>();
    for (int64_t j = 0; j < 16; ++j) {
      EXPECT_EQ(hadamard_entry(16, i, j), bits[static_cast<std::size_t>(j)] == '1' ? -.25f : .25f);
    }
  }
}

TEST(Hadamard, TransformsTheGoldenVectors) {
  const Json& golden = golden_vectors()["hadamard16"];
  auto x = golden["apply"]["x"].get<std::vector<float>>();
  hadamard_rows(x.data(), 1, 16, 16);
  for (float& v : x) v *= 4;
  EXPECT_EQ(x, golden["apply"]["y_times_4"].get<std::vector<float>>());

  std::vector<float> unit(16, 0.0f);
  unit[5] = 1;
  hadamard_rows(unit.data(), 1, 16, 16);
  for (float& v : unit) v *= 4;
  EXPECT_EQ(unit, golden["e5_row"]["y_times_4"].get<std::vector<float>>());
}

TEST(Hadamard, RotateThenQuantizeGivesTheGoldenBytes) {
  const Json& golden = golden_vectors()["hadamard16"];
  {
    const Json& check = golden["block32_check"];
    auto x = check["x"].get<std::vector<float>>();
    hadamard_rows(x.data(), 1, 32, 32);
    EXPECT_TRUE(all_close(x, check["y_normalised"].get<std::vector<float>>(), 1e-6));
    const QuantizedMatrix matrix =
        quantize_absmax(weight_format_from_name("mxfp4"), x.data(), 1, 32, MxScaleRule::kAbsmaxX3);
    const Json& expected = check["mxfp4_absmax_x3"];
    EXPECT_EQ(matrix.scales.as<uint8_t>()[0], expected["scale_byte"].get<int>());
    EXPECT_EQ(to_vector(matrix.codes), bytes_from_hex(expected["bytes"].get<std::string>()));
  }
  {
    const Json& check = golden["block16_check"];
    auto x = check["x"].get<std::vector<float>>();
    hadamard_rows(x.data(), 1, 32, 16);
    EXPECT_TRUE(all_close(x, check["y_normalised"].get<std::vector<float>>(), 1e-6));
    const QuantizedMatrix matrix =
        quantize_absmax(weight_format_from_name("nvfp4"), x.data(), 1, 32);
    const Json& expected = check["nvfp4"];
    EXPECT_EQ(matrix.global_scale, expected["global_scale"].get<float>());
    EXPECT_EQ(to_vector(matrix.scales), expected["scale_bytes"].get<std::vector<uint8_t>>());
    EXPECT_EQ(to_vector(matrix.codes), bytes_from_hex(expected["bytes"].get<std::string>()));
  }
}

// Each output is a sum of `block` terms through log2(block) <= 7 rounded additions and one rounded
// product, so the relative error against the norm is below 8 eps = 1e-6.
TEST(Hadamard, EqualsTheDenseMatrixIsSelfInverseAndKeepsProducts) {
  for (const int64_t block : {16, 32, 64, 128}) {
    SCOPED_TRACE(block);
    const int64_t cols = 2 * block;
    const auto x = normal_values(3 * cols, static_cast<uint64_t>(block));
    const auto w = normal_values(cols, static_cast<uint64_t>(block) + 1);
    auto rotated = x;
    hadamard_rows(rotated.data(), 3, cols, block);

    std::vector<float> dense(x.size());
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t j = 0; j < cols; ++j) {
        double sum = 0;
        for (int64_t i = 0; i < block; ++i) {
          sum += double{x[static_cast<std::size_t>(r * cols + j / block * block + i)]} *
                 double{hadamard_entry(block, i, j % block)};
        }
        dense[static_cast<std::size_t>(r * cols + j)] = static_cast<float>(sum);
      }
    }
    EXPECT_TRUE(all_close(rotated, dense, 1e-6));

    auto w_rotated = w;
    hadamard_rows(w_rotated.data(), 1, cols, block);
    for (int64_t r = 0; r < 3; ++r) {
      double product = 0, rotated_product = 0, norm = 0, rotated_norm = 0;
      for (int64_t j = 0; j < cols; ++j) {
        const auto i = static_cast<std::size_t>(r * cols + j);
        const auto k = static_cast<std::size_t>(j);
        product += double{x[i]} * double{w[k]};
        rotated_product += double{rotated[i]} * double{w_rotated[k]};
        norm += double{x[i]} * double{x[i]};
        rotated_norm += double{rotated[i]} * double{rotated[i]};
      }
      EXPECT_NEAR(product, rotated_product, 1e-6 * norm);
      EXPECT_NEAR(norm, rotated_norm, 1e-6 * norm);
    }
    hadamard_rows(rotated.data(), 3, cols, block);
    EXPECT_TRUE(all_close(rotated, x, 1e-6));
  }
}

TEST(Hadamard, RefusesWhatDoesNotFit) {
  std::vector<float> x(48, 1.0f);
  EXPECT_THROW(hadamard_rows(x.data(), 1, 48, 32), Error);
  EXPECT_THROW(hadamard_rows(x.data(), 1, 48, 8), Error);
  EXPECT_THROW(hadamard_rows(x.data(), 1, 48, 256), Error);
  const auto before = x;
  hadamard_rows(x.data(), 1, 48, 0);
  EXPECT_EQ(x, before);
}

}  // namespace
}  // namespace lathe
