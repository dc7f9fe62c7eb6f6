#include "compress/moments.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

// The generator of spec/aqua-kv.md 3.2: the same numbers in any language.
std::vector<float> lcg_values(int64_t count, int64_t state) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    state = (1103515245 * state + 12345) % (int64_t{1} << 31);
    values.push_back(static_cast<float>(static_cast<double>(state) / 2147483648.0 - 0.5));
  }
  return values;
}

std::vector<int32_t> all_rows(int64_t n) {
  std::vector<int32_t> rows(static_cast<std::size_t>(n));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

std::vector<float> floats(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

class MomentsTest : public testing::Test {
 protected:
  // x [n, m] and y = x a^T + noise + offset [n, p].
  struct Data {
    int64_t n, m, p;
    std::vector<float> x, y;
  };
  static Data golden_data() {
    const int64_t n = 60, m = 6, p = 4;
    std::vector<float> x = lcg_values(n * m, 1), y;
    const float stretch[] = {1, 2, 0.5f, 3, 1, 0.25f}, shift[] = {5, -3, 0, 1, 0, 2};
    const std::vector<float> a = lcg_values(p * m, 7), noise = lcg_values(n * p, 3);
    for (int64_t i = 0; i < n * m; ++i) {
      float& value = x[static_cast<std::size_t>(i)];
      value = value * stretch[i % m] + shift[i % m];
    }
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t j = 0; j < p; ++j) {
        double sum = double{noise[static_cast<std::size_t>(t * p + j)]} * 0.3 + double(j + 1);
        for (int64_t i = 0; i < m; ++i) {
          sum += double{x[static_cast<std::size_t>(t * m + i)]} *
                 double{a[static_cast<std::size_t>(j * m + i)]};
        }
        y.push_back(static_cast<float>(sum));
      }
    }
    return {n, m, p, x, y};
  }
  Moments moments_of(const Data& data) {
    const RowColumns tables[] = {{data.x.data(), data.m}, {data.y.data(), data.p}};
    return collect_moments(tables, all_rows(data.n), exec_);
  }

  OwnedExec owned_{2};
  Exec& exec_ = owned_.exec;
};

// Made by numpy 2 in fp64: lstsq of the rows with sqrt(ridge) I below them and a column of ones
// that is not damped; the rank-2 map by a truncated singular value decomposition of W (C +
// ridge)^(1/2).
const std::vector<float> kWeight = {
    0.1099564360f, -0.1893475922f, -0.1016613776f, 0.1715099911f,  0.5111310840f,  -0.2136596335f,
    0.4760937733f, 0.4675629196f,  -0.0471596943f, -0.1584101609f, -0.1369626264f, 0.3742918677f,
    0.4444851192f, 0.2767098236f,  -0.3829359260f, -0.4820481765f, -0.0481325807f, 0.1803066056f,
    0.0804352275f, -0.2403702516f, -0.3679930929f, 0.0672465310f,  -0.3317887451f, 0.4481426417f};
const std::vector<float> kBias = {0.6289866252f, 1.7845399331f, 2.8369756078f, 4.0254359358f};
const std::vector<float> kRankTwo = {
    -0.1708709736f, -0.1472073797f, 0.1303810271f,  0.1997831429f,  0.1087431801f,  -0.1299278714f,
    0.3109437552f,  0.4596319824f,  0.1160875927f,  -0.1830457797f, 0.0211328249f,  0.0769592848f,
    0.3747993869f,  0.2971107845f,  -0.3334986380f, -0.4624893044f, -0.2679742940f, 0.3064360701f,
    -0.1361420758f, -0.2552102406f, -0.1502758452f, 0.0293398113f,  -0.0708946267f, 0.0111888839f};
// Sums of 60 fp32 products of size up to 2, solved with a condition number of about 100.
constexpr double kGoldenTolerance = 1e-5;

TEST_F(MomentsTest, RidgeIsTheSolutionThatNumpyFinds) {
  const Data data = golden_data();
  const LinearFit fit = fit_ridge(moments_of(data), data.m, 1e-2, exec_);
  EXPECT_TRUE(all_close(floats(fit.weight), kWeight, kGoldenTolerance));
  EXPECT_TRUE(all_close(floats(fit.bias), kBias, kGoldenTolerance));
}

