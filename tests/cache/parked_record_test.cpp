#include "cache/parked_record.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/sha256.h"
#include "cache/coded_pair.h"
#include "cache/predictive_codec.h"
#include "formats/expect_error.h"
#include "formats/kv_codec_examples.h"

namespace lathe {
namespace {

const std::string kFingerprint(64, '7');

std::vector<int32_t> tokens(int64_t count) {
  std::vector<int32_t> ids(std::size_t(count), 0);
  std::iota(ids.begin(), ids.end(), 100);
  return ids;
}

std::vector<std::byte> example(std::vector<std::byte>& codes) {
  for (int i = 0; i < 2 * 50; ++i) codes.push_back(std::byte(uint8_t(i)));
  return write_parked_record({.codec_fingerprint = kFingerprint,
                              .first_position = 96,
                              .token_ids = tokens(2 * kBlockSize),
                              .bytes_per_block = 50,
                              .codes = codes,
                              .sinks = std::span(codes).first(8)});
}

TEST(ParkedRecord, ComesBack) {
  std::vector<std::byte> codes;
  const auto bytes = example(codes);
  const ParkedRecord record = read_parked_record(bytes, "record");
  EXPECT_EQ(record.codec_fingerprint, kFingerprint);
  EXPECT_EQ(record.first_position, 96);
  EXPECT_EQ(record.token_ids, tokens(2 * kBlockSize));
  EXPECT_TRUE(std::equal(record.codes.begin(), record.codes.end(), codes.begin(), codes.end()));
  EXPECT_EQ(record.sinks.size(), 8u);
}

TEST(ParkedRecord, EveryFlippedBitIsSeen) {
  std::vector<std::byte> codes;
  auto bytes = example(codes);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const auto bit = std::byte(uint8_t(1u << (i % 8)));
    bytes[i] ^= bit;
    expect_error(ErrorCode::kCorruptData, "record", [&] { read_parked_record(bytes, "record"); });
    bytes[i] ^= bit;
  }
  read_parked_record(bytes, "record");
}

TEST(ParkedRecord, TornRecordsAreSeen) {
  std::vector<std::byte> codes;
  auto bytes = example(codes);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    expect_error(ErrorCode::kCorruptData, "record",
                 [&] { read_parked_record(std::span(bytes).first(size), "record"); });
  }
  bytes.push_back({});
  expect_error(ErrorCode::kCorruptData, "record", [&] { read_parked_record(bytes, "record"); });
}

// Somebody who can make checksums: sizes that contradict each other are refused before use.
TEST(ParkedRecord, HostileHeadersAreRefused) {
  std::vector<std::byte> codes;
  const auto good = example(codes);
  const struct {
    std::size_t at;
    int64_t value;
  } cases[] = {
      {0, 0},   {40, -32},       {40, 33},        {40, int64_t{1} << 60}, {48, 0},
      {48, 32}, {48, 65},        {48, -64},       {48, INT64_MAX},        {48, int64_t{1} << 31},
      {56, -1}, {56, 49},        {56, INT64_MAX}, {56, int64_t{1} << 31}, {64, 7},
      {64, -8}, {64, INT64_MIN}, {72, 2},         {72, int64_t{1} << 32}};
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << "at " << c.at << ": " << c.value);
    auto bytes = good;
    std::memcpy(bytes.data() + c.at, &c.value, 8);
    const std::string hex = sha256_hex(std::span(bytes).first(bytes.size() - 32));
    for (std::size_t i = 0; i < 32; ++i) {
      bytes[bytes.size() - 32 + i] =
          std::byte(uint8_t(std::stoul(hex.substr(2 * i, 2), nullptr, 16)));
    }
    expect_error(ErrorCode::kCorruptData, "record", [&] { read_parked_record(bytes, "record"); });
  }
}

// --- through the cache ---------------------------------------------------------------------------

CodedKvCacheOptions options(KvFormat format, int64_t coded_tokens = 2048) {
  return {.live_format = format,
          .live_tokens = 1024,
          .coded_tokens = coded_tokens,
          .max_sequence_tokens = kMaxTokens,
          .encode_while_running = false};
}

struct Parked {
  explicit Parked(const KvCodec& codec, KvFormat format = KvFormat::kBF16)
      : rows(config),
        cache(config, codec, rows.ropes(), options(format)),
        sequence(cache.new_sequence()) {
    step(cache, sequence, rows, config, 200, normal_values(64, 9), owned.exec);
    EXPECT_TRUE(cache.park(sequence, owned.exec));
  }
  const ModelConfig config = small_config();
  const Rows rows;
  OwnedExec owned{2};
  CodedKvCache cache;
  KvSequence sequence;
};

