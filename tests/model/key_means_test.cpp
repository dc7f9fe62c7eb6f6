#include "model/key_means.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "kernels/attention/kv_codes.h"
#include "model/rope_rows.h"

namespace lathe {
namespace {

TEST(KeyMeanStep, CountTokensBehindTheSinksAlone) {
  // Rows of two texts, one of them behind its end, with a column that is no key's.
  const std::vector<int64_t> positions = {0, 3, 4, 5, 4, -1};
  const std::vector<float> keys = {9, 9, 0, NAN, 9, 0, 1, 2, 0, 3, 5, 0, 5, -1, 0, NAN, NAN, 0};
  KeyMeans means;
  means.add_layer(positions, keys.data(), 3, 2);
  ASSERT_EQ(means.layers.size(), 1u);
  EXPECT_EQ(means.layers[0].shape(), Shape({2}));
  EXPECT_EQ(means.layers[0].as<float>()[0], 3);
  EXPECT_EQ(means.layers[0].as<float>()[1], 2);
  EXPECT_TRUE(means.is_finite);
  means.add_layer({positions.data(), 2}, keys.data(), 3, 2);
  EXPECT_FALSE(means.is_finite) << "no row counts";
  EXPECT_EQ(means.layers.size(), 2u);

  KeyMeans broken;
  const float infinity = INFINITY;
  broken.add_layer({positions.data() + 2, 1}, &infinity, 1, 1);
  EXPECT_FALSE(broken.is_finite);
}

TEST(KeyMeanStep, TextsAreOneStep) {
  const std::vector<std::vector<int32_t>> texts = {{5, 6, 7}, std::vector<int32_t>(33, 8)};
  KeyMeanTexts step(texts);
  EXPECT_EQ(step.cache_tokens(), 96);
  EXPECT_EQ(step.longest(), 33);
  const ForwardBatch batch = step.batch();
  check_batch(batch);
  ASSERT_EQ(batch.token_ids.size(), 36u);
  EXPECT_EQ(batch.token_ids[2], 7);
  EXPECT_EQ(batch.positions[2], 2);
  EXPECT_EQ(batch.positions[3], 0);
  ASSERT_EQ(batch.sequences.size(), 2u);
  EXPECT_EQ(batch.sequences[1].row_begin, 3);
  EXPECT_EQ(batch.sequences[1].num_rows, 33);
  EXPECT_TRUE(batch.logit_rows.empty());
  const std::vector<std::vector<int32_t>> bad = {{5}, {}};
  EXPECT_THROW(KeyMeanTexts{bad}, Error);
}

// Angles of a start and of a place in a block are those of the position; a pair behind rotary_dim
// has none.
TEST(RotationBlocks, PairsThatDoNotTurnHaveNoAngle) {
  const RopeFrequencies frequencies{.inverse = {1.0f, 0.1f, 0.01f}, .attention_factor = 1.25};
  const RotationBlocks blocks(frequencies, 8, 70);
  ASSERT_EQ(blocks.num_blocks, 3);
  ASSERT_EQ(blocks.starts.size(), 3 * 8 * 4);
  ASSERT_EQ(blocks.in_block.size(), 8 * kBlockSize * 4);
  for (int64_t position = 0; position < 3 * kBlockSize; ++position) {
    const float* start = blocks.starts.as<float>() + position / kBlockSize * 8;
    for (int64_t j = 0; j < 4; ++j) {
      const float* inside = blocks.in_block.as<float>() + j * kBlockSize + position % kBlockSize;
      const double c = double{inside[0]}, s = double{inside[4 * kBlockSize]};
      const double cos = double{start[j]} * c - double{start[4 + j]} * s;
      const double sin = double{start[4 + j]} * c + double{start[j]} * s;
      if (j == 3) {
        EXPECT_EQ(cos, 1);
        EXPECT_EQ(sin, 0);
        continue;
      }
      const double angle =
          static_cast<double>(position) * double{frequencies.inverse[static_cast<std::size_t>(j)]};
      // Angles and numbers rounded to float, below 96 and 1.25.
      EXPECT_NEAR(cos, 1.25 * std::cos(angle), 96 * 0x1p-23) << position << " " << j;
      EXPECT_NEAR(sin, 1.25 * std::sin(angle), 96 * 0x1p-23) << position << " " << j;
    }
  }
}

}  // namespace
}  // namespace lathe
