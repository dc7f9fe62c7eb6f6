#include "cache/coded_kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "cache/coded_pair.h"
#include "cache/predictive_codec.h"
#include "formats/kv_codec_examples.h"

namespace lathe {
namespace {

// Half an int8 step of the residual: 1/254 of the row's largest value, below 5 standard deviations
// (normal, 32 values a row). Layers above the first have residuals of a tenth of that plus the
// error below: errors do not add up over layers. RoPE turns a pair of errors: sqrt(2) at most.
constexpr double kCodeError = 5.0 / 254 * 1.4143;

TEST(CodedKvCache, SinksAndWindowAreExactAndTheRestIsClose) {
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16}) {
    for (const int64_t num_sinks : {0, 4, 32, 37}) {
      Pair pair({.num_sinks = num_sinks, .window = 40, .chunk_tokens = 64}, format);
      SCOPED_TRACE(testing::Message() << "sinks " << num_sinks << " format " << int(format));
      double worst = 0;
      worst = std::max(worst, pair.advance(100));
      EXPECT_EQ(worst, 0) << "nothing is encoded before the next step";
      for (int i = 0; i < 90; ++i) worst = std::max(worst, pair.advance(1));
      for (int i = 0; i < 5; ++i) worst = std::max(worst, pair.advance(33));
      EXPECT_GT(worst, 0);
      // Weights that move by the error of a score and values that move by kCodeError; with bf16,
      // the rebuilt rows are rounded once more.
      EXPECT_LT(worst, 6 * kCodeError);

      const auto differences = pair.differences();
      const int64_t num_tokens = pair.a.num_tokens;
      ASSERT_EQ(num_tokens, 355);
      const int64_t coded_end = num_sinks + pair.coded.num_coded_tokens(pair.a);
      EXPECT_GE(num_tokens - coded_end, 40) << "window";
      EXPECT_LT(num_tokens - coded_end, 40 + 64) << "chunks are encoded as soon as they can be";
      for (int64_t t = 0; t < num_tokens; ++t) {
        const double difference = differences[std::size_t(t)];
        if (t < num_sinks || t >= coded_end) {
          EXPECT_EQ(difference, 0) << "position " << t;
        } else {
          EXPECT_GT(difference, 0) << "position " << t;
          EXPECT_LT(difference, kCodeError + (format == KvFormat::kF32 ? 0 : 0.04))
              << "position " << t;
        }
      }
    }
  }
}

TEST(CodedKvCache, ChunkingOfThePromptDoesNotMatter) {
  // Encoding is per token here, so the same tokens are coded to the same values however they came.
  const KvCodecPolicy policy{.num_sinks = 4, .window = 32, .chunk_tokens = 32};
  Pair at_once(policy);
  Pair in_pieces(policy);
  at_once.advance(320);
  at_once.advance(1);
  for (const int64_t num_rows : {1, 31, 64, 100, 60, 64, 1}) in_pieces.advance(num_rows);
  const auto x = content(at_once.coded, at_once.a, at_once.config, at_once.owned.exec);
  const auto y = content(in_pieces.coded, in_pieces.a, in_pieces.config, in_pieces.owned.exec);
  EXPECT_GT(at_once.coded.num_coded_tokens(at_once.a), 200);
  EXPECT_TRUE(same_bits(x, y));
}

