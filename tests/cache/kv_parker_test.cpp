#include "cache/kv_parker.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "cache/layer_difference_codec.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

constexpr int64_t kPositions = 256;

ModelConfig small_config() {
  ModelConfig config;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  return config;
}

// Angles as a model has them, with an attention factor that is not 1.
struct Tables {
  Tables() {
    for (int64_t p = 0; p < kPositions; ++p) {
      for (int64_t j = 0; j < 8; ++j) {
        const double angle = double(p) * std::pow(10000.0, -double(j) / 8);
        cos.push_back(static_cast<float>(1.2 * std::cos(angle)));
        sin.push_back(static_cast<float>(1.2 * std::sin(angle)));
      }
    }
  }
  std::vector<KvRope> ropes() const {
    return std::vector<KvRope>(3, KvRope{cos.data(), sin.data(), kPositions, 16});
  }
  std::vector<float> cos, sin;
};

using Pieces = std::vector<std::vector<std::byte>>;

class KvParkerTest : public testing::Test {
 protected:
  // Fills `sequence` with num_tokens tokens whose keys before RoPE are smooth over layers, plus
  // `offset`.
  void fill(KvCache& cache, KvSequence& sequence, int64_t num_tokens, float offset = 0) {
    ASSERT_TRUE(cache.reserve(sequence, num_tokens));
    const KvRows rows{&sequence, 0, num_tokens};
    cache.begin_step({&rows, 1}, owned_.exec);
    for (int64_t layer = 0; layer < 3; ++layer) {
      std::vector<float> k = normal_values(num_tokens * 32, 1 + uint64_t(layer));
      for (float& x : k) x += offset;
      const std::vector<float> v = normal_values(num_tokens * 32, 9 + uint64_t(layer));
      for (int64_t t = 0; t < num_tokens; ++t) {
        for (int64_t h = 0; h < 2; ++h) {
          float* x = k.data() + t * 32 + h * 16;
          for (int64_t j = 0; j < 8; ++j) {
            const float c = tables_.cos[std::size_t(t * 8 + j)];
            const float s = tables_.sin[std::size_t(t * 8 + j)];
            const float a = x[j], b = x[j + 8];
            x[j] = a * c - b * s;
            x[j + 8] = b * c + a * s;
          }
        }
      }
      cache.append(layer, nullptr, k.data(), v.data(), 32, owned_.exec);
    }
    cache.commit();
  }

  static Pieces park(KvParker& parker, const KvSequence& sequence, int64_t begin, int64_t count,
                     Exec& exec) {
    Pieces pieces;
    parker.park(sequence, begin, count, exec, [&](int64_t piece, std::span<const std::byte> bytes) {
      EXPECT_EQ(piece, begin + int64_t(pieces.size()));
      EXPECT_EQ(int64_t(bytes.size()), parker.piece_bytes(piece));
      pieces.emplace_back(bytes.begin(), bytes.end());
    });
    return pieces;
  }

  // Root of the mean squared difference of two sequences' tokens [begin, end), all layers.
  static double difference(KvCache& cache, const KvSequence& a, const KvSequence& b, int64_t begin,
                           int64_t end) {
    const LiveBlockShape& shape = cache.live_blocks()->shape();
    std::vector<float> x(32), y(32);
    double sum = 0;
    for (int64_t layer = 0; layer < 3; ++layer) {
      for (int64_t t = begin; t < end; ++t) {
        const auto add = [&](auto load, auto plane) {
          load(shape, plane(a), t % kBlockSize, x.data());
          load(shape, plane(b), t % kBlockSize, y.data());
          for (std::size_t j = 0; j < 32; ++j) sum += std::pow(double{x[j]} - y[j], 2);
        };
        const auto block = std::size_t(t / kBlockSize);
        add(load_key,
            [&](const KvSequence& s) { return cache.live_blocks()->keys(layer, s.blocks[block]); });
        add(load_value, [&](const KvSequence& s) {
          return cache.live_blocks()->values(layer, s.blocks[block]);
        });
      }
    }
    return std::sqrt(sum / double((end - begin) * 3 * 64));
  }

