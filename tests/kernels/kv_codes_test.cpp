#include "kernels/attention/kv_codes.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "base/error.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"
#include "tensor/buffer.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr KvElement kCoded[] = {KvElement::kFp8,    KvElement::kInt8,   KvElement::kQ4,
                                KvElement::kHiggs4, KvElement::kHiggs3, KvElement::kHiggs2};
constexpr KvPart kParts[] = {KvPart::kKeys, KvPart::kValues};

// Keys or values of one head of one block.
struct Head {
  Head(KvElement e, KvPart p, int64_t dim)
      : element(e), plane(p), head_dim(dim), memory(kv_head_bytes(e, dim)) {
    std::memset(memory.data(), 0xff, static_cast<std::size_t>(memory.size()));
  }
  void store(const std::vector<float>& x, int64_t token) {
    kv_store(element, plane, head_dim, x.data(), token, memory.data());
  }
  std::vector<float> load(int64_t token) const {  // in the model's coordinates
    std::vector<float> x = load_as_stored(token);
    if (kv_is_rotated(element)) kv_rotate(x.data(), head_dim);
    return x;
  }
  std::vector<float> load_as_stored(int64_t token) const {
    std::vector<float> x(static_cast<std::size_t>(head_dim));
    kv_load(element, plane, head_dim, memory.data(), token, x.data());
    return x;
  }
  KvElement element;
  KvPart plane;
  int64_t head_dim;
  Buffer memory;
};

double squared(const std::vector<float>& x) {
  double sum = 0;
  for (const float value : x) sum += double{value} * value;
  return sum;
}
double squared_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

// Relative squared error over 32 tokens of normal numbers whose size changes from token to token.
double relative_error(KvElement element, KvPart plane, int64_t head_dim, uint64_t seed) {
  Head head(element, plane, head_dim);
  double error = 0, size = 0;
  for (int64_t t = 0; t < kBlockSize; ++t) {
    std::vector<float> x = normal_values(head_dim, seed + static_cast<uint64_t>(t), 1 + double(t));
    head.store(x, t);
    error += squared_error(head.load(t), x) / squared(x);
    size += 1;
  }
  return error / size;
}

TEST(KvCodes, ErrorsAreThoseOfTheFormats) {
  // HIGGS: the grid's error for the normal law (quant/higgs.h: .007741, .029593, .107598), 1 % for
  // int8 tables, and 3 sigma of 64 heads of noise. int8: a uniform error of a 127th of the largest
  // of n normal numbers, below sqrt(2 ln 2n): its square / 12, 6.4e-5 for 256. fp8: a relative step
  // of 1/8..1/16 of the exponent, /12 of its square on average.
  struct Case {
    KvElement element;
    double low, high;
  };
  for (const auto& [element, low, high] :
       {Case{KvElement::kHiggs4, .0073, .0083}, Case{KvElement::kHiggs3, .028, .0312},
        Case{KvElement::kHiggs2, .101, .114}, Case{KvElement::kInt8, 2e-5, 6.4e-5},
        Case{KvElement::kFp8, 4e-4, 9e-4}}) {
    for (const int64_t head_dim : {64, 128, 256}) {
      for (const KvPart plane : kParts) {
        double error = 0;
        for (uint64_t seed = 0; seed < 4; ++seed) {
          error += relative_error(element, plane, head_dim, 100 * seed) / 4;
        }
        EXPECT_GT(error, low) << static_cast<int>(element) << " " << head_dim;
        EXPECT_LT(error, high) << static_cast<int>(element) << " " << head_dim;
      }
    }
  }
}

// ggml's q4_0: the number of largest magnitude becomes -8, the scale is an fp16.
double q4_0_error(const std::vector<float>& x) {
  double error = 0;
  for (std::size_t begin = 0; begin < x.size(); begin += 32) {
    float extreme = 0;
    for (std::size_t j = begin; j < begin + 32; ++j) {
      if (std::fabs(x[j]) > std::fabs(extreme)) extreme = x[j];
    }
    const float scale = float_from_f16(f16_from_float(extreme / -8));
    for (std::size_t j = begin; j < begin + 32; ++j) {
      const float code = std::min(15.0f, std::floor(x[j] / (extreme / -8) + 8.5f)) - 8;
      error += std::pow(double{code} * scale - x[j], 2);
    }
  }
  return error;
}

