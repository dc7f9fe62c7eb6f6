#include "kernels/attention/attention.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>

#include "base/error.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"
#include "support/paged_kv.h"

namespace lathe {
namespace {

struct Problem {
  KvElement element = KvElement::kF32;
  int64_t num_tokens = 40;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 16;
  float softcap = 0;
  int64_t sliding_window = 0;
  double q_stddev = 1;
  int64_t offset_rotary_dim =
      0;  // keys are without an offset, so many of whose numbers turn; 0: not
  bool has_sinks = false;

  int64_t q_row() const { return num_heads * head_dim; }
};

constexpr KvElement kElements[] = {KvElement::kF32,    KvElement::kBF16,  KvElement::kFp8,
                                   KvElement::kInt8,   KvElement::kQ4,    KvElement::kHiggs4,
                                   KvElement::kHiggs3, KvElement::kHiggs2};
constexpr const char* kElementNames[] = {"f32", "bf16",   "fp8",    "int8",
                                         "q4",  "higgs4", "higgs3", "higgs2"};

// A head_dim that is no multiple of vectors, but of what the format needs.
int64_t ragged_head_dim(KvElement element) { return element == KvElement::kHiggs3 ? 48 : 24; }

std::ostream& operator<<(std::ostream& out, const Problem& p) {
  return out << kElementNames[static_cast<int>(p.element)] << " tokens=" << p.num_tokens
             << " heads=" << p.num_heads << ":" << p.num_kv_heads << " head_dim=" << p.head_dim
             << " softcap=" << p.softcap << " window=" << p.sliding_window
             << " offset=" << p.offset_rotary_dim << " sinks=" << p.has_sinks;
}

constexpr double kOffsetStddev = 5;

// What AttentionArgs::key_offset wants, with an attention factor.
struct Offset {
  explicit Offset(const Problem& p)
      : half(p.offset_rotary_dim / 2),
        offset(normal_values(p.num_kv_heads * p.head_dim, 99, kOffsetStddev)) {
    if (half == 0) return;
    for (int64_t b = 0; b < kBlocks; ++b) {
      for (const bool is_sin : {false, true}) {
        for (int64_t j = 0; j < half; ++j) {
          const double a = angle(double(b * kBlockSize) + double(kBlockSize - 1) / 2, j);
          middles.push_back(float(is_sin ? std::sin(a) : std::cos(a)));
        }
      }
    }
    for (const bool is_sin : {false, true}) {
      for (int64_t j = 0; j < half; ++j) {
        for (int64_t t = 0; t < kBlockSize / 2; ++t) {
          const double a = angle(double(t) + 0.5, j);
          from_middle.push_back(float(kFactor * (is_sin ? std::sin(a) : std::cos(a))));
        }
      }
    }
  }
  double angle(double position, int64_t j) const {
    return position * std::pow(100.0, -double(j) / double(half));
  }
  KeyOffset args() const {
    if (half == 0) return {};
    return {.offset = offset.data(),
            .middles = middles.data(),
            .from_middle = from_middle.data(),
            .num_blocks = kBlocks,
            .rotary_dim = 2 * half};
  }
  // RoPE of it at a position, one head.
  std::vector<float> at(int64_t position, int64_t kv_head, int64_t head_dim) const {
    std::vector<float> x(offset.begin() + kv_head * head_dim,
                         offset.begin() + (kv_head + 1) * head_dim);
    for (int64_t j = 0; j < half; ++j) {
      const double cos = kFactor * std::cos(angle(double(position), j));
      const double sin = kFactor * std::sin(angle(double(position), j));
      const double a = x[std::size_t(j)], b = x[std::size_t(j + half)];
      x[std::size_t(j)] = float(a * cos - b * sin);
      x[std::size_t(j + half)] = float(b * cos + a * sin);
    }
    return x;
  }

  static constexpr int64_t kBlocks = 64;
  static constexpr double kFactor = 1.25;
  int64_t half;
  std::vector<float> offset, middles, from_middle;
};

// Random q, k and v for one sequence, every position with a query.
struct Data {
  explicit Data(const Problem& problem, uint64_t seed = 1)
      : p(problem),
        q(normal_values(p.num_tokens * p.q_row(), seed, p.q_stddev)),
        k(normal_values(p.num_tokens * p.num_kv_heads * p.head_dim, seed + 1)),
        v(normal_values(p.num_tokens * p.num_kv_heads * p.head_dim, seed + 2)),
        kv(p.element, p.num_kv_heads, p.head_dim, k, v) {
    if (p.has_sinks) kv.keep_sinks(k, v);
  }