  // The largest difference of two sequences' exact rows, all layers.
  static double sink_difference(KvCache& cache, const KvSequence& a, const KvSequence& b) {
    LiveBlocks& live = *cache.live_blocks();
    std::vector<float> x(32), y(32);
    double largest = 0;
    for (int64_t i = 0; i < 3 * 2 * kLiveSinks; ++i) {
      const int64_t layer = i / (2 * kLiveSinks), t = i / 2 % kLiveSinks;
      const auto plane = [&](const KvSequence& s) {
        return i % 2 == 0 ? live.keys(layer, s.sink_block) : live.values(layer, s.sink_block);
      };
      load_sink(live.shape(), plane(a), t, x.data());
      load_sink(live.shape(), plane(b), t, y.data());
      for (std::size_t j = 0; j < 32; ++j)
        largest = std::max(largest, std::abs(double{x[j]} - y[j]));
    }
    return largest;
  }

  const ModelConfig config_ = small_config();
  const Tables tables_;
  const LayerDifferenceCodec codec_{3, 32, {.num_sinks = 4, .window = 32, .chunk_tokens = 64}};
  OwnedExec owned_{2};
};

// Live codes are of keys without an offset that parked ones have: as an exact cache parks them.
TEST_F(KvParkerTest, KeysWithoutAnOffsetAreParkedWithIt) {
  const std::vector<float> offset(32, 5.0f);
  std::vector<KvRope> without = tables_.ropes();
  for (KvRope& rope : without) rope.key_offset = offset.data();
  const auto exact = make_kv_cache(config_, KvFormat::kF32, 256, 250);
  KvSequence whole = exact->new_sequence();
  fill(*exact, whole, 200, 5);
  KvParker exact_parker(*exact, codec_, without);  // an exact cache has all of its keys
  const Pieces expected = park(exact_parker, whole, 0, 3, owned_.exec);

  const auto cache = make_kv_cache(config_, KvFormat::kInt8, 1024, 250);
  KvParker parker(*cache, codec_, without);
  KvSequence a = cache->new_sequence();
  fill(*cache, a, 200);
  for (const Pieces& pieces : {expected, park(parker, a, 0, 3, owned_.exec)}) {
    KvSequence b = cache->new_sequence();
    ASSERT_TRUE(cache->reserve(b, 192));
    parker.wake(pieces, 0, b, owned_.exec);
    // As in the next test; the first layer's numbers are three times as large. Behind the sinks,
    // which are parked as they are live.
    EXPECT_LT(difference(*cache, a, b, 4, 192), 0.05);
    EXPECT_GT(difference(*cache, a, b, 4, 192), 1e-4);
  }
}

