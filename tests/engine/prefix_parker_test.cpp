#include "engine/prefix_parker.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "cache/kv_parker.h"
#include "cache/layer_difference_codec.h"
#include "cache/predictive_codec.h"
#include "engine/tiny_engine.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPiece = 32;
constexpr int64_t kWindow = 32;

// A tiny engine whose finished and preempted sequences are parked.
struct ParkingEngine {
  explicit ParkingEngine(ParkedStoreOptions store = {.memory_bytes = 1 << 24,
                                                     .directory = "",
                                                     .disk_bytes = 0},
                         EngineOptions wanted = small_options(), int num_threads = 2,
                         const std::string& fingerprint = "model and codec")
      : tiny(wanted, num_threads),
        codec(tiny.loaded.config().num_layers, tiny.loaded.config().kv_size(),
              {.num_sinks = 4, .window = kWindow, .chunk_tokens = kPiece}) {
    KvRopes ropes = tiny.loaded.model->kv_ropes(tiny.options.max_sequence_tokens);
    auto parker = std::make_unique<KvParker>(tiny.engine.cache(), codec, std::move(ropes.layers),
                                             std::move(ropes.memory));
    tiny.engine.set_parker(std::make_unique<PrefixParker>(std::move(parker), store, fingerprint,
                                                          tiny.loaded.owned.exec));
  }
  Record run(const std::vector<int32_t>& prompt, int64_t max_tokens) {
    const auto record = submit(tiny.engine, prompt, greedy(max_tokens));
    tiny.run();
    return *record;
  }
  EngineStats stats() const { return tiny.engine.stats(); }

  TinyEngine tiny;
  LayerDifferenceCodec codec;
};

// Logprobs agree up to what int8 codes of keys and values do to them.
void expect_close(const Record& actual, const Record& expected) {
  EXPECT_EQ(actual.tokens, expected.tokens);
  ASSERT_EQ(actual.logprobs.size(), expected.logprobs.size());
  for (std::size_t i = 0; i < actual.logprobs.size(); ++i) {
    EXPECT_NEAR(actual.logprobs[i], expected.logprobs[i], 0.05) << i;
  }
}

TEST(PrefixParker, APromptThatWasParkedIsWoken) {
  const std::vector<int32_t> prompt = random_prompt(100, 3);
  const Record expected = alone(prompt, greedy(8));
  ParkingEngine engine;
  EXPECT_TRUE(engine.run(prompt, 8).same_as(expected));
  EXPECT_TRUE(engine.tiny.cache_is_empty());  // what is parked holds no block
  // The whole pieces that end a window before the prompt does.
  const int64_t reusable = (100 - 1 - kWindow) / kPiece * kPiece;
  const Record again = engine.run(prompt, 8);
  EXPECT_EQ(again.usage.cached_tokens, reusable);
  expect_close(again, expected);
  const ParkingStats parking = engine.stats().parking;
  EXPECT_EQ(parking.woken_tokens, reusable);
  EXPECT_EQ(parking.parked_tokens, (100 + 8 - 1) / kPiece * kPiece);  // once
  EXPECT_EQ(parking.num_wakes, 1);
  EXPECT_EQ(parking.store.memory_pieces, 3);
  // Waking is exact arithmetic: the same bits again, and on other threads.
  EXPECT_TRUE(engine.run(prompt, 8).same_as(again));
  ParkingEngine three({.memory_bytes = 1 << 24, .directory = "", .disk_bytes = 0}, small_options(),
                      3);
  three.run(prompt, 8);
  EXPECT_TRUE(three.run(prompt, 8).same_as(again));
  // Another ending shares the beginning only.
  std::vector<int32_t> other = prompt;
  other[40] ^= 1;
  EXPECT_EQ(engine.run(other, 4).usage.cached_tokens, kPiece);
  EXPECT_TRUE(engine.tiny.cache_is_empty());
}

TEST(PrefixParker, ARequestMayLeaveNothingBehind) {
  EngineOptions options = small_options();
  options.prefix_cache = true;
  ParkingEngine engine({.memory_bytes = 1 << 24, .directory = "", .disk_bytes = 0}, options);
  Request request;
  request.prompt = random_prompt(100, 3);
  request.params = greedy(8);
  request.keeps_prefix = false;
  engine.tiny.engine.add_request(std::move(request));
  engine.tiny.run();
  EXPECT_EQ(engine.stats().parking.parked_tokens, 0);
  EXPECT_TRUE(engine.tiny.cache_is_empty());
}

