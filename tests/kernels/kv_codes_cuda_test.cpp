// What the kernels of the GPU do with codes, as far as a CPU can check it: the layout, the search
// for the nearest point, and attention by a warp, with a thread for each of its lanes.
#include "kernels/attention/kv_codes_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <thread>
#include <vector>

#include "kernels/attention/attention_codes_warp.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"
#include "support/kv_codes_cuda_tokens.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

TEST(KvCodesCuda, EveryCodeAndScaleHasItsOwnPlace) {
  for (const int head_dim : {8, 24, 64, 80, 96, 128, 256}) {
    std::set<int> keys, values;
    for (int token = 0; token < kBlockSize; ++token) {
      for (int slot = 0; slot < head_dim / 2; ++slot) {
        keys.insert(key_code_offset(head_dim, token, slot));
        values.insert(value_code_offset(head_dim, token, slot));
      }
    }
    const auto codes = static_cast<std::size_t>(kBlockSize * head_dim / 2);
    for (const auto& places : {keys, values}) {
      EXPECT_EQ(places.size(), codes) << head_dim;
      EXPECT_EQ(*places.begin(), 0) << head_dim;
      EXPECT_EQ(*places.rbegin(), static_cast<int>(codes) - 1) << head_dim;
    }
    std::set<int> scales;
    for (int token = 0; token < kBlockSize; ++token) {
      scales.insert(code_scale_offset(head_dim, token));
    }
    EXPECT_EQ(scales.size(), static_cast<std::size_t>(kBlockSize));
    EXPECT_EQ(*scales.begin(), static_cast<int>(codes));
    const int64_t head_bytes = kv_cuda_head_bytes(KvCudaElement::kHiggs4, head_dim);
    EXPECT_EQ(*scales.rbegin() + 2, head_bytes);
    // Rows of bf16 behind each other, within a head.
    for (int token = 0; token < kLiveSinks; ++token) {
      EXPECT_EQ(sink_offset(head_dim, token + 1) - sink_offset(head_dim, token), 2 * head_dim);
    }
    EXPECT_EQ(sink_offset(head_dim, 0), 0);
    EXPECT_LE(sink_offset(head_dim, kLiveSinks), head_bytes);
  }
}

TEST(KvCodesCuda, TheSearchFindsTheNearestPoint) {
  const auto grid = make_kv_cuda_grid(KvCudaElement::kHiggs4);
  const KvGrid& points = kv_grid(KvElement::kHiggs4);
  std::vector<float> at = normal_values(20000, 3, 40);
  for (const float x : {-128.0f, 127.9f, 128.0f, 500.0f, -1e30f, 0.0f}) {
    for (const float y : {-128.0f, 128.0f, -400.0f, 3e20f, 0.0f}) at.insert(at.end(), {x, y});
  }
  for (std::size_t i = 0; i < at.size(); i += 2) {
    int best = 0;
    float best_distance = std::numeric_limits<float>::max();
    for (int p = 0; p < 256; ++p) {
      const float dx = at[i] - points.first[p], dy = at[i + 1] - points.second[p];
      if (dx * dx + dy * dy < best_distance) best_distance = dx * dx + dy * dy, best = p;
    }
    EXPECT_EQ(nearest_code(*grid, at[i], at[i + 1]), best) << at[i] << " " << at[i + 1];
  }
}

// --- a warp of threads --------------------------------------------------------------------------

struct SharedWarp {
  std::barrier<> barrier{32};
  uint32_t a[32][4], b[32][2], words[32];
  float numbers[32];
  bool flags[32];
};

