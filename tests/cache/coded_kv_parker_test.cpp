// CodedKvCache::make_parker(): codes out of a cache and into another.
#include <gtest/gtest.h>

#include <algorithm>

#include "cache/coded_pair.h"
#include "cache/predictive_codec.h"
#include "formats/expect_error.h"
#include "formats/kv_codec_examples.h"

namespace lathe {
namespace {

using Pieces = std::vector<std::vector<std::byte>>;

constexpr int64_t kPiece = 64;

KvCodecFile codec_file(const char* variant, int64_t num_sinks) {
  KvCodecFile file = random_codec(variant, 5, {2, 16});
  file.num_sinks = num_sinks;
  file.window = 32;
  file.chunk_tokens = kPiece;
  return file;
}

CodedKvCacheOptions options(KvFormat format, int64_t live_tokens, int64_t coded_tokens) {
  return {.live_format = format,
          .live_tokens = live_tokens,
          .coded_tokens = coded_tokens,
          .max_sequence_tokens = kMaxTokens,
          .encode_while_running = false};
}

// A cache, its parker and a sequence.
struct Parked {
  explicit Parked(const KvCodec& codec, KvFormat format = KvFormat::kBF16,
                  int64_t live_tokens = 1024, int64_t coded_tokens = 1024)
      : rows(config),
        cache(config, codec, rows.ropes(), options(format, live_tokens, coded_tokens)),
        parker(cache.make_parker()),
        sequence(cache.new_sequence()) {}
  void fill(int64_t num_tokens) {
    step(cache, sequence, rows, config, num_tokens, normal_values(64, 9), owned.exec);
  }
  Pieces park(int64_t begin, int64_t count) {
    Pieces pieces;
    parker->park(sequence, begin, count, owned.exec,
                 [&](int64_t piece, std::span<const std::byte> bytes) {
                   EXPECT_EQ(piece, begin + int64_t(pieces.size()));
                   EXPECT_EQ(int64_t(bytes.size()), parker->piece_bytes(piece));
                   pieces.emplace_back(bytes.begin(), bytes.end());
                 });
    return pieces;
  }
  // Behind what the sequence has.
  bool wake(const Pieces& pieces) {
    const int64_t begin = sequence.num_tokens / kPiece;
    const int64_t num_tokens = sequence.num_tokens + int64_t(pieces.size()) * kPiece;
    if (!cache.reserve_woken(sequence, num_tokens)) return false;
    parker->wake(pieces, begin, sequence, owned.exec);
    sequence.num_tokens = num_tokens;
    return true;
  }
  std::vector<float> content() { return lathe::content(cache, sequence, config, owned.exec); }
  bool is_empty() const { return cache.free_blocks() == cache.all_blocks(); }

  const ModelConfig config = small_config();
  const Rows rows;
  OwnedExec owned{2};
  CodedKvCache cache;
  std::unique_ptr<PieceParker> parker;
  KvSequence sequence;
};

TEST(CodedKvParker, WokenBlocksAreThoseThatWereParked) {
  for (const char* variant : {"dense", "latent-values", "int"}) {
    for (const int64_t num_sinks : {4, 0}) {
      for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16}) {
        SCOPED_TRACE(testing::Message() << variant << ' ' << num_sinks << " sinks");
        const PredictiveCodec codec(codec_file(variant, num_sinks));
        Parked first(codec, format);
        first.fill(210);
        const Pieces from_live = first.park(0, 3);
        EXPECT_EQ(first.cache.num_coded_tokens(first.sequence), 0);  // it keeps what it has
        ASSERT_TRUE(first.cache.park(first.sequence, first.owned.exec));
        // The same codes, whether they are there already or made for that.
        EXPECT_EQ(first.park(0, 3), from_live);
        EXPECT_EQ(first.park(1, 2), Pieces(from_live.begin() + 1, from_live.end()));
        first.cache.truncate(first.sequence, 3 * kPiece);
        const std::vector<float> expected = first.content();

        Parked second(codec, format);
        ASSERT_TRUE(second.wake({from_live[0]}));
        ASSERT_TRUE(second.wake({from_live[1], from_live[2]}));
        EXPECT_EQ(second.cache.num_coded_tokens(second.sequence), 3 * kPiece - num_sinks);
        EXPECT_TRUE(same_bits(second.content(), expected));
        // And in steps behind them.
        const std::vector<float> q = normal_values(64, 7);
        const auto next = [&](Parked& own) {
          return step(own.cache, own.sequence, own.rows, own.config, 5, q, own.owned.exec);
        };
        EXPECT_TRUE(same_bits(next(second), next(first)));
        ASSERT_TRUE(second.cache.wake(second.sequence, second.owned.exec));
        EXPECT_TRUE(same_bits(second.content(), first.content()));
        second.cache.release(second.sequence);
        EXPECT_TRUE(second.is_empty());
      }
    }
  }
}

