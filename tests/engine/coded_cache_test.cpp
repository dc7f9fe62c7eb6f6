// An engine whose running sequences are coded behind their latest tokens.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "cache/coded_kv_cache.h"
#include "cache/layer_difference_codec.h"
#include "engine/tiny_engine.h"

namespace lathe {
namespace {

struct CodedEngine {
  explicit CodedEngine(EngineOptions wanted = small_options(), int num_threads = 2)
      : loaded(golden_path("tiny/qwen2-tied-mqa"), num_threads),
        codec(loaded.config().num_layers, loaded.config().kv_size(),
              {.num_sinks = 4, .window = 32, .chunk_tokens = 32}),
        options(resolve(with_codec(wanted, codec), loaded.config())),
        engine(*loaded.model, make_engine_cache(*loaded.model, options), nullptr, options,
               loaded.owned.exec) {}
  static EngineOptions with_codec(EngineOptions options, const KvCodec& codec) {
    options.kv_codec = &codec;
    return options;
  }
  void park(const ParkedStoreOptions& store, const std::string& fingerprint = "model and codec") {
    engine.set_parker(std::make_unique<PrefixParker>(
        loaded.model->make_parker(engine.cache(), {}, codec, options.max_sequence_tokens), store,
        fingerprint, loaded.owned.exec));
  }
  void run() {
    while (engine.has_work()) engine.step();
  }
  bool is_empty() {
    const auto& cache = static_cast<const CodedKvCache&>(engine.cache());
    return cache.num_free_blocks() == cache.num_blocks() &&
           cache.num_free_coded_blocks() * kBlockSize >= options.cache_tokens;
  }

  LoadedModel loaded;
  LayerDifferenceCodec codec;
  EngineOptions options;
  Engine engine;
};

std::shared_ptr<Record> ask(CodedEngine& coded, uint64_t seed, int64_t prompt_size,
                            int64_t max_tokens) {
  return submit(coded.engine, random_prompt(prompt_size, seed), greedy(max_tokens));
}

TEST(CodedEngine, ShortSequencesAreExactAndLongOnesClose) {
  CodedEngine coded;
  const auto exact = ask(coded, 1, 20, 40);
  const auto close = ask(coded, 2, 90, 30);
  coded.run();
  EXPECT_TRUE(coded.is_empty());
  // 60 tokens: window and chunk are not full until the last step.
  EXPECT_EQ(exact->tokens, alone(random_prompt(20, 1), greedy(40)).tokens);
  EXPECT_TRUE(same_bits(exact->logprobs, alone(random_prompt(20, 1), greedy(40)).logprobs));
  const Record expected = alone(random_prompt(90, 2), greedy(30));
  EXPECT_EQ(close->tokens, expected.tokens);
  EXPECT_FALSE(same_bits(close->logprobs, expected.logprobs));
  for (std::size_t i = 0; i < expected.logprobs.size(); ++i) {
    EXPECT_NEAR(close->logprobs[i], expected.logprobs[i], 0.05) << i;
  }
}

// How a prompt is cut decides which of its rows still saw exact keys, so bits may differ;
// companions that leave the cuts alone change nothing.
TEST(CodedEngine, DecodingCompanionsChangeNothing) {
  CodedEngine single;
  const auto expected = ask(single, 3, 60, 50);
  single.run();
  CodedEngine coded({small_options()}, 3);
  const auto first = ask(coded, 3, 60, 50);
  coded.engine.step();  // its prompt is one step of 60 rows in both
  std::vector<std::shared_ptr<Record>> others;
  for (uint64_t i = 0; i < 5; ++i) others.push_back(ask(coded, 10 + i, 40 + 9 * int64_t(i), 40));
  coded.run();
  EXPECT_TRUE(first->same_as(*expected));
  EXPECT_TRUE(coded.is_empty());
}

TEST(CodedEngine, ChunksOfAnySizeAreClose) {
  const Record expected = alone(random_prompt(110, 4), greedy(10));
  for (const int64_t chunk : {1, 7, 31, 64}) {
    EngineOptions options = small_options();
    options.max_num_seqs = 1;
    options.max_batch_tokens = chunk;
    CodedEngine coded(options);
    const auto record = ask(coded, 4, 110, 10);
    coded.run();
    EXPECT_EQ(record->tokens, expected.tokens) << chunk;
    for (std::size_t i = 0; i < expected.logprobs.size(); ++i) {
      EXPECT_NEAR(record->logprobs[i], expected.logprobs[i], 0.05) << chunk;
    }
  }
}

// Beside the same live blocks as a plain cache that holds one sequence, coded ones hold several.
TEST(CodedEngine, RandomLoadsFinishAndGiveEverythingBack) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Rng rng(seed);
    EngineOptions options = small_options();
    options.max_num_seqs = 2 + static_cast<int64_t>(rng.below(6));
    options.cache_tokens = 128 + 64 * static_cast<int64_t>(rng.below(5));
    options.prefix_cache = rng.below(2) == 0;
    CodedEngine coded(options);
    std::vector<std::shared_ptr<Record>> records;
    std::vector<RequestId> ids;
    for (int i = 0; i < 30; ++i) {
      const auto size = 1 + static_cast<int64_t>(rng.below(90));
      std::vector<int32_t> prompt = random_prompt(size, rng.below(3));  // common beginnings
      prompt.push_back(static_cast<int32_t>(rng.below(256)));
      ids.emplace_back();
      records.push_back(
          submit(coded.engine, prompt, greedy(1 + int64_t(rng.below(30))), &ids.back()));
      if (rng.below(3) == 0) coded.engine.step();
      if (rng.below(8) == 0) coded.engine.abort(ids[rng.below(ids.size())]);
    }
    coded.run();
    for (const auto& record : records) {
      ASSERT_TRUE(record->reason.has_value()) << seed;
      EXPECT_NE(record->reason, FinishReason::kError) << record->error;
    }
    EXPECT_EQ(coded.engine.stats().running_cache_blocks, KvBlocks{});
    EXPECT_TRUE(options.prefix_cache || coded.is_empty()) << seed;
  }
}