class HostLane {
 public:
  HostLane(int id, const KvCudaGrid& grid, SharedWarp& warp) : id_(id), grid_(grid), warp_(warp) {}
  int id() const { return id_; }
  template <int kCount>
  void load(uint32_t (&w)[kCount], const std::byte* at) const {
    // Aligned to as many words as one load takes.
    EXPECT_EQ(reinterpret_cast<uintptr_t>(at) % (kCount % 4 == 0 ? 16 : 8), 0u);
    std::memcpy(w, at, sizeof w);
  }
  uint32_t points(uint32_t word, int byte) const { return grid_.pairs[word >> 8 * byte & 255]; }
  template <bool kHalf = false>
  void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    std::copy_n(a, 4, warp_.a[id_]);
    warp_.b[id_][0] = b0, warp_.b[id_][1] = b1;
    warp_.barrier.arrive_and_wait();
    for (int i = 0; i < 4; ++i) {
      const int row = id_ / 4 + i / 2 * 8, column = id_ % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) {
        const uint32_t left = warp_.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
        const uint32_t right = warp_.b[column * 4 + k % 8 / 2][k / 8];
        d[i] += number<kHalf>(left, k % 2) * number<kHalf>(right, k % 2);
      }
    }
    warp_.barrier.arrive_and_wait();
  }
  void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply<true>(d, a, b0, b1);
  }
  uint32_t pack_f16(float low, float high) const {
    return f16_from_float(low) | static_cast<uint32_t>(f16_from_float(high)) << 16;
  }
  float from(float x, int lane) {
    warp_.numbers[id_] = x;
    warp_.barrier.arrive_and_wait();
    const float other = warp_.numbers[lane];
    warp_.barrier.arrive_and_wait();
    return other;
  }
  uint32_t transpose(uint32_t x) {
    warp_.words[id_] = x;
    warp_.barrier.arrive_and_wait();
    uint32_t y = 0;
    for (int i = 0; i < 2; ++i) {  // element (id / 4, 2 (id % 4) + i) is that of the other diagonal
      const int row = id_ % 4 * 2 + i, column = id_ / 4;
      y |= (warp_.words[row * 4 + column / 2] >> 16 * (column % 2) & 0xffffu) << 16 * i;
    }
    warp_.barrier.arrive_and_wait();
    return y;
  }
  float exchange(float x, int mask) {
    warp_.numbers[id_] = x;
    warp_.barrier.arrive_and_wait();
    const float other = warp_.numbers[id_ ^ mask];
    warp_.barrier.arrive_and_wait();
    return other;
  }
  bool any(bool x) {
    warp_.flags[id_] = x;
    warp_.barrier.arrive_and_wait();
    bool found = false;
    for (const bool flag : warp_.flags) found = found || flag;
    warp_.barrier.arrive_and_wait();
    return found;
  }
  uint32_t pack(float low, float high) const {
    return bf16_from_float(low) | static_cast<uint32_t>(bf16_from_float(high)) << 16;
  }
  uint32_t low_halves(uint32_t a, uint32_t b) const { return (a & 0xffffu) | b << 16; }
  uint32_t high_halves(uint32_t a, uint32_t b) const { return a >> 16 | (b & 0xffff0000u); }
  float exp2(float x) const { return std::exp2(x); }
  float tanh(float x) const { return std::tanh(x); }

 private:
  template <bool kHalf>
  static float number(uint32_t word, int which) {
    const auto bits = static_cast<uint16_t>(word >> 16 * which);
    return kHalf ? float_from_f16(bits) : float_from_bf16(bits);
  }
  int id_;
  const KvCudaGrid& grid_;
  SharedWarp& warp_;
};

struct WarpCase {
  int last = 0;  // position of the first query; each further pair of queries is one token later
  int window = 0;
  float softcap = 0;
  int first = 0;  // positions below have no codes, and nobody sees them
};