TEST(CodedKvCache, ChunkingDoesNotMatterToAqua) {
  // Through the cache, every variant: keys before RoPE are what was appended (f32 keeps them), and
  // the number of blocks that are coded together differs.
  const ModelConfig config = small_config();
  const Rows rows(config);
  const auto q = normal_values(64, 9);
  for (const char* variant : kCodecVariants) {
    SCOPED_TRACE(variant);
    KvCodecFile file = random_codec(variant, config.num_layers, {2, 16});
    file.window = 32;
    file.chunk_tokens = 64;
    const PredictiveCodec codec(file);
    std::vector<std::vector<float>> contents;
    for (const bool at_once : {true, false}) {
      OwnedExec owned(at_once ? 3 : 1);
      CodedKvCache cache(config, codec, rows.ropes(),
                         {.live_format = KvFormat::kF32,
                          .live_tokens = 1024,
                          .coded_tokens = 1024,
                          .max_sequence_tokens = kMaxTokens});
      KvSequence sequence = cache.new_sequence();
      const std::vector<int64_t> pieces =
          at_once ? std::vector<int64_t>{320, 1} : std::vector<int64_t>{1, 31, 64, 100, 60, 64, 1};
      for (const int64_t n : pieces) step(cache, sequence, rows, config, n, q, owned.exec);
      EXPECT_EQ(cache.num_coded_tokens(sequence), 256 - 4);
      contents.push_back(content(cache, sequence, config, owned.exec));
    }
    EXPECT_TRUE(same_bits(contents[0], contents[1]));
    // Sinks and window are the rows that were appended.
    const auto kv = std::size_t(config.kv_size());
    for (const std::size_t t : {0, 1, 3, 256, 300, 320}) {
      EXPECT_TRUE(same_bits({contents[0].data() + t * 2 * kv, kv}, {rows.k(0, int64_t(t)), kv}))
          << t;
    }
    EXPECT_FALSE(same_bits({contents[0].data() + 4 * 2 * kv, kv}, {rows.k(0, 4), kv}));
  }
}

TEST(CodedKvCache, TwoInterleavedChainsOfLayers) {
  Pair pair({.num_sinks = 4, .window = 0, .chunk_tokens = 32}, KvFormat::kF32, /*stride=*/2);
  pair.advance(200);
  EXPECT_GT(pair.advance(1), 0);
  for (const double difference : pair.differences()) EXPECT_LT(difference, kCodeError);
}

TEST(CodedKvCache, TruncateIntoTheCodesAndGoOn) {
  for (const int64_t num_sinks : {4, 0}) {
    Pair pair({.num_sinks = num_sinks, .window = 32, .chunk_tokens = 32});
    pair.advance(300);
    pair.advance(1);
    for (const int64_t num_tokens : {150, 128, 17, 3}) {
      pair.coded.truncate(pair.a, num_tokens);
      pair.plain->truncate(pair.b, num_tokens);
      pair.advance(1);
      const auto differences = pair.differences();
      EXPECT_EQ(differences.back(), 0);
      for (std::size_t t = 0; t < differences.size(); ++t) {
        EXPECT_LT(differences[t], kCodeError) << t;
        if (int64_t(t) < num_sinks) {
          EXPECT_EQ(differences[t], 0) << t;
        }
      }
      pair.advance(40);
      for (const double difference : pair.differences()) EXPECT_LT(difference, kCodeError);
    }
    const int64_t num_blocks = pair.coded.num_blocks();
    pair.coded.release(pair.a);
    EXPECT_EQ(pair.coded.num_free_blocks(), num_blocks);
    EXPECT_EQ(pair.coded.num_free_coded_blocks(), 2048 / kBlockSize);
  }
}

TEST(CodedKvCache, AForkSharesCodes) {
  Pair pair({.num_sinks = 4, .window = 32, .chunk_tokens = 32});
  pair.advance(200);
  KvSequence fork = pair.coded.new_sequence();
  pair.coded.fork(pair.a, 180, fork);  // while everything is live
  pair.advance(1);                     // a's blocks 0..4 are encoded
  const int64_t free_coded = pair.coded.num_free_coded_blocks();
  EXPECT_LT(free_coded, 2048 / kBlockSize);
  // The fork, which still has the live blocks, takes the same codes instead of making its own.
  step(pair.coded, fork, pair.rows, pair.config, 1, pair.q, pair.owned.exec);
  EXPECT_EQ(pair.coded.num_free_coded_blocks(), free_coded);
  EXPECT_EQ(fork.blocks[0], pair.a.blocks[0]);
  EXPECT_EQ(fork.blocks[2], pair.a.blocks[2]);

  // A second one shares codes from the start, and both are right in one step.
  KvSequence second = pair.coded.new_sequence();
  pair.coded.fork(pair.a, 100, second);
  const auto of_a = content(pair.coded, pair.a, pair.config, pair.owned.exec);
  const auto of_second = content(pair.coded, second, pair.config, pair.owned.exec);
  const auto row = std::size_t(2 * pair.config.kv_size());
  EXPECT_TRUE(same_bits({of_a.data(), 100 * row}, {of_second.data(), 100 * row}));

  // Writing into a shared coded block makes it the writer's own.
  step(pair.coded, second, pair.rows, pair.config, 1, pair.q, pair.owned.exec);
  EXPECT_TRUE(same_bits(content(pair.coded, pair.a, pair.config, pair.owned.exec), of_a));

  pair.coded.release(pair.a);
  for (const double x : content(pair.coded, fork, pair.config, pair.owned.exec)) {
    ASSERT_TRUE(std::isfinite(x));
  }
  pair.coded.release(fork);
  pair.coded.release(second);
  EXPECT_EQ(pair.coded.num_free_blocks(), pair.coded.num_blocks());
  EXPECT_EQ(pair.coded.num_free_coded_blocks(), 2048 / kBlockSize);
}