TEST(PrefixParker, LiveBlocksAreSharedFirstAndPiecesGoOnWhereTheyEnd) {
  EngineOptions options = small_options();
  options.prefix_cache = true;
  ParkingEngine engine({.memory_bytes = 1 << 24, .directory = "", .disk_bytes = 0}, options);
  const std::vector<int32_t> prompt = random_prompt(110, 4);
  const Record first = engine.run(prompt, 2);
  // All of it is still live: exact.
  const Record second = engine.run(prompt, 2);
  EXPECT_EQ(second.usage.cached_tokens, 109);
  EXPECT_EQ(second.tokens, first.tokens);
  EXPECT_TRUE(same_bits(second.logprobs, first.logprobs));
  EXPECT_EQ(engine.stats().parking.num_wakes, 0);
}

TEST(PrefixParker, PreemptedSequencesWakeAndAllFinish) {
  EngineOptions options = small_options();
  options.cache_tokens = 128;
  ParkingEngine engine({.memory_bytes = 1 << 24, .directory = "", .disk_bytes = 0}, options);
  std::vector<std::shared_ptr<Record>> records;
  std::vector<std::vector<int32_t>> prompts;
  for (uint64_t i = 0; i < 12; ++i) {
    prompts.push_back(random_prompt(10 + 5 * int64_t(i), i));
    records.push_back(submit(engine.tiny.engine, prompts.back(), greedy(50)));
  }
  engine.tiny.run();
  EXPECT_GT(engine.stats().num_preemptions, 0);
  EXPECT_GT(engine.stats().parking.woken_tokens, 0);
  EXPECT_TRUE(engine.tiny.cache_is_empty());
  int64_t same = 0;
  for (std::size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(records[i]->tokens.size(), 50u) << i;
    EXPECT_EQ(records[i]->reason, FinishReason::kLength);
    same += records[i]->tokens == alone(prompts[i], greedy(50)).tokens;
  }
  // int8 codes hardly ever change a token.
  EXPECT_GE(same, 9);
}

TEST(PrefixParker, RandomLoadsFinishAndGiveEverythingBack) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Rng rng(seed);
    EngineOptions options = small_options();
    options.cache_tokens = 128 + 32 * static_cast<int64_t>(rng.below(8));
    options.prefix_cache = rng.below(2) == 0;
    // Sometimes so little room that pieces are lost all the time.
    ParkingEngine engine(
        {.memory_bytes = static_cast<int64_t>(rng.below(40000)), .directory = "", .disk_bytes = 0},
        options);
    std::vector<std::shared_ptr<Record>> records;
    std::vector<RequestId> ids;
    for (int i = 0; i < 40; ++i) {
      // Few beginnings, many endings.
      std::vector<int32_t> prompt =
          random_prompt(static_cast<int64_t>(rng.below(70)), rng.below(3));
      const std::vector<int32_t> ending =
          random_prompt(1 + static_cast<int64_t>(rng.below(30)), 50 + rng.below(5));
      prompt.insert(prompt.end(), ending.begin(), ending.end());
      ids.emplace_back();
      records.push_back(submit(engine.tiny.engine, prompt,
                               greedy(1 + static_cast<int64_t>(rng.below(20))), &ids.back()));
      if (rng.below(3) == 0) engine.tiny.engine.step();
      if (rng.below(10) == 0) engine.tiny.engine.abort(ids[rng.below(ids.size())]);
    }
    engine.tiny.run();
    for (const auto& record : records) {
      ASSERT_TRUE(record->reason.has_value());
      EXPECT_NE(record->reason, FinishReason::kError) << record->error;
    }
    EXPECT_TRUE(options.prefix_cache || engine.tiny.cache_is_empty());
    EXPECT_EQ(engine.stats().running_cache_blocks, KvBlocks{});
  }
}

class PrefixParkerDisk : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "prefixes_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }
  ParkedStoreOptions store(int64_t memory_bytes = 0) const {
    return {.memory_bytes = memory_bytes, .directory = directory_, .disk_bytes = 1 << 24};
  }
  std::string directory_;
};