TEST(KvCodes, Q4IsBetterThanQ4_0InEveryToken) {
  double ours = 0, theirs = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::vector<float> x = normal_values(64, seed, 3);
    Head head(KvElement::kQ4, KvPart::kKeys, 64);
    head.store(x, 3);
    ours += squared_error(head.load(3), x);
    theirs += q4_0_error(x);
  }
  EXPECT_LT(ours, 0.93 * theirs);
}

TEST(KvCodes, TheNearestPointOfAllIsFound) {
  for (const KvElement element : {KvElement::kHiggs4, KvElement::kHiggs3, KvElement::kHiggs2}) {
    const KvGrid& grid = kv_grid(element);
    const int64_t head_dim = 64;
    for (uint64_t seed = 0; seed < 50; ++seed) {
      // The last ones with an outlier: far outside the grid.
      std::vector<float> x = normal_values(head_dim, seed);
      kv_rotate(x.data(), head_dim);
      if (seed > 40) x[7] = static_cast<float>(seed);
      std::vector<float> y = x;
      kv_rotate(y.data(), head_dim);
      Head head(element, KvPart::kValues, head_dim);
      head.store(y, 5);
      const std::vector<float> stored = head.load_as_stored(5);
      const float step = float_from_bf16(reinterpret_cast<const uint16_t*>(
          head.memory.data() + kv_scales_offset(element, head_dim))[5]);
      for (std::size_t j = 0; j < 32; ++j) {
        const auto distance = [&](double a, double b) {
          return std::hypot(a - x[j], b - x[j + 32]);
        };
        double best = 1e30;
        for (int i = 0; i < grid.num_points; ++i) {
          best =
              std::min(best, distance(double{step} * grid.first[i], double{step} * grid.second[i]));
        }
        EXPECT_LE(distance(stored[j], stored[j + 32]), best * (1 + 1e-5)) << j;
      }
    }
  }
}

// A number that grows by its smallest steps past the last cell of the search, 128 steps of the
// grid, in either half of the pairs.
TEST(KvCodes, TheNearestPointIsFoundAtTheEndOfTheCells) {
  constexpr int64_t kHeadDim = 64;
  for (const KvElement element : {KvElement::kHiggs4, KvElement::kHiggs3, KvElement::kHiggs2}) {
    // Others so large that rms times the grid's step, the scale, is 1.
    const double rms = 1 / double{kv_grid(element).step};
    const auto others =
        static_cast<float>(std::sqrt((kHeadDim * rms * rms - 128.0 * 128.0) / (kHeadDim - 1)));
    for (const int64_t at : {int64_t{0}, kHeadDim / 2}) {
      float a = 127.99f;
      for (int step = 0; step < 2000; ++step, a = std::nextafter(a, 256.0f)) {
        std::vector<float> x(kHeadDim, others);
        x[std::size_t(at)] = a;
        kv_rotate(x.data(), kHeadDim);
        std::vector<std::byte> memory(std::size_t(kv_head_bytes(element, kHeadDim)));
        kv_store(element, KvPart::kKeys, kHeadDim, x.data(), 0, memory.data());
        std::vector<float> y(kHeadDim);
        kv_load(element, KvPart::kKeys, kHeadDim, memory.data(), 0, y.data());
        // The largest point of the grid is 127 steps away from zero; others are far from it.
        ASSERT_NEAR(y[std::size_t(at)], a, 0.35 * a) << static_cast<int>(element) << " " << step;
      }
    }
  }
}

TEST(KvCodes, TokensDoNotTouchEachOther) {
  for (const KvElement element : kCoded) {
    for (const int64_t head_dim : {16, 48, 64, 80, 128}) {
      for (const KvPart plane : kParts) {
        Head head(element, plane, head_dim);
        std::vector<std::vector<float>> loaded;
        for (int64_t t = 0; t < kBlockSize; ++t) {
          head.store(normal_values(head_dim, static_cast<uint64_t>(t)), t);
          loaded.push_back(head.load(t));
        }
        for (const int64_t t : {0, 1, 15, 16, 30, 31}) {
          head.store(normal_values(head_dim, 999, 50), t);
          for (int64_t other = 0; other < kBlockSize; ++other) {
            EXPECT_EQ(same_bits(head.load(other), loaded[std::size_t(other)]), other != t);
          }
          head.store(normal_values(head_dim, static_cast<uint64_t>(t)), t);
          EXPECT_TRUE(same_bits(head.load(t), loaded[std::size_t(t)]));
        }
      }
    }
  }
}