TEST_F(MomentsTest, ReducedRankIsTheOneThatNumpyFinds) {
  const Data data = golden_data();
  const Moments moments = moments_of(data);
  const LinearFit full = fit_ridge(moments, data.m, 1e-2, exec_);
  const LowRankFit low = reduce_rank(moments, full, 2, exec_);
  std::vector<float> product;
  for (int64_t j = 0; j < data.p; ++j) {
    for (int64_t i = 0; i < data.m; ++i) {
      double sum = 0;
      for (int64_t r = 0; r < 2; ++r) {
        sum += low.up[static_cast<std::size_t>(j * 2 + r)] *
               low.down[static_cast<std::size_t>(r * data.m + i)];
      }
      product.push_back(static_cast<float>(sum));
    }
  }
  EXPECT_TRUE(all_close(product, kRankTwo, kGoldenTolerance));
  // The map of any rank passes through the means.
  for (int64_t j = 0; j < data.p; ++j) {
    double at_mean = low.bias[static_cast<std::size_t>(j)];
    for (int64_t i = 0; i < data.m; ++i) {
      at_mean += double{product[static_cast<std::size_t>(j * data.m + i)]} *
                 moments.mean[static_cast<std::size_t>(i)];
    }
    EXPECT_NEAR(at_mean, moments.mean[static_cast<std::size_t>(data.m + j)], 1e-6);
  }
}

TEST_F(MomentsTest, FullRankIsTheFullMap) {
  const Data data = golden_data();
  const Moments moments = moments_of(data);
  const LinearFit full = fit_ridge(moments, data.m, 1e-3, exec_);
  const LowRankFit low = reduce_rank(moments, full, data.p, exec_);
  for (int64_t j = 0; j < data.p; ++j) {
    EXPECT_NEAR(low.bias[static_cast<std::size_t>(j)], full.bias[static_cast<std::size_t>(j)],
                1e-12);
    for (int64_t i = 0; i < data.m; ++i) {
      double sum = 0;
      for (int64_t r = 0; r < data.p; ++r) {
        sum += low.up[static_cast<std::size_t>(j * data.p + r)] *
               low.down[static_cast<std::size_t>(r * data.m + i)];
      }
      EXPECT_NEAR(sum, full.weight[static_cast<std::size_t>(j * data.m + i)], 1e-12);
    }
  }
}

// Plain loops in fp64, several chunks of rows, a mean that is a thousand times the deviation, and
// rows that are left out.
TEST_F(MomentsTest, AreThoseOfPlainLoopsInDoubles) {
  const int64_t n = 2 * kMomentRows + 77, widths[] = {7, 20};
  std::vector<float> a = normal_values(n * widths[0], 1), b = normal_values(n * widths[1], 2);
  for (float& value : a) value += 1000;
  for (std::size_t i = 0; i < b.size(); i += 20) b[i] = a[i / 20 * 7] - 1000 + 0.5f * b[i];
  std::vector<int32_t> rows;
  for (int32_t t = 0; t < n; ++t) {
    if (t % 5 != 0) {
      rows.push_back(t);
    } else {
      a[static_cast<std::size_t>(t * 7)] = 1e30f;  // left out: must not matter
    }
  }
  const RowColumns tables[] = {{a.data(), widths[0]}, {b.data(), widths[1]}};
  const Moments moments = collect_moments(tables, rows, exec_);
  ASSERT_EQ(moments.size, 27);
  EXPECT_EQ(moments.num_rows, static_cast<int64_t>(rows.size()));
  const auto value = [&](int32_t t, int64_t j) {
    return j < 7 ? double{a[static_cast<std::size_t>(int64_t{t} * 7 + j)]}
                 : double{b[static_cast<std::size_t>(int64_t{t} * 20 + j - 7)]};
  };
  for (int64_t i = 0; i < 27; ++i) {
    double mean = 0;
    for (const int32_t t : rows) mean += value(t, i) / double(rows.size());
    EXPECT_NEAR(moments.mean[static_cast<std::size_t>(i)], mean, 1e-9);
  }
  for (int64_t i = 0; i < 27; ++i) {
    for (int64_t j = 0; j < 27; ++j) {
      double sum = 0;
      for (const int32_t t : rows) {
        sum += (value(t, i) - moments.mean[static_cast<std::size_t>(i)]) *
               (value(t, j) - moments.mean[static_cast<std::size_t>(j)]);
      }
      // kMomentRows roundings of terms of order one, and the fp32 rounding of x - 1000 (6e-5).
      EXPECT_NEAR(moments.at(i, j), sum / double(rows.size()), 1e-4) << i << " " << j;
    }
  }
}

TEST_F(MomentsTest, ExactLinearDependenceIsFound) {
  const int64_t n = 500, m = 12, p = 8;
  const std::vector<float> x = normal_values(n * m, 3), map = normal_values(p * m, 4);
  std::vector<float> y;
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t j = 0; j < p; ++j) {
      double sum = 3;
      for (int64_t i = 0; i < m; ++i) {
        sum += double{map[static_cast<std::size_t>(j * m + i)]} *
               double{x[static_cast<std::size_t>(t * m + i)]};
      }
      y.push_back(static_cast<float>(sum));
    }
  }
  const RowColumns tables[] = {{x.data(), m}, {y.data(), p}};
  const Moments moments = collect_moments(tables, all_rows(n), exec_);
  const LinearFit fit = fit_ridge(moments, m, 1e-9, exec_);
  EXPECT_TRUE(all_close(floats(fit.weight), map, 1e-5));
  for (const double bias : fit.bias) EXPECT_NEAR(bias, 3, 1e-4);
}