TEST_F(PrefixParkerDisk, PrefixesSurviveARestart) {
  const std::vector<int32_t> prompt = random_prompt(120, 7);
  const auto reusable = [](int64_t size) { return (size - 1 - kWindow) / kPiece * kPiece; };
  Record woken;
  {
    ParkingEngine engine(store());
    engine.run(prompt, 4);
    woken = engine.run(prompt, 4);
    EXPECT_EQ(woken.usage.cached_tokens, reusable(120));
  }
  {
    ParkingEngine engine(store());
    const Record again = engine.run(prompt, 4);
    EXPECT_EQ(again.usage.cached_tokens, reusable(120));
    EXPECT_TRUE(again.same_as(woken));
    EXPECT_GT(engine.stats().parking.store.num_disk_hits, 0);
  }
  {  // another model or codec: nothing of it fits
    ParkingEngine engine(store(), small_options(), 2, "another model");
    EXPECT_EQ(engine.run(prompt, 4).usage.cached_tokens, 0);
  }
  // A bit of one piece flips: what follows it is computed again.
  std::vector<int64_t> shared;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    std::string content((std::istreambuf_iterator<char>(file)), {});
    const std::string original = content;
    content[content.size() / 2] = static_cast<char>(content[content.size() / 2] ^ 4);
    std::ofstream(entry.path(), std::ios::binary | std::ios::trunc) << content;
    {
      ParkingEngine engine(store());
      const Record again = engine.run(prompt, 4);
      shared.push_back(again.usage.cached_tokens);
      expect_close(again, woken);
    }
    std::ofstream(entry.path(), std::ios::binary | std::ios::trunc) << original;
  }
  // The pieces of the prompt's reusable part, each once; the others are not read.
  for (int64_t tokens = 0; tokens < reusable(120); tokens += kPiece) {
    EXPECT_EQ(std::count(shared.begin(), shared.end(), tokens), 1) << tokens;
  }
}

// HIGGS at 2 bits with a byte of scale per head, against live blocks of bf16: six times as many
// prefixes in the same memory. (What live prefixes could be cut to, whole pieces, is counted for
// both.)
TEST(PrefixParker, SixTimesAsManyPrefixesFitIntoTheSameMemory) {
  constexpr int64_t kPrompts = 60;
  constexpr int64_t kTokens =
      97;  // three pieces; the first two end a window before the prompt does
  std::vector<std::vector<int32_t>> prompts;
  for (uint64_t i = 0; i < kPrompts; ++i) prompts.push_back(random_prompt(kTokens, 100 + i));
  // How many of the newest prompts still give their first 64 tokens.
  const auto count_hits = [&](TinyEngine& tiny) {
    const auto cached = [&](const std::vector<int32_t>& prompt) {
      const auto record = submit(tiny.engine, prompt, greedy(1));
      tiny.run();
      EXPECT_EQ(record->error, "");
      return record->usage.cached_tokens;
    };
    for (const auto& prompt : prompts) cached(prompt);
    int64_t hits = 0;
    while (hits < kPrompts && cached(prompts[std::size_t(kPrompts - 1 - hits)]) >= 64) ++hits;
    return hits;
  };
  EngineOptions options = small_options();
  options.kv_format = KvFormat::kBF16;
  options.prefix_cache = true;
  // Room for five finished prompts, and the one that runs.
  const int64_t memory_blocks = 5 * blocks_for(kTokens);
  options.cache_tokens = (memory_blocks + blocks_for(kTokens) + 1) * kBlockSize;
  TinyEngine live(options);
  const int64_t memory_bytes = memory_blocks * live.engine.cache().bytes_per_block();
  const int64_t live_hits = count_hits(live);
  EXPECT_GE(live_hits, 4);
  EXPECT_LE(live_hits, 6);

  options.prefix_cache = false;
  TinyEngine parked(options);
  const ModelConfig& config = parked.loaded.config();
  KvCodecFile file = plain_kv_codec(config, RowFormat{}, "model");
  file.window = kWindow;
  file.chunk_tokens = kPiece;
  const auto codec = make_kv_codec(file, config);
  parked.engine.set_parker(std::make_unique<PrefixParker>(
      parked.loaded.model->make_parker(parked.engine.cache(), file, *codec,
                                       parked.options.max_sequence_tokens),
      ParkedStoreOptions{.memory_bytes = memory_bytes, .directory = "", .disk_bytes = 0}, "model",
      parked.loaded.owned.exec));
  const int64_t parked_hits = count_hits(parked);
  const ParkingStats stats = parked.engine.stats().parking;
  EXPECT_LE(stats.store.memory_bytes, memory_bytes);
  RecordProperty("live_prefixes", static_cast<int>(live_hits));
  RecordProperty("parked_prefixes", static_cast<int>(parked_hits));
  EXPECT_GE(parked_hits, 6 * 5);
  EXPECT_LT(parked_hits, kPrompts);
  EXPECT_GT(stats.store.num_evicted, 0);
}

}  // namespace
}  // namespace lathe