// Codes are counted with the codes' blocks, and what sequences share once.
TEST(CodedEngine, TheCacheIsNeverMoreThanFull) {
  EngineOptions options = small_options();
  options.max_num_seqs = 6;
  options.cache_tokens = 6 * 160;
  CodedEngine coded(options);
  ask(coded, 30, 100, 1);
  coded.run();
  // The first blocks of all are those that the sequence before has left.
  for (uint64_t i = 0; i < 6; ++i) ask(coded, 30, 100, 50);
  double highest = 0;
  KvBlocks most;
  while (coded.engine.has_work()) {
    coded.engine.step();
    const EngineStats stats = coded.engine.stats();
    EXPECT_LE(stats.cache_usage(), 1);
    EXPECT_LE(stats.running_cache_blocks.live + stats.free_cache_blocks.live,
              stats.cache_blocks.live);
    EXPECT_LE(stats.running_cache_blocks.coded + stats.free_cache_blocks.coded,
              stats.cache_blocks.coded);
    highest = std::max(highest, stats.cache_usage());
    most.live = std::max(most.live, stats.running_cache_blocks.live);
    most.coded = std::max(most.coded, stats.running_cache_blocks.coded);
  }
  EXPECT_GT(most.coded, 0);
  EXPECT_GT(most.live, most.coded);  // windows of 64 tokens and more
  EXPECT_GT(highest, 0.2);
  const EngineStats stats = coded.engine.stats();
  EXPECT_EQ(stats.cache_usage(), 0);
  EXPECT_EQ(stats.cache_block_bytes.live, coded.engine.cache().bytes_per_block());
  EXPECT_EQ(stats.cache_block_bytes.coded, coded.codec.bytes_per_block());
}