TEST_F(KvParkerTest, AWokenSequenceIsTheParkedOneUpToTheCodec) {
  for (const char* format : {"f32", "bf16", "int8"}) {
    SCOPED_TRACE(format);
    const auto cache = make_kv_cache(config_, kv_format_from_name(format), 1024, 250);
    KvParker parker(*cache, codec_, tables_.ropes());
    KvSequence a = cache->new_sequence();
    fill(*cache, a, 200);
    const Pieces pieces = park(parker, a, 0, 3, owned_.exec);
    ASSERT_EQ(pieces.size(), 3u);
    EXPECT_GT(pieces[0].size(), pieces[1].size());  // the sinks
    EXPECT_EQ(pieces[1].size(), pieces[2].size());

    KvSequence b = cache->new_sequence();
    ASSERT_TRUE(cache->reserve(b, 192));
    parker.wake(pieces, 0, b, owned_.exec);
    b.num_tokens = 192;
    if (format[0] == 'i') {  // codes of numbers that were codes: close
      EXPECT_LT(difference(*cache, a, b, 0, 4), 0.01);
    } else {
      EXPECT_EQ(difference(*cache, a, b, 0, 4), 0);
    }
    // Codes of a 127th of the largest of 32 numbers, / sqrt(12), of two layers' differences; int8
    // as the live format adds one of its own, bf16 less.
    EXPECT_LT(difference(*cache, a, b, 4, 192), 0.02);
    EXPECT_GT(difference(*cache, a, b, 4, 192), 1e-4);

    // Parked by other threads, in other portions: the same bytes.
    OwnedExec one(1);
    EXPECT_EQ(park(parker, a, 0, 3, one.exec), pieces);
    EXPECT_EQ(park(parker, a, 1, 1, owned_.exec)[0], pieces[1]);
    // Woken one by one: the same blocks.
    KvSequence c = cache->new_sequence();
    ASSERT_TRUE(cache->reserve(c, 192));
    for (const int64_t i : {2, 0, 1}) {
      parker.wake({pieces.data() + i, 1}, i, c, one.exec);
    }
    c.num_tokens = 192;
    EXPECT_EQ(difference(*cache, b, c, 0, 192), 0);
    for (KvSequence* sequence : {&a, &b, &c}) cache->release(*sequence);
    EXPECT_EQ(cache->num_free_blocks(), cache->num_blocks());
  }
}

// The exact rows of a live format are what is parked of its sinks, and come back as such; those
// that the codec has as codes come back as what it makes of them.
TEST_F(KvParkerTest, ExactSinksStayExact) {
  for (const char* format : {"int8", "q4", "higgs4", "higgs2"}) {
    SCOPED_TRACE(format);
    const auto cache = make_kv_cache(config_, kv_format_from_name(format), 1024, 250);
    KvSequence a = cache->new_sequence();
    fill(*cache, a, 200);
    for (const int64_t num_sinks : {4, 1}) {
      const LayerDifferenceCodec codec(3, 32,
                                       {.num_sinks = num_sinks, .window = 32, .chunk_tokens = 64});
      KvParker parker(*cache, codec, tables_.ropes());
      const Pieces pieces = park(parker, a, 0, 2, owned_.exec);
      KvSequence b = cache->new_sequence();
      ASSERT_TRUE(cache->reserve(b, 128));
      parker.wake(pieces, 0, b, owned_.exec);
      b.num_tokens = 128;
      const double off = sink_difference(*cache, a, b);
      // Rotating back and forth in fp32 may turn a rounding to bf16: 2^-8 of numbers of up to
      // 1.2 * 4 * sqrt(16). A codec's step: as in the test above, of the largest of 32 numbers.
      const double rotated = kv_is_rotated(cache->element()) ? 0.1 : 0;
      EXPECT_LE(off, num_sinks == 4 ? rotated : rotated + 0.1);
      if (num_sinks == 1) {
        EXPECT_GT(off, 0);
      }
      cache->release(b);
    }
  }
}

TEST_F(KvParkerTest, RefusesWhatCannotBe) {
  const auto cache = make_kv_cache(config_, KvFormat::kBF16, 1024, 250);
  EXPECT_THROW(KvParker(*cache, codec_, std::vector<KvRope>(2)), Error);
  KvParker parker(*cache, codec_, tables_.ropes());
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(cache->reserve(sequence, 64));
  Pieces pieces(1);
  for (const int64_t wrong : {int64_t{0}, parker.piece_bytes(0) - 1, parker.piece_bytes(1)}) {
    pieces[0].resize(std::size_t(wrong));
    try {
      parker.wake(pieces, 0, sequence, owned_.exec);
      ADD_FAILURE() << wrong;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruptData);
    }
  }
  // A cache with codes of its own has no live blocks to give.
  CodedKvCache coded(config_, codec_, tables_.ropes(),
                     {.live_tokens = 64, .coded_tokens = 64, .max_sequence_tokens = 64});
  EXPECT_THROW(KvParker(coded, codec_, tables_.ropes()), Error);
}

}  // namespace
}  // namespace lathe