// Blocks see only themselves: the same as a fit of each block alone.
TEST_F(MomentsTest, BlockDiagonalFitsEachBlockAlone) {
  const int64_t n = 300, width = 8, blocks = 2;
  const std::vector<float> first = normal_values(n * width, 5),
                           second = normal_values(n * width, 6);
  std::vector<float> y = normal_values(n * width, 7, 0.1);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += first[i] - 0.5f * second[i ^ 1];
  const RowColumns tables[] = {{first.data(), width}, {second.data(), width}, {y.data(), width}};
  const Moments moments = collect_moments(tables, all_rows(n), exec_);
  const LinearFit fit = fit_block_diagonal(moments, 2 * width, width, blocks, 1e-3, exec_);
  const std::vector<int64_t> columns = {4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23};
  const LinearFit alone = fit_ridge(moments.select(columns), 8, 1e-3, exec_);
  for (int64_t o = 0; o < width; ++o) {
    for (int64_t i = 0; i < 2 * width; ++i) {
      const double weight = fit.weight[static_cast<std::size_t>(o * 2 * width + i)];
      if (o / 4 != i % width / 4) {
        EXPECT_EQ(weight, 0) << o << " " << i;
      } else if (o >= 4) {
        const int64_t column = i / width * 4 + i % 4;
        EXPECT_EQ(weight, alone.weight[static_cast<std::size_t>((o - 4) * 8 + column)]);
      }
    }
  }
  // One block is the dense fit.
  EXPECT_EQ(fit_block_diagonal(moments, 2 * width, width, 1, 1e-3, exec_).weight,
            fit_ridge(moments, 2 * width, 1e-3, exec_).weight);
}

TEST_F(MomentsTest, InputsThatNeverVaryGetNoWeight) {
  const int64_t n = 50;
  std::vector<float> x(static_cast<std::size_t>(2 * n), 4.0f);
  const std::vector<float> noise = normal_values(n, 8);
  for (int64_t t = 0; t < n; ++t)
    x[static_cast<std::size_t>(2 * t)] = noise[static_cast<std::size_t>(t)];
  const RowColumns tables[] = {{x.data(), 2}, {noise.data(), 1}};
  const LinearFit fit = fit_ridge(collect_moments(tables, all_rows(n), exec_), 2, 1e-6, exec_);
  EXPECT_NEAR(fit.weight[0], 1, 1e-5);
  EXPECT_EQ(fit.weight[1], 0);
  // All inputs constant, and no inputs at all: the mean.
  const std::vector<float> constant(static_cast<std::size_t>(n), 2.0f);
  const RowColumns flat[] = {{constant.data(), 1}, {noise.data(), 1}};
  const Moments moments = collect_moments(flat, all_rows(n), exec_);
  EXPECT_EQ(fit_ridge(moments, 1, 1e-6, exec_).weight[0], 0);
  const int64_t target[] = {1};
  EXPECT_EQ(fit_ridge(moments.select(target), 0, 1e-6, exec_).bias[0], moments.mean[1]);
}

TEST_F(MomentsTest, PrincipalComponentsDiagonaliseTheCovariance) {
  const Data data = golden_data();
  const Moments moments = moments_of(data);
  const PrincipalComponents pca = principal_components(moments, 3, exec_);
  EXPECT_NEAR(pca.variance[0], 1.16727834, 1e-5);  // numpy
  EXPECT_NEAR(pca.variance[1], 0.3921532, 1e-5);
  EXPECT_NEAR(pca.variance[2], 0.10730684, 1e-5);
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t s = 0; s < 3; ++s) {
      double product = 0, covariance = 0;
      for (int64_t i = 0; i < moments.size; ++i) {
        const double left = pca.basis[static_cast<std::size_t>(r * moments.size + i)];
        product += left * pca.basis[static_cast<std::size_t>(s * moments.size + i)];
        for (int64_t j = 0; j < moments.size; ++j) {
          covariance +=
              left * moments.at(i, j) * pca.basis[static_cast<std::size_t>(s * moments.size + j)];
        }
      }
      EXPECT_NEAR(product, r == s ? 1 : 0, 1e-12);
      EXPECT_NEAR(covariance, r == s ? pca.variance[static_cast<std::size_t>(r)] : 0, 1e-12);
    }
  }
}

TEST_F(MomentsTest, RefusesWhatIsNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e38f}) {
    std::vector<float> x = normal_values(40, 9);
    x[17] = bad;
    const RowColumns table = {x.data(), 4};
    try {
      collect_moments({&table, 1}, all_rows(10), exec_);
      ADD_FAILURE() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    }
  }
  const std::vector<float> x = normal_values(4, 9);
  const RowColumns table = {x.data(), 4};
  EXPECT_THROW(collect_moments({&table, 1}, {}, exec_), Error);
}

}  // namespace
}  // namespace lathe