TEST(KvCodes, StoringFp8ThatWasLoadedChangesNothing) {
  for (const KvPart plane : kParts) {
    Head head(KvElement::kFp8, plane, 64), again(KvElement::kFp8, plane, 64);
    for (uint64_t seed = 0; seed < 32; ++seed) {
      head.store(normal_values(64, seed, 0.01), int64_t(seed));
      again.store(head.load(int64_t(seed)), int64_t(seed));
      EXPECT_TRUE(same_bits(again.load(int64_t(seed)), head.load(int64_t(seed)))) << seed;
    }
  }
}

TEST(KvCodes, ZerosTinyHugeAndWhatIsNotANumber) {
  for (const KvElement element : kCoded) {
    for (const KvPart plane : kParts) {
      Head head(element, plane, 64);
      head.store(std::vector<float>(64, 0.0f), 1);
      for (const float x : head.load(1)) EXPECT_EQ(x, 0);
      head.store(std::vector<float>(64, 1e-41f), 2);
      for (const float x : head.load(2)) EXPECT_EQ(x, 0);
      if (kv_has_scales(element)) {
        std::vector<float> huge(64, 0.0f);
        huge[9] = 1e37f;
        head.store(huge, 3);
        for (const float x : head.load(3)) EXPECT_TRUE(std::isfinite(x));
        EXPECT_GT(head.load(3)[9], 0.5e37f);
      }
      for (const float poison : {float{NAN}, float{INFINITY}, -float{INFINITY}}) {
        std::vector<float> x = normal_values(64, 1);
        x[40] = poison;
        head.store(x, 4);
        const std::vector<float> back = head.load(4);
        if (element == KvElement::kFp8 && std::isinf(poison)) {
          EXPECT_EQ(back[40], poison > 0 ? 448 : -448);  // saturates, as on a GPU
        } else {
          EXPECT_TRUE(std::isnan(back[40]));
        }
      }
    }
  }
}

TEST(KvCodes, TheRotationIsOrthonormalAndItsOwnInverse) {
  for (const int64_t head_dim : {8, 16, 24, 64, 80, 96, 112, 128, 256}) {
    const std::vector<float> x = normal_values(head_dim, 5);
    std::vector<float> y = x;
    kv_rotate(y.data(), head_dim);
    EXPECT_NEAR(squared(y) / squared(x), 1, 1e-5) << head_dim;
    EXPECT_GT(squared_error(y, x), 0.1 * squared(x)) << head_dim;
    kv_rotate(y.data(), head_dim);
    EXPECT_TRUE(all_close(y, x, 0, 20 * FLT_EPSILON * 4)) << head_dim;
  }
  // Entry (1, 1) of a 2 x 2 block of the Sylvester matrix is -1.
  std::vector<float> e1(8, 0.0f);
  e1[1] = 1;
  kv_rotate(e1.data(), 8);
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_FLOAT_EQ(e1[i], (i % 2 == 0 ? 1 : -1) / std::sqrt(8.0f));
  }
}

TEST(KvCodes, BytesPerNumber) {
  const auto bits = [](KvElement element, int64_t head_dim) {
    return double(kv_head_bytes(element, head_dim)) * 8 / double(kBlockSize * head_dim);
  };
  EXPECT_EQ(bits(KvElement::kBF16, 64), 16);
  EXPECT_EQ(bits(KvElement::kFp8, 64), 8);
  EXPECT_EQ(bits(KvElement::kInt8, 64), 8.25);
  EXPECT_EQ(bits(KvElement::kQ4, 64), 4.5);
  EXPECT_EQ(bits(KvElement::kHiggs4, 64), 4.25);
  EXPECT_EQ(bits(KvElement::kHiggs4, 128), 4.125);
  EXPECT_EQ(bits(KvElement::kHiggs3, 64), 3.25);
  EXPECT_EQ(bits(KvElement::kHiggs2, 128), 2.125);
}

TEST(KvCodes, RefusesHeadDimsThatDoNotFit) {
  const auto refused = [](KvElement element, int64_t head_dim) {
    try {
      check_kv_element(element, head_dim);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kUnsupported;
    }
    return false;
  };
  EXPECT_TRUE(refused(KvElement::kF32, 21));
  EXPECT_FALSE(refused(KvElement::kF32, 22));
  EXPECT_TRUE(refused(KvElement::kInt8, 12));
  EXPECT_TRUE(refused(KvElement::kHiggs3, 24));
  EXPECT_FALSE(refused(KvElement::kHiggs4, 24));
  EXPECT_TRUE(refused(KvElement::kQ4, 520));
  EXPECT_FALSE(refused(KvElement::kFp8, 520));
}

}  // namespace
}  // namespace lathe