TEST(CodedKvCache, ABlockThatWasRewrittenIsEncodedAnew) {
  // a and fork share live blocks; a encodes them; fork goes back, writes other tokens into one of
  // them, and encodes: it must not find a's codes.
  Pair pair({.num_sinks = 0, .window = 32, .chunk_tokens = 32});
  const Rows other(pair.config, 500);
  pair.advance(128);
  KvSequence fork = pair.coded.new_sequence();
  pair.coded.fork(pair.a, 128, fork);
  pair.advance(1);
  pair.coded.truncate(fork, 40);
  step(pair.coded, fork, other, pair.config, 88, pair.q, pair.owned.exec);
  step(pair.coded, fork, other, pair.config, 1, pair.q, pair.owned.exec);
  ASSERT_GT(pair.coded.num_coded_tokens(fork), 60);
  const auto actual = content(pair.coded, fork, pair.config, pair.owned.exec);
  pair.plain->truncate(pair.b, 40);
  step(*pair.plain, pair.b, other, pair.config, 89, pair.q, pair.owned.exec);
  const auto expected = content(*pair.plain, pair.b, pair.config, pair.owned.exec);
  EXPECT_TRUE(all_close(actual, expected, 0, kCodeError));
}

TEST(CodedKvCache, ParkedSequencesWakeAsAWhole) {
  for (const int64_t num_sinks : {4, 0}) {
    Pair pair({.num_sinks = num_sinks, .window = 32, .chunk_tokens = 32}, KvFormat::kF32, 1,
              /*encode_while_running=*/false);
    pair.advance(200);
    EXPECT_EQ(pair.advance(100), 0);
    const int64_t free_live = pair.coded.num_free_blocks();
    ASSERT_TRUE(pair.coded.park(pair.a, pair.owned.exec));
    EXPECT_EQ(pair.coded.num_coded_tokens(pair.a), 288 - num_sinks);
    EXPECT_EQ(pair.coded.num_free_blocks(), free_live + (num_sinks > 0 ? 8 : 9));
    const auto parked = content(pair.coded, pair.a, pair.config, pair.owned.exec);
    ASSERT_TRUE(pair.coded.wake(pair.a, pair.owned.exec));
    EXPECT_EQ(pair.coded.num_coded_tokens(pair.a), 0);
    EXPECT_EQ(pair.coded.num_free_blocks(), free_live);
    EXPECT_EQ(pair.coded.num_free_coded_blocks(), 2048 / kBlockSize);
    const auto woken = content(pair.coded, pair.a, pair.config, pair.owned.exec);
    EXPECT_TRUE(same_bits(parked, woken));
    const double difference = pair.advance(1);
    EXPECT_GT(difference, 0);
    EXPECT_LT(difference, 6 * kCodeError);
    // Parking again: the exact sinks survived, and the rest moves by no more than one more step.
    ASSERT_TRUE(pair.coded.park(pair.a, pair.owned.exec));
    const auto differences = pair.differences();
    for (std::size_t t = 0; t < differences.size(); ++t) {
      EXPECT_LT(differences[t], 2 * kCodeError);
      if (int64_t(t) < num_sinks) {
        EXPECT_EQ(differences[t], 0) << t;
      }
    }
  }
}