  AttentionSegment segment(int64_t first, int64_t num_rows, int64_t row_begin = 0) {
    return {row_begin, num_rows, first, kv.views().data(), kv.sinks()};
  }
  const Problem p;
  std::vector<float> q, k, v;
  PagedKv kv;
};

std::vector<float> run(const Kernel<AttentionArgs>& kernel, const Problem& p, const float* q,
                       std::vector<AttentionSegment> segments, int num_threads = 2) {
  OwnedExec owned(num_threads);
  int64_t num_rows = 0;
  for (const auto& segment : segments) num_rows += segment.num_rows;
  GuardedFloats out(num_rows * p.q_row());
  const Offset offset(p);
  kernel.run({.q = q,
              .q_stride = p.q_row(),
              .out = out.data(),
              .segments = segments,
              .element = p.element,
              .num_heads = p.num_heads,
              .num_kv_heads = p.num_kv_heads,
              .head_dim = p.head_dim,
              .scale = 1 / std::sqrt(static_cast<float>(p.head_dim)),
              .softcap = p.softcap,
              .sliding_window = p.sliding_window,
              .key_offset = offset.args()},
             owned.exec);
  EXPECT_TRUE(out.guards_intact());
  return out.values();
}

// out is a convex combination of values (|v| < 6 here). A score is a sum of head_dim products in
// fp32: its error, at most head_dim eps sum|q k| scale (about sqrt(head_dim) q_stddev in these
// data), shifts the softmax weights by that relative amount; the weighted sum over up to n
// positions adds n eps in the worst case and sqrt(n) eps in practice. Exp and the merge of partial
// results add a few eps. Formats with scales round q and, in each block, p to multiples of 1/32767
// of the largest: uniform errors of variance 1/12. An offset adds as many products, of its size.
// Through the score (|q| < 4.5 q_stddev, keys of about 1) and through the sum over one block's 32
// values of about 1.
double tolerance(const Problem& p) {
  const double key_size = p.offset_rotary_dim > 0 ? 1 + 2 * 1.25 * kOffsetStddev : 1;
  const double score_error = static_cast<double>(p.head_dim) * FLT_EPSILON *
                             std::sqrt(double(p.head_dim)) * p.q_stddev * key_size;
  const double int16_error =
      kv_has_scales(p.element) ? std::sqrt(1 / 12.0) / 32767 * (4.5 * p.q_stddev + std::sqrt(32.0))
                               : 0;
  return int16_error + 2 * score_error + (16 + 4 * std::sqrt(double(p.num_tokens))) * FLT_EPSILON;
}

void expect_matches_reference(const Problem& p, int64_t first, int64_t num_rows) {
  Data data(p);
  const float* q = data.q.data() + first * p.q_row();
  const auto expected = run(attention_kernels().back(), p, q, {data.segment(first, num_rows)});
  for (const auto& kernel : runnable(attention_kernels())) {
    SCOPED_TRACE(testing::Message()
                 << kernel.name << " " << p << " rows " << first << "+" << num_rows);
    const auto actual = run(kernel, p, q, {data.segment(first, num_rows)});
    EXPECT_TRUE(all_close(actual, expected, 0, 6 * tolerance(p)));
  }
}

TEST(Attention, TheReferenceOnAHandComputedCase) {
  // Two tokens; scores 0 and ln 3 for the second row, so weights 1/4 and 3/4.
  const Problem p{.num_tokens = 2, .num_heads = 1, .num_kv_heads = 1, .head_dim = 8};
  std::vector<float> k(16, 0.0f), v(16, 0.0f), q(16, 0.0f);
  q[0] = 1, q[8] = 1;
  k[8] = std::log(3.0f) * std::sqrt(8.0f);
  v[0] = 4, v[8] = 8;
  PagedKv kv(p.element, 1, 8, k, v);
  const auto out = run(attention_kernels().back(), p, q.data(), {{0, 2, 0, kv.views().data()}});
  EXPECT_FLOAT_EQ(out[0], 4);
  EXPECT_FLOAT_EQ(out[8], 7);
  EXPECT_EQ(out[9], 0);
}

TEST(Attention, HeadDimsAndGroups) {
  for (const KvElement element : kElements) {
    for (const int64_t head_dim : {8, 16, 24, 64, 80, 96, 128, 256}) {
      if (element == KvElement::kHiggs3 && head_dim % 16 != 0) continue;
      expect_matches_reference(
          {.element = element, .num_tokens = 67, .num_heads = 6, .head_dim = head_dim}, 0, 67);
    }
    for (const int64_t group : {1, 2, 3, 4, 5, 6, 7, 8}) {
      expect_matches_reference({.element = element,
                                .num_tokens = 75,
                                .num_heads = 2 * group,
                                .head_dim = ragged_head_dim(element)},
                               0, 75);
      expect_matches_reference({.element = element,
                                .num_tokens = 75,
                                .num_heads = 2 * group,
                                .head_dim = ragged_head_dim(element)},
                               74, 1);
    }
  }
}

TEST(Attention, BlockBoundariesAndShortChunks) {
  for (const KvElement element : kElements) {
    for (const int64_t num_tokens : {1, 2, 3, 31, 32, 33, 63, 64, 65, 255, 256, 257, 300, 513}) {
      const Problem p{.element = element, .num_tokens = num_tokens};
      expect_matches_reference(p, 0, num_tokens);
      expect_matches_reference(p, num_tokens - 1, 1);
      expect_matches_reference(p, num_tokens / 2, num_tokens - num_tokens / 2);
    }
  }
}

TEST(Attention, SlidingWindows) {
  for (const KvElement element : kElements) {
    for (const int64_t window : {1, 2, 7, 8, 9, 31, 32, 33, 256, 300, 1000}) {
      const Problem p{.element = element, .num_tokens = 700, .sliding_window = window};
      expect_matches_reference(p, 0, 100);
      expect_matches_reference(p, 600, 100);
      expect_matches_reference(p, 699, 1);
    }
  }
}

TEST(Attention, Softcap) {
  for (const float softcap : {0.5f, 5.0f, 50.0f}) {
    expect_matches_reference({.num_tokens = 90, .softcap = softcap, .q_stddev = 4}, 0, 90);
  }
}

TEST(Attention, LongContextAndPeakedScores) {
  expect_matches_reference({.element = KvElement::kBF16, .num_tokens = 5000, .head_dim = 64}, 4990,
                           10);
  expect_matches_reference({.num_tokens = 5000, .num_heads = 3, .num_kv_heads = 1}, 4999, 1);
  expect_matches_reference({.num_tokens = 600, .q_stddev = 30}, 500, 100);
}

TEST(Attention, LongContextOnCodes) {
  for (const KvElement element : kElements) {
    for (const int64_t head_dim : {64, 128}) {
      expect_matches_reference(
          {.element = element, .num_tokens = 1500, .num_heads = 14, .head_dim = head_dim}, 1498, 2);
    }
  }
}

TEST(Attention, KeysWithoutTheirOffset) {
  for (const KvElement element : kElements) {
    const int64_t head_dim = element == KvElement::kHiggs3 ? 80 : 72;
    for (const int64_t rotary_dim : {int64_t{8}, int64_t{24}, head_dim}) {
      const Problem p{.element = element,
                      .num_tokens = 600,
                      .num_heads = 6,
                      .head_dim = head_dim,
                      .offset_rotary_dim = rotary_dim};
      expect_matches_reference(p, 0, 300);
      expect_matches_reference(p, 270, 40);
      expect_matches_reference(p, 599, 1);
    }
    expect_matches_reference({.element = element,
                              .num_tokens = 400,
                              .head_dim = 64,
                              .softcap = 20,
                              .sliding_window = 45,
                              .offset_rotary_dim = 64},
                             200, 100);
  }
}

// The same as with keys that have it, in the cache or in the arguments.
TEST(Attention, AnOffsetIsWhatTheKeysWouldHave) {
  Problem p{.num_tokens = 300, .num_heads = 6, .head_dim = 32, .offset_rotary_dim = 24};
  const Data data(p);
  const Offset offset(p);
  std::vector<float> k = data.k;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    for (int64_t h = 0; h < p.num_kv_heads; ++h) {
      const std::vector<float> add = offset.at(t, h, p.head_dim);
      for (int64_t j = 0; j < p.head_dim; ++j) {
        k[std::size_t((t * p.num_kv_heads + h) * p.head_dim + j)] += add[std::size_t(j)];
      }
    }
  }
  PagedKv without(p.element, p.num_kv_heads, p.head_dim, data.k, data.v);
  PagedKv with(p.element, p.num_kv_heads, p.head_dim, k, data.v);
  Problem whole = p;
  whole.offset_rotary_dim = 0;
  for (const auto& kernel : runnable(attention_kernels())) {
    SCOPED_TRACE(kernel.name);
    const auto expected =
        run(kernel, whole, data.q.data(), {{0, p.num_tokens, 0, with.views().data()}});
    const auto actual =
        run(kernel, p, data.q.data(), {{0, p.num_tokens, 0, without.views().data()}});
    EXPECT_TRUE(all_close(actual, expected, 0, float(6 * tolerance(p))));
  }
}

TEST(Attention, ExactSinks) {
  for (const KvElement element : kElements) {
    if (!kv_keeps_sinks(element)) continue;
    for (const int64_t head_dim : {8, 24, 64, 80, 96, 128, 256}) {
      if (element == KvElement::kHiggs3 && head_dim % 16 != 0) continue;
      for (const int64_t num_heads : {2, 6, 14}) {
        expect_matches_reference({.element = element,
                                  .num_tokens = 67,
                                  .num_heads = num_heads,
                                  .head_dim = head_dim,
                                  .has_sinks = true},
                                 0, 67);
      }
    }
    const int64_t head_dim = ragged_head_dim(element);
    for (const int64_t num_tokens : {1, 2, 3, 4, 5, 31, 33, 257, 300}) {
      const Problem p{
          .element = element, .num_tokens = num_tokens, .head_dim = head_dim, .has_sinks = true};
      expect_matches_reference(p, 0, num_tokens);
      expect_matches_reference(p, num_tokens - 1, 1);
    }
    for (const int64_t window : {1, 2, 3, 5, 33, 300}) {
      for (const int64_t rotary_dim : {0, 16}) {
        expect_matches_reference({.element = element,
                                  .num_tokens = 310,
                                  .num_heads = 6,
                                  .head_dim = head_dim,
                                  .softcap = 20,
                                  .sliding_window = window,
                                  .offset_rotary_dim = rotary_dim,
                                  .has_sinks = true},
                                 0, 310);
      }
    }
    expect_matches_reference({.element = element,
                              .num_tokens = 1500,
                              .num_heads = 14,
                              .head_dim = 64,
                              .offset_rotary_dim = 64,
                              .has_sinks = true},
                             1498, 2);
  }
}

// Of the numbers that the codes stand for, rotated back where they are rotated, in plain fp32.
TEST(Attention, OnCodesEqualsAttentionOnWhatTheyDecodeTo) {
  for (const KvElement element : kElements) {
    for (const int64_t head_dim : {64, 80, 128}) {
      const Problem p{.element = element,
                      .num_tokens = 90,
                      .num_heads = 6,
                      .head_dim = head_dim,
                      .has_sinks = kv_keeps_sinks(element) && head_dim != 80};
      Data data(p);
      Problem plain = p;
      plain.element = KvElement::kF32;
      std::vector<float> k = data.k, v = data.v;
      for (int64_t t = 0; t < p.num_tokens; ++t) {
        const KvBlockView& view = data.kv.views()[std::size_t(t / kBlockSize)];
        for (int64_t h = 0; h < p.num_kv_heads; ++h) {
          const bool exact = p.has_sinks && t < kLiveSinks;
          const int64_t offset =
              h * (exact ? kv_sink_bytes(head_dim) : kv_head_bytes(element, head_dim));
          const auto load = [&](KvPart plane, const void* memory, std::vector<float>& to) {
            float* x = to.data() + (t * p.num_kv_heads + h) * head_dim;
            const std::byte* head = static_cast<const std::byte*>(memory) + offset;
            exact ? kv_load_sink(head_dim, head, t, x)
                  : kv_load(element, plane, head_dim, head, t % kBlockSize, x);
            if (kv_is_rotated(element)) kv_rotate(x, head_dim);
          };
          load(KvPart::kKeys, exact ? data.kv.sinks().keys : view.keys, k);
          load(KvPart::kValues, exact ? data.kv.sinks().values : view.values, v);
        }
      }
      PagedKv decoded(KvElement::kF32, p.num_kv_heads, head_dim, k, v);
      const auto expected = run(attention_kernels().back(), plain, data.q.data(),
                                {{0, p.num_tokens, 0, decoded.views().data()}});
      for (const auto& kernel : runnable(attention_kernels())) {
        SCOPED_TRACE(testing::Message() << kernel.name << " " << p);
        const auto actual = run(kernel, p, data.q.data(), {data.segment(0, p.num_tokens)});
        EXPECT_TRUE(all_close(actual, expected, 0, 6 * tolerance(p)));
      }
    }
  }
}

TEST(Attention, ARowHasTheSameBitsAloneInAChunkInABatchAndOnAnyThreads) {
  for (const auto& kernel : runnable(attention_kernels())) {
    for (const KvElement element : kElements) {
      for (const int64_t window : {0, 40}) {
        const Problem p{.element = element,
                        .num_tokens = 620,
                        .num_heads = 6,
                        .head_dim = ragged_head_dim(element),
                        .sliding_window = window,
                        .offset_rotary_dim = window == 0 ? 0 : 16,
                        .has_sinks = kv_keeps_sinks(element)};
        Data data(p);
        SCOPED_TRACE(testing::Message() << kernel.name << " " << p);
        const int64_t row = p.q_row();
        const auto all = run(kernel, p, data.q.data(), {data.segment(0, p.num_tokens)}, 1);
        const auto again = run(kernel, p, data.q.data(), {data.segment(0, p.num_tokens)}, 3);
        EXPECT_TRUE(same_bits(all, again)) << "threads";
        for (const int64_t t : {0, 1, 3, 4, 31, 32, 100, 255, 256, 511, 512, 619}) {
          const auto alone = run(kernel, p, data.q.data() + t * row, {data.segment(t, 1)}, 3);
          EXPECT_TRUE(same_bits(alone, {all.data() + t * row, std::size_t(row)})) << "row " << t;
        }
        const auto chunk = run(kernel, p, data.q.data() + 250 * row, {data.segment(250, 20)});
        EXPECT_TRUE(same_bits(chunk, {all.data() + 250 * row, std::size_t(20 * row)}));
        // As one of three sequences in a batch, among them a long prefill.
        Data other({.element = element, .num_tokens = 300, .num_heads = 6, .head_dim = p.head_dim},
                   77);
        std::vector<float> q = other.q;
        q.insert(q.end(), data.q.begin() + 600 * row, data.q.begin() + 602 * row);
        q.insert(q.end(), other.q.begin(), other.q.begin() + row);
        const auto batch =
            run(kernel, p, q.data(),
                {other.segment(0, 300, 0), data.segment(600, 2, 300), other.segment(0, 1, 302)});
        EXPECT_TRUE(same_bits({batch.data() + 300 * row, std::size_t(2 * row)},
                              {all.data() + 600 * row, std::size_t(2 * row)}));
        EXPECT_TRUE(same_bits({batch.data() + 302 * row, std::size_t(row)},
                              {batch.data(), std::size_t(row)}));
      }
    }
  }
}

TEST(Attention, NothingOutsideARowsViewReachesIt) {
  for (const auto& kernel : runnable(attention_kernels())) {
    for (const KvElement element : kElements) {
      for (const float poison : {float{NAN}, float{INFINITY}}) {
        const Problem p{.element = element,
                        .num_tokens = 100,
                        .head_dim = ragged_head_dim(element),
                        .sliding_window = 30};
        SCOPED_TRACE(testing::Message() << kernel.name << " " << p << " " << poison);
        Data data(p);
        const auto clean = run(kernel, p, data.q.data(), {data.segment(0, 100)});
        const std::vector<float> bad(std::size_t(p.num_kv_heads * p.head_dim), poison);
        data.kv.set(45, bad, bad, 0);
        const auto poisoned = run(kernel, p, data.q.data(), {data.segment(0, 100)});
        const auto row = static_cast<std::size_t>(p.q_row());
        for (std::size_t t = 0; t < 100; ++t) {
          const bool sees = t >= 45 && t < 75;
          EXPECT_EQ(same_bits({clean.data() + t * row, row}, {poisoned.data() + t * row, row}),
                    !sees)
              << "row " << t;
          const bool saturates = element == KvElement::kFp8 && std::isinf(poison);
          if (sees && !saturates) {
            for (std::size_t j = 0; j < row; ++j) {
              ASSERT_TRUE(std::isnan(poisoned[t * row + j])) << "row " << t;
            }
          }
        }
        // Blocks below every window may be missing altogether.
        data.kv.views()[0] = {};
        data.kv.views()[1] = {};
        const auto late = run(kernel, p, data.q.data() + 95 * p.q_row(), {data.segment(95, 5)});
        EXPECT_TRUE(same_bits(late, {clean.data() + 95 * row, 5 * row}));
      }
    }
  }
}

TEST(Attention, NothingOutsideARowsViewReachesItFromSinks) {
  for (const auto& kernel : runnable(attention_kernels())) {
    for (const KvElement element : kElements) {
      if (!kv_keeps_sinks(element)) continue;
      for (const int64_t window : {0, 20}) {
        const Problem p{.element = element,
                        .num_tokens = 70,
                        .head_dim = ragged_head_dim(element),
                        .sliding_window = window,
                        .has_sinks = true};
        SCOPED_TRACE(testing::Message() << kernel.name << " " << p);
        Data data(p);
        const auto clean = run(kernel, p, data.q.data(), {data.segment(0, 70)});
        const std::vector<float> bad(std::size_t(p.num_kv_heads * p.head_dim), NAN);
        data.kv.set_sink(2, bad, bad, 0);
        const auto poisoned = run(kernel, p, data.q.data(), {data.segment(0, 70)});
        const auto row = static_cast<std::size_t>(p.q_row());
        for (std::size_t t = 0; t < 70; ++t) {
          const bool sees = t >= 2 && (window == 0 || t < 22);
          EXPECT_EQ(same_bits({clean.data() + t * row, row}, {poisoned.data() + t * row, row}),
                    !sees)
              << "row " << t;
          for (std::size_t j = 0; sees && j < row; ++j) {
            ASSERT_TRUE(std::isnan(poisoned[t * row + j])) << "row " << t;
          }
        }
      }
    }
  }
}

TEST(Attention, ScoresOfMinusInfinityWeighNothing) {
  // Keys of -inf in the whole first 300 positions: their partial softmax has no finite score.
  for (const auto& kernel : runnable(attention_kernels())) {
    const Problem p{.num_tokens = 400, .num_heads = 1, .num_kv_heads = 1, .head_dim = 8};
    Data data(p);
    std::vector<float> low(8, 0.0f);
    low[0] = -INFINITY;
    for (int64_t t = 0; t < 300; ++t) data.kv.set(t, low, data.v, 0);
    for (int64_t t = 0; t < 400; ++t) data.q[std::size_t(t * 8)] = 1;
    const float* q = data.q.data() + 390 * 8;
    const auto expected = run(attention_kernels().back(), p, q, {data.segment(390, 10)});
    for (const float value : expected) ASSERT_TRUE(std::isfinite(value));
    EXPECT_TRUE(
        all_close(run(kernel, p, q, {data.segment(390, 10)}), expected, 0, 6 * tolerance(p)))
        << kernel.name;
  }
}

TEST(Attention, RefusesBadArguments) {
  OwnedExec owned(1);
  const AttentionArgs good{.num_heads = 4, .num_kv_heads = 2, .head_dim = 16};
  attention(good, owned.exec);  // no segments: nothing to do
  const auto bad = [&](auto change) {
    AttentionArgs args = good;
    change(args);
    try {
      attention(args, owned.exec);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT_TRUE(bad([](AttentionArgs& a) { a.num_kv_heads = 3; }));
  EXPECT_TRUE(bad([](AttentionArgs& a) { a.head_dim = 15; }));
  EXPECT_TRUE(bad([](AttentionArgs& a) { a.q_stride = 63; }));
  EXPECT_TRUE(bad([](AttentionArgs& a) { a.sliding_window = -1; }));
  try {
    AttentionArgs args = good;
    args.element = KvElement::kQ4;
    args.head_dim = 12;
    attention(args, owned.exec);
    ADD_FAILURE() << "q4 with a head_dim of 12";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
  }
  const std::vector<float> numbers(64, 0.0f);
  const AttentionSegment behind{0, 1, 32, nullptr};
  const KeyOffset offset{.offset = numbers.data(), .num_blocks = 1, .rotary_dim = 16};
  EXPECT_TRUE(bad([&](AttentionArgs& a) { a.segments = {&behind, 1}, a.key_offset = offset; }));
  for (const int64_t rotary_dim : {0, 3, 18}) {
    EXPECT_TRUE(bad([&](AttentionArgs& a) {
      a.key_offset = offset;
      a.key_offset.rotary_dim = rotary_dim;
    }));
  }
  const AttentionSegment exact{0, 1, 0, nullptr, {numbers.data(), numbers.data()}};
  EXPECT_TRUE(bad([&](AttentionArgs& a) { a.segments = {&exact, 1}; }));
  const AttentionSegment segment{0, 1, -1, nullptr};
  EXPECT_TRUE(bad([&](AttentionArgs& a) { a.segments = {&segment, 1}; }));
}

}  // namespace
}  // namespace lathe