// What is in memory and coded is what comes back from disk: the answer is the same, bit for bit.
TEST(CodedEngine, PrefixesAreParkedAsTheyAreAndSurviveARestart) {
  std::string directory = testing::TempDir() + "coded_prefixes_XXXXXX";
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  const ParkedStoreOptions store{.memory_bytes = 0, .directory = directory, .disk_bytes = 1 << 24};
  const std::vector<int32_t> first = random_prompt(110, 5);
  std::vector<int32_t> second(first.begin(), first.begin() + 64);
  const std::vector<int32_t> ending = random_prompt(40, 6);
  second.insert(second.end(), ending.begin(), ending.end());
  const auto answer = [](CodedEngine& coded, const std::vector<int32_t>& prompt) {
    const auto record = submit(coded.engine, prompt, greedy(8));
    coded.run();
    return *record;
  };
  EngineOptions options = small_options();
  options.prefix_cache = true;
  CodedEngine shares(options);
  answer(shares, first);
  const Record expected = answer(shares, second);
  EXPECT_EQ(expected.usage.cached_tokens, 64);

  {
    CodedEngine parks;
    parks.park(store);
    answer(parks, first);
    EXPECT_TRUE(parks.is_empty());
    // All whole pieces of 110 + 7 tokens; of the third, nothing is coded yet.
    EXPECT_EQ(parks.engine.stats().parking.parked_tokens, 96);
    const Record woken = answer(parks, second);
    EXPECT_EQ(woken.usage.cached_tokens, 64);
    EXPECT_TRUE(woken.same_as(expected));
    EXPECT_TRUE(parks.is_empty());
  }
  CodedEngine restarted;
  restarted.park(store);
  const Record woken = answer(restarted, second);
  EXPECT_TRUE(woken.same_as(expected));
  const ParkingStats parking = restarted.engine.stats().parking;
  EXPECT_EQ(parking.woken_tokens, 64);
  EXPECT_EQ(parking.store.num_disk_hits, 2);
  EXPECT_EQ(parking.piece_bytes, parking.live_piece_bytes);

  CodedEngine other;
  other.park(store, "another codec");
  EXPECT_EQ(answer(other, second).usage.cached_tokens, 0);
  // Every file damaged: everything is computed anew, and nothing is left behind.
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(300);
    file.put('\x5a').put('\x5a').put('\x5a');
  }
  CodedEngine damaged;
  damaged.park(store);
  const Record computed = answer(damaged, second);
  EXPECT_EQ(computed.usage.cached_tokens, 0);
  EXPECT_EQ(computed.tokens, expected.tokens);
  EXPECT_EQ(damaged.engine.stats().parking.store.num_corrupt, 1);
  EXPECT_TRUE(damaged.is_empty());
  std::filesystem::remove_all(directory);
}

// Beside prefixes that are shared in memory, and with so little room for codes and for pieces that
// some stay exact and others are lost all the time.
TEST(CodedEngine, RandomLoadsWithParkingFinishAndGiveEverythingBack) {
  int64_t woken = 0;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    Rng rng(seed);
    EngineOptions options = small_options();
    options.max_num_seqs = 2 + static_cast<int64_t>(rng.below(6));
    options.cache_tokens = 128;
    options.prefix_cache = rng.below(2) == 0;
    CodedEngine coded(options);
    coded.park({.memory_bytes = static_cast<int64_t>(rng.below(200000)),
                .directory = "",
                .disk_bytes = 0});
    std::vector<std::shared_ptr<Record>> records;
    for (int i = 0; i < 30; ++i) {
      std::vector<int32_t> prompt =
          random_prompt(20 + static_cast<int64_t>(rng.below(60)), rng.below(3));
      prompt.push_back(static_cast<int32_t>(rng.below(256)));
      records.push_back(submit(coded.engine, prompt, greedy(1 + int64_t(rng.below(46)))));
      if (rng.below(3) == 0) coded.engine.step();
    }
    coded.run();
    for (const auto& record : records) {
      ASSERT_TRUE(record->reason.has_value()) << seed;
      EXPECT_NE(record->reason, FinishReason::kError) << record->error;
    }
    EXPECT_TRUE(options.prefix_cache || coded.is_empty()) << seed;
    woken += coded.engine.stats().parking.woken_tokens;
  }
  EXPECT_GT(woken, 0);
}

TEST(CodedEngine, PreemptedSequencesAreComputedAgain) {
  EngineOptions options = small_options();
  options.max_num_seqs = 6;
  options.cache_tokens = 128;
  CodedEngine coded(options);
  std::vector<std::shared_ptr<Record>> records;
  for (uint64_t i = 0; i < 8; ++i) records.push_back(ask(coded, 20 + i, 30, 90));
  coded.run();
  for (const auto& record : records) EXPECT_EQ(record->tokens.size(), 90u) << record->error;
  EXPECT_TRUE(coded.is_empty());
}

}  // namespace
}  // namespace lathe