// Speculation: rows of drafts are committed with the step that verifies them, and those that are
// rejected are truncated away before the next step begins. Nothing of them reaches a code.
TEST(CodedKvCache, RejectedDraftsLeaveNoTraceInTheCodes) {
  const KvCodecPolicy policy{.num_sinks = 4, .window = 0, .chunk_tokens = 32};
  Pair drafted(policy), plain(policy);
  int64_t encoded = 0;
  for (int i = 0; i < 40; ++i) {
    // Five rows, of which the last four (i odd: two) are rejected; over a block's end too.
    const int64_t rejected = i % 2 == 0 ? 4 : 2;
    step(drafted.coded, drafted.a, drafted.rows, drafted.config, 5, drafted.q, drafted.owned.exec);
    drafted.coded.truncate(drafted.a, drafted.a.num_tokens - rejected);
    step(plain.coded, plain.a, plain.rows, plain.config, 5 - rejected, plain.q, plain.owned.exec);
    ASSERT_EQ(drafted.a.num_tokens, plain.a.num_tokens);
    encoded = std::max(encoded, drafted.coded.num_coded_tokens(drafted.a));
    // What could still be rejected is exact.
    EXPECT_LE(encoded, drafted.a.num_tokens);
  }
  EXPECT_GT(encoded, 32);
  EXPECT_TRUE(same_bits(content(drafted.coded, drafted.a, drafted.config, drafted.owned.exec),
                        content(plain.coded, plain.a, plain.config, plain.owned.exec)));
}

TEST(CodedKvCache, SaysHowManyBlocksASequenceTakes) {
  for (const int64_t num_sinks : {0, 4, 32, 40}) {
    for (const int64_t max_rows : {1, 17, 100}) {
      SCOPED_TRACE(testing::Message() << num_sinks << " sinks, steps of " << max_rows);
      Pair pair({.num_sinks = num_sinks, .window = 40, .chunk_tokens = 64});
      const KvBlocks before = pair.coded.free_blocks();
      const KvBlocks promised = pair.coded.blocks_needed(pair.a, 390, max_rows);
      KvBlocks most;
      while (pair.a.num_tokens < 390) {
        const int64_t rows = std::min<int64_t>(max_rows, 390 - pair.a.num_tokens);
        step(pair.coded, pair.a, pair.rows, pair.config, rows, pair.q, pair.owned.exec);
        const KvBlocks free = pair.coded.free_blocks();
        most.live = std::max(most.live, before.live - free.live);
        most.coded = std::max(most.coded, before.coded - free.coded);
      }
      EXPECT_TRUE(most.fit_into(promised)) << most.live << " live of " << promised.live << ", "
                                           << most.coded << " coded of " << promised.coded;
      // And not much more than needed: steps of 1 row hold window and chunk.
      if (max_rows == 1) {
        EXPECT_LE(promised.live, most.live + 3);
      }
      EXPECT_LE(promised.coded, most.coded + 2);
      const KvBlocks rest = pair.coded.blocks_needed(pair.a, 390, max_rows);
      EXPECT_LE(rest.live + most.live, promised.live + 3);
    }
  }
}