template <int D, int kTiles, bool kOffset = false>
void expect_warp_matches(const WarpCase& c) {
  SCOPED_TRACE(testing::Message() << D << " x " << 8 * kTiles << ", last " << c.last << ", window "
                                  << c.window << ", softcap " << c.softcap << ", first " << c.first
                                  << ", offset " << kOffset);
  using Warp = CodesWarp<D, kTiles, kOffset>;
  constexpr int kQueries = 8 * kTiles;
  const auto position = [&](int query) { return c.last + query / 2; };
  const int tokens = position(kQueries - 1) + 1;
  const int blocks = (tokens + 31) / 32;
  const int64_t head_bytes = kv_cuda_head_bytes(KvCudaElement::kHiggs4, D);
  // What no token fills has a scale of NaN.
  Buffer keys(blocks * head_bytes), values(blocks * head_bytes);
  for (Buffer* b : {&keys, &values}) {
    std::memset(b->data(), 0xff, static_cast<std::size_t>(b->size()));
  }
  std::vector<float> k = normal_values(tokens * D, 1), v = normal_values(tokens * D, 2);
  for (int t = c.first; t < tokens; ++t) {
    const int64_t at = t / 32 * head_bytes;
    write_kv_codes(KvPart::kKeys, D, &k[static_cast<std::size_t>(t * D)], t % 32, keys.data() + at);
    read_kv_codes(KvPart::kKeys, D, keys.data() + at, t % 32, &k[static_cast<std::size_t>(t * D)]);
    write_kv_codes(KvPart::kValues, D, &v[static_cast<std::size_t>(t * D)], t % 32,
                   values.data() + at);
    read_kv_codes(KvPart::kValues, D, values.data() + at, t % 32,
                  &v[static_cast<std::size_t>(t * D)]);
  }
  std::vector<float> q = normal_values(kQueries * D, 3);
  for (float& x : q) x = float_from_bf16(bf16_from_float(x));
  const float scale = 1 / std::sqrt(static_cast<float>(D));

  // Of an offset: C, then S, half a head each; the last query has none. Starts of blocks, and the
  // table of positions in a block as fragments have it.
  std::vector<float> products = normal_values(kQueries * D, 4, 3);
  std::fill(products.end() - D, products.end(), 0.0f);
  const auto angle = [](int t, int pair) { return t * std::pow(1e-3, pair / (D / 2.0)); };
  Buffer starts(blocks * D * 4), table(Warp::kInBlockWords * 4);
  for (int i = 0; i < blocks * D; ++i) {
    const double a = angle(i / D * 32, i % (D / 2));
    starts.as<float>()[i] = static_cast<float>(i % D < D / 2 ? std::cos(a) : std::sin(a));
  }
  for (int i = 0; i < Warp::kInBlockWords; ++i) {
    const auto [token, pair] = Warp::in_block(i);
    table.as<uint32_t>()[i] =
        f16_from_float(static_cast<float>(std::cos(angle(token, pair)))) |
        static_cast<uint32_t>(f16_from_float(static_cast<float>(std::sin(angle(token, pair)))))
            << 16;
  }

  const auto grid = make_kv_cuda_grid(KvCudaElement::kHiggs4);
  SharedWarp shared;
  std::vector<Warp> lanes(32);
  std::vector<std::thread> threads;
  for (int id = 0; id < 32; ++id) {
    threads.emplace_back([&, id] {
      HostLane lane(id, *grid, shared);
      Warp& warp = lanes[static_cast<std::size_t>(id)];
      typename Warp::Softmax softmax{.scale = c.softcap > 0 ? scale / c.softcap : scale * kLog2E,
                                     .softcap = c.softcap * kLog2E,
                                     .block_begin = 0,
                                     .all_seen = false,
                                     .window = c.window,
                                     .first = c.first,
                                     .last = {}};
      for (int tile = 0; tile < kTiles; ++tile) {
        for (int i = 0; i < 2; ++i) {
          softmax.last[tile][i] = position(tile * 8 + Warp::query_of(id, i));
        }
        uint32_t words[2][D / 16];
        for (int half = 0; half < 2; ++half) {
          for (int w = 0; w < D / 16; ++w) {
            const float* from = &q[static_cast<std::size_t>((tile * 8 + id / 4) * D + half * D / 2 +
                                                            id % 4 * (D / 8) + 2 * w)];
            words[half][w] = lane.pack(from[0], from[1]);
          }
        }
        warp.set_query(tile, words[0], words[1]);
        if constexpr (kOffset) {
          float cosines[Warp::kPairs], sines[Warp::kPairs];
          for (int i = 0; i < Warp::kPairs; ++i) {
            const float* from =
                &products[static_cast<std::size_t>((tile * 8 + id / 4) * D + Warp::pair_of(id, i))];
            cosines[i] = from[0], sines[i] = from[D / 2];
          }
          warp.set_offset(lane, tile, cosines, sines);
        }
      }
      warp.clear();
      for (int b = 0; b < blocks; ++b) {
        softmax.block_begin = 32 * b;
        softmax.all_seen = c.window == 0 && 32 * b >= c.first && 32 * b + 32 <= c.last + 1;
        warp.attend_block(lane, softmax,
                          static_cast<const std::byte*>(keys.data()) + b * head_bytes,
                          static_cast<const std::byte*>(values.data()) + b * head_bytes,
                          static_cast<const std::byte*>(starts.data()) + b * D * 4,
                          static_cast<const std::byte*>(table.data()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  for (int query = 0; query < kQueries; ++query) {
    const int last = position(query);
    const int first = std::max(c.first, c.window > 0 ? last - c.window + 1 : 0);
    std::vector<double> weights;
    double largest = -HUGE_VAL, most = 0, offset_error = 0;
    for (int t = first; t <= last; ++t) {
      double dot = 0, sum = 0;
      for (int j = 0; j < D; ++j) {
        const double p = double{q[static_cast<std::size_t>(query * D + j)]} *
                         double{k[static_cast<std::size_t>(t * D + j)]};
        dot += p, sum += std::fabs(p);
      }
      double off = 0;
      for (int j = 0; j < D / 2 && kOffset; ++j) {
        const double x = double{products[static_cast<std::size_t>(query * D + j)]};
        const double y = double{products[static_cast<std::size_t>(query * D + D / 2 + j)]};
        const double a = angle(t / 32 * 32, j), b = angle(t % 32, j);
        const double cos = std::cos(b) * (x * std::cos(a) + y * std::sin(a));
        const double sin = std::sin(b) * (y * std::cos(a) - x * std::sin(a));
        dot += cos + sin, sum += std::fabs(cos) + std::fabs(sin);
        // Two factors rounded to f16; turning them in fp32, and f16 below its normal numbers.
        off += 0x1p-10 * (std::fabs(cos) + std::fabs(sin)) + 0x1p-21 * std::hypot(x, y);
      }
      offset_error = std::max(offset_error, off * double{scale});
      double score = dot * double{scale};
      if (c.softcap > 0) score = double{c.softcap} * std::tanh(score / double{c.softcap});
      weights.push_back(score);
      largest = std::max(largest, score), most = std::max(most, sum * double{scale});
    }
    double total = 0;
    for (double& w : weights) total += w = std::exp(w - largest);
    if (weights.empty()) total = 1;  // nothing adds nothing
    double got_total = 0;
    for (int row = 0; row < 8; ++row) {  // of each lane's tokens
      const auto lane = static_cast<std::size_t>(row * 4 + query % 8 / 2);
      got_total += double{lanes[lane].total[query / 8][query % 2]};
      EXPECT_EQ(std::isinf(lanes[lane].largest[query / 8][query % 2]), weights.empty());
    }
    EXPECT_EQ(got_total == 0, weights.empty());
    if (weights.empty()) got_total = 1;
    // As attention_cuda_test.cpp derives it: sums of head_dim products in fp32 move a weight by the
    // factor exp(+-ds), weights are rounded to bf16.
    const double ds = D * 0x1p-23 * most + 8 * 0x1p-23 * double{c.softcap} + offset_error;
    for (int dim = 0; dim < D; ++dim) {
      double sum = 0, mag = 0;
      for (int t = first; t <= last; ++t) {
        const double w = weights[static_cast<std::size_t>(t - first)] / total;
        sum += w * double{v[static_cast<std::size_t>(t * D + dim)]};
        mag += w * std::fabs(double{v[static_cast<std::size_t>(t * D + dim)]});
      }
      const int i = dim / (D / 2) * 2 + query % 2, step = dim % (D / 2) / 8;
      const auto lane = static_cast<std::size_t>(dim % 8 * 4 + query % 8 / 2);
      ASSERT_EQ(Warp::dim_of(static_cast<int>(lane), step, i), dim);
      const double got = double{lanes[lane].o[query / 8][step][i]} / got_total;
      const double tolerance = mag * (0x1p-8 + 2 * ds + 64 * 0x1p-23);
      ASSERT_TRUE(std::fabs(got - sum) <= tolerance)
          << "query " << query << " dim " << dim << " is " << got << ", expected " << sum << " +- "
          << tolerance;
    }
  }
}

TEST(KvCodesCuda, AWarpAttendsToCodes) {
  expect_warp_matches<64, 1>({.last = 77});
  expect_warp_matches<128, 1>({.last = 77});
  expect_warp_matches<128, 2>({.last = 40, .softcap = 3});
  expect_warp_matches<64, 2>({.last = 90, .window = 20});
  expect_warp_matches<128, 1>({.last = 0});
}

// The first tokens may have exact rows, which are another's business, and codes without meaning.
TEST(KvCodesCuda, AWarpLeavesTheFirstTokensAlone) {
  expect_warp_matches<64, 1>({.last = 77, .first = 4});
  expect_warp_matches<128, 2>({.last = 40, .softcap = 3, .first = 4});
  expect_warp_matches<64, 2>({.last = 3, .window = 5, .first = 4});
  expect_warp_matches<64, 1>({.last = 0, .first = 4});  // some queries see nothing
  expect_warp_matches<128, 1, true>({.last = 1, .first = 4});
  expect_warp_matches<64, 1, true>({.last = 70, .window = 80, .first = 4});
}

TEST(KvCodesCuda, AWarpAddsTheScoresOfAnOffset) {
  expect_warp_matches<64, 1, true>({.last = 77});
  expect_warp_matches<128, 1, true>({.last = 77});
  expect_warp_matches<128, 2, true>({.last = 40, .softcap = 3});
  expect_warp_matches<64, 1, true>({.last = 90, .window = 20});
  expect_warp_matches<128, 1, true>({.last = 0});
}

}  // namespace
}  // namespace lathe