TEST(ParkedRecord, ABlockFromARecordIsTheBlockThatWasParked) {
  for (const char* variant : {"dense", "latent-values", "int"}) {
    for (const int64_t num_sinks : {4, 0}) {
      for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16}) {
        KvCodecFile file = random_codec(variant, 5, {2, 16});
        file.num_sinks = num_sinks;
        const PredictiveCodec codec(file);
        Parked first(codec, format);
        // In two records: the first with the sinks, the second behind it.
        const auto ids = tokens(6 * kBlockSize);
        const std::span<const int32_t> head(ids.data(), 2 * kBlockSize);
        const std::span<const int32_t> tail(ids.data() + 2 * kBlockSize, 4 * kBlockSize);
        const auto a = first.cache.save_parked(first.sequence, 0, head);
        const auto b = first.cache.save_parked(first.sequence, 2, tail);
        EXPECT_EQ(read_parked_record(a, "a").sinks.empty(), num_sinks == 0);

        CodedKvCache second(first.config, codec, first.rows.ropes(), options(format));
        KvSequence sequence = second.new_sequence();
        ASSERT_TRUE(second.load_parked(sequence, a, head, "a"));
        ASSERT_TRUE(second.load_parked(sequence, b, tail, "b"));
        EXPECT_EQ(sequence.num_tokens, 6 * kBlockSize);
        first.cache.truncate(first.sequence, 6 * kBlockSize);
        const auto expected = content(first.cache, first.sequence, first.config, first.owned.exec);
        EXPECT_TRUE(same_bits(content(second, sequence, first.config, first.owned.exec), expected));
        ASSERT_TRUE(second.wake(sequence, first.owned.exec));
        EXPECT_TRUE(same_bits(content(second, sequence, first.config, first.owned.exec), expected));
        second.release(sequence);
        EXPECT_EQ(second.num_free_blocks(), second.num_blocks());
        EXPECT_EQ(second.num_free_coded_blocks(), 2048 / kBlockSize);
      }
    }
  }
}

TEST(ParkedRecord, WhatDoesNotFitIsRefusedAndNothingIsTaken) {
  const PredictiveCodec codec(random_codec("dense", 5, {2, 16}));
  Parked first(codec);
  const auto ids = tokens(4 * kBlockSize);
  const auto record = first.cache.save_parked(first.sequence, 0, ids);
  const auto refused = [&](ErrorCode code, const char* part, CodedKvCache& cache,
                           std::span<const std::byte> bytes, std::span<const int32_t> wanted) {
    KvSequence sequence = cache.new_sequence();
    const int64_t free = cache.num_free_coded_blocks();
    expect_error(code, part, [&] { cache.load_parked(sequence, bytes, wanted, "record"); });
    EXPECT_EQ(sequence.num_tokens, 0);
    EXPECT_TRUE(sequence.blocks.empty());
    EXPECT_EQ(cache.num_free_coded_blocks(), free);
    EXPECT_EQ(cache.num_free_blocks(), cache.num_blocks());
  };
  CodedKvCache same(first.config, codec, first.rows.ropes(), options(KvFormat::kBF16));
  auto other_ids = ids;
  other_ids[70] += 1;
  refused(ErrorCode::kInvalidArgument, "tokens", same, record, other_ids);
  refused(ErrorCode::kInvalidArgument, "tokens", same, record, std::span(ids).first(32));
  refused(ErrorCode::kInvalidArgument, "position", same,
          first.cache.save_parked(first.sequence, 1, std::span(ids).first(64)),
          std::span(ids).first(64));
  auto damaged = record;
  damaged[1000] ^= std::byte{4};
  refused(ErrorCode::kCorruptData, "damaged", same, damaged, ids);
  const PredictiveCodec other(random_codec("dense", 5, {2, 16}, 2, /*seed=*/5));
  CodedKvCache another(first.config, other, first.rows.ropes(), options(KvFormat::kBF16));
  refused(ErrorCode::kInvalidArgument, "codec", another, record, ids);
  CodedKvCache f32(first.config, codec, first.rows.ropes(), options(KvFormat::kF32));
  refused(ErrorCode::kInvalidArgument, "bf16", f32, record, ids);

  CodedKvCache small(first.config, codec, first.rows.ropes(), options(KvFormat::kBF16, 64));
  KvSequence sequence = small.new_sequence();
  EXPECT_FALSE(small.load_parked(sequence, record, ids, "record")) << "no room";
  EXPECT_EQ(small.num_free_blocks(), small.num_blocks());
}

}  // namespace
}  // namespace lathe