TEST(CodedKvCache, AWokenBlockIsNotEncodedAgain) {
  // Codes of reconstructed rows would be a second loss. AQUA's rows shrink each time they are
  // coded.
  const ModelConfig config = small_config();
  const Rows rows(config);
  const PredictiveCodec codec(random_codec("dense", config.num_layers, {2, 16}));
  OwnedExec owned(2);
  CodedKvCache cache(config, codec, rows.ropes(),
                     {.live_format = KvFormat::kBF16,
                      .live_tokens = 1024,
                      .coded_tokens = 256,
                      .max_sequence_tokens = kMaxTokens,
                      .encode_while_running = false});
  const auto q = normal_values(64, 9);
  KvSequence sequence = cache.new_sequence();
  step(cache, sequence, rows, config, 192, q, owned.exec);
  ASSERT_TRUE(cache.park(sequence, owned.exec));
  const auto parked = content(cache, sequence, config, owned.exec);
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(cache.wake(sequence, owned.exec));
    EXPECT_EQ(cache.num_free_coded_blocks(), 8) << "what a woken block keeps counts as free";
    ASSERT_TRUE(cache.park(sequence, owned.exec));
    EXPECT_EQ(cache.num_free_coded_blocks(), 2);
    EXPECT_TRUE(same_bits(content(cache, sequence, config, owned.exec), parked));
  }
  // Others need the room: kept codes go, those in use stay.
  ASSERT_TRUE(cache.wake(sequence, owned.exec));
  KvSequence other = cache.new_sequence();
  step(cache, other, rows, config, 160, q, owned.exec);
  ASSERT_TRUE(cache.park(other, owned.exec));
  EXPECT_EQ(cache.num_free_coded_blocks(), 3);
  const auto of_other = content(cache, other, config, owned.exec);
  EXPECT_FALSE(cache.park(sequence, owned.exec)) << "6 blocks, 3 free";
  EXPECT_TRUE(same_bits(content(cache, other, config, owned.exec), of_other));
  cache.release(other);
  EXPECT_TRUE(cache.park(sequence, owned.exec));
  EXPECT_TRUE(same_bits(content(cache, other, config, owned.exec), {}));

  // A woken block that is written into is another block.
  ASSERT_TRUE(cache.wake(sequence, owned.exec));
  cache.truncate(sequence, 70);
  step(cache, sequence, rows, config, 40, q, owned.exec);
  const auto before = content(cache, sequence, config, owned.exec);
  ASSERT_TRUE(cache.park(sequence, owned.exec));
  const auto after = content(cache, sequence, config, owned.exec);
  const auto row = std::size_t(2 * config.kv_size());
  EXPECT_TRUE(same_bits({before.data() + 96 * row, 14 * row}, {after.data() + 96 * row, 14 * row}));
  EXPECT_FALSE(same_bits({before.data() + 80 * row, row}, {after.data() + 80 * row, row}));
  cache.release(sequence);
  EXPECT_EQ(cache.num_free_blocks(), cache.num_blocks());
  EXPECT_EQ(cache.num_free_coded_blocks(), 8);
}

TEST(CodedKvCache, WithoutRoomForCodesTokensStayExact) {
  Pair pair({.num_sinks = 4, .window = 0, .chunk_tokens = 32});
  CodedKvCache small(pair.config, pair.codec, pair.rows.ropes(),
                     {.live_format = KvFormat::kF32,
                      .live_tokens = 256,
                      .coded_tokens = 64,
                      .max_sequence_tokens = kMaxTokens});
  KvSequence sequence = small.new_sequence();
  step(small, sequence, pair.rows, pair.config, 150, pair.q, pair.owned.exec);
  step(small, sequence, pair.rows, pair.config, 1, pair.q, pair.owned.exec);
  EXPECT_EQ(small.num_coded_tokens(sequence), 60);
  EXPECT_FALSE(small.park(sequence, pair.owned.exec));
  EXPECT_EQ(small.num_coded_tokens(sequence), 60);
  EXPECT_FALSE(small.reserve(sequence, 300)) << "live blocks run out";
  EXPECT_EQ(sequence.num_tokens, 151);
}

TEST(CodedKvCache, RefusesWhatCannotBe) {
  const ModelConfig config = small_config();
  const Rows rows(config);
  const auto code = [&](KvCodecPolicy policy, CodedKvCacheOptions options) {
    const LayerDifferenceCodec codec(config.num_layers, config.kv_size(), policy);
    try {
      CodedKvCache(config, codec, rows.ropes(), options);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  const CodedKvCacheOptions good{
      .live_tokens = 64, .coded_tokens = 64, .max_sequence_tokens = kMaxTokens};
  EXPECT_EQ(code({}, good), ErrorCode::kInternal) << "nothing was thrown";
  EXPECT_EQ(code({.chunk_tokens = 48}, good), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.window = -1}, good), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({}, {}), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace lathe