TEST(CodedKvParker, LiveBlocksGiveWayToWokenOnesAndTheirOwnersKeepThem) {
  const PredictiveCodec codec(codec_file("dense", 4));
  Parked own(codec);
  own.fill(2 * kPiece);
  const Pieces pieces = own.park(0, 2);
  const std::vector<float> exact = own.content();
  KvSequence shares = own.cache.new_sequence();
  own.cache.fork(own.sequence, kPiece, shares);
  ASSERT_TRUE(own.cache.reserve_woken(shares, 2 * kPiece));
  EXPECT_EQ(shares.num_tokens, 0);
  own.parker->wake(pieces, 0, shares, own.owned.exec);
  shares.num_tokens = 2 * kPiece;
  EXPECT_EQ(own.cache.num_coded_tokens(shares), 2 * kPiece - 4);
  EXPECT_TRUE(same_bits(own.content(), exact));
  // Coded ones stay, and are not woken again.
  KvSequence third = own.cache.new_sequence();
  own.cache.fork(shares, kPiece, third);
  ASSERT_TRUE(own.cache.reserve_woken(third, 2 * kPiece));
  EXPECT_EQ(third.num_tokens, kPiece);
  EXPECT_EQ(third.blocks[0], shares.blocks[0]);
  EXPECT_NE(third.blocks[2], shares.blocks[2]);
  own.cache.truncate(third, third.num_tokens);  // the piece is gone
  EXPECT_EQ(third.blocks.size(), std::size_t(kPiece / kBlockSize));
  for (KvSequence* sequence : {&third, &shares, &own.sequence}) own.cache.release(*sequence);
  EXPECT_TRUE(own.is_empty());
}

TEST(CodedKvParker, WhatDoesNotFitIsRefusedAndNothingIsTaken) {
  const PredictiveCodec codec(codec_file("dense", 4));
  Parked first(codec);
  first.fill(2 * kPiece);
  const Pieces pieces = first.park(0, 2);
  Parked small(codec, KvFormat::kBF16, 1024, kPiece);
  EXPECT_FALSE(small.wake(pieces)) << "room for one of two";
  EXPECT_TRUE(small.is_empty());
  Parked full(codec, KvFormat::kBF16, kBlockSize, 1024);
  KvSequence other = full.cache.new_sequence();
  ASSERT_TRUE(full.cache.reserve(other, kBlockSize));
  EXPECT_FALSE(full.wake(pieces)) << "no block for the sinks";
  full.cache.release(other);
  EXPECT_TRUE(full.is_empty());

  Parked second(codec);
  ASSERT_TRUE(second.cache.reserve_woken(second.sequence, kPiece));
  for (const int64_t wrong :
       {int64_t{0}, second.parker->piece_bytes(0) - 1, second.parker->piece_bytes(1)}) {
    const Pieces bad = {std::vector<std::byte>(std::size_t(wrong))};
    expect_error(ErrorCode::kCorruptData, "expected",
                 [&] { second.parker->wake(bad, 0, second.sequence, second.owned.exec); });
  }
  // Any bytes of the right size become something.
  Pieces noise = {std::vector<std::byte>(std::size_t(second.parker->piece_bytes(0)))};
  for (std::size_t i = 0; i < noise[0].size(); ++i) noise[0][i] = std::byte(uint8_t(i * 41));
  second.parker->wake(noise, 0, second.sequence, second.owned.exec);
  second.sequence.num_tokens = kPiece;
  EXPECT_EQ(second.park(0, 1), noise);
  second.content();

  const PredictiveCodec many_sinks(codec_file("dense", kBlockSize));
  expect_error(ErrorCode::kUnsupported, "32 exact tokens", [&] { Parked{many_sinks}; });
}

}  // namespace
}  // namespace lathe
