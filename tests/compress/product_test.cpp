#include "compress/product.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <vector>

#include "compress/cholesky.h"
#include "compress/gram.h"
#include "kernels/features.h"
#include "kernels/registry.h"
#include "support/all_close.h"

namespace lathe {
namespace {

struct Version {
  const char* name;
  uint32_t needs;
  void (*run)(const ProductArgs& args, float* scratch);
  bool in_two_terms = false;
};
std::vector<Version> versions() {
  std::vector<Version> runnable;
#if defined(__x86_64__)
  for (const Version& version :
       {Version{"amx", kAmxFeatures, add_product_amx, true},
        Version{"avx512", kAvx512, add_product_avx512}, Version{"avx2", kAvx2, add_product_avx2}}) {
    if (machine_has(version.needs)) runnable.push_back(version);
  }
#endif
  runnable.push_back({"ref", 0, add_product_ref});
  return runnable;
}

// Matrices inside larger ones, so that strides differ from widths.
struct Problem {
  int64_t depth, rows, columns;
  std::vector<float> a, b, c;

  Problem(int64_t d, int64_t r, int64_t n)
      : depth(d),
        rows(r),
        columns(n),
        a(normal_values(d * (r + 3), 1)),
        b(normal_values(d * (n + 5), 2)),
        c(normal_values(r * (n + 1), 3)) {}

  ProductArgs args(std::vector<float>& to) const {
    return {.depth = depth,
            .a = a.data(),
            .a_stride = rows + 3,
            .b = b.data(),
            .b_stride = columns + 5,
            .c = to.data(),
            .c_stride = columns + 1,
            .rows = rows,
            .columns = columns};
  }
  double magnitude(int64_t i, int64_t j) const {
    double tolerance = 0;
    expected(i, j, 1, tolerance);
    return tolerance / (static_cast<double>(depth + 1) * double{FLT_EPSILON});
  }
  // c + sign a^T b in double, and how far fp32 may be from it: a chain of `depth` additions, each
  // rounded, of terms that add up to at most the sum of magnitudes.
  double expected(int64_t i, int64_t j, double sign, double& tolerance) const {
    double sum = double{c[static_cast<std::size_t>(i * (columns + 1) + j)]};
    double magnitude = std::fabs(sum);
    for (int64_t t = 0; t < depth; ++t) {
      const double term = double{a[static_cast<std::size_t>(t * (rows + 3) + i)]} *
                          double{b[static_cast<std::size_t>(t * (columns + 5) + j)]};
      sum += sign * term;
      magnitude += std::fabs(term);
    }
    tolerance = static_cast<double>(depth + 1) * double{FLT_EPSILON} * magnitude;
    return sum;
  }
};

TEST(Product, EveryVersionIsTheSumOfProducts) {
  struct Case {
    int64_t depth, rows, columns;
  };
  for (const Case& size : {Case{0, 3, 3}, Case{1, 1, 1}, Case{5, 12, 32}, Case{128, 13, 33},
                           Case{129, 24, 64}, Case{300, 191, 190}, Case{7, 192, 192}}) {
    const Problem problem(size.depth, size.rows, size.columns);
    std::vector<float> fused;
    for (const Version& version : versions()) {
      for (const bool subtract : {false, true}) {
        for (const int64_t diagonal : {int64_t{1000}, int64_t{0}, int64_t{-20}, int64_t{40}}) {
          SCOPED_TRACE(testing::Message() << version.name << " " << size.depth << " " << size.rows
                                          << " " << size.columns << " " << subtract << diagonal);
          std::vector<float> c = problem.c;
          ProductArgs args = problem.args(c);
          args.subtract = subtract;
          args.diagonal = diagonal;
          std::vector<float> scratch(static_cast<std::size_t>(product_scratch_floats()));
          version.run(args, scratch.data());
          for (int64_t i = 0; i < size.rows; ++i) {
            // Behind the last column nothing is written.
            const auto border = static_cast<std::size_t>(i * (size.columns + 1) + size.columns);
            ASSERT_EQ(c[border], problem.c[border]);
            for (int64_t j = std::max<int64_t>(0, i - diagonal); j < size.columns; ++j) {
              double tolerance = 0;
              const double expected = problem.expected(i, j, subtract ? -1 : 1, tolerance);
              const double actual = double{c[static_cast<std::size_t>(i * (size.columns + 1) + j)]};
              // Of both factors, and of the product that is left out.
              if (version.in_two_terms) tolerance += 0x1p-15 * problem.magnitude(i, j);
              ASSERT_TRUE(std::fabs(actual - expected) <= tolerance)
                  << i << " " << j << ": " << actual << ", expected " << expected << " within "
                  << tolerance;
            }
          }
          // One chain of fused operations: the width of the vectors does not show.
          if (diagonal == 1000 && !subtract && std::string(version.name) != "ref" &&
              !version.in_two_terms) {
            if (fused.empty()) fused = c;
            EXPECT_EQ(c, fused);
          }
        }
      }
    }
  }
}

TEST(Product, ThreadsAndBlocksDoNotChangeTheBits) {
  const Problem problem(200, 250, 401);
  std::vector<float> first;
  for (const int threads : {1, 3}) {
    for (const int64_t block : {kProductBlock, int64_t{96}}) {
      ThreadPool pool(threads);
      Workspace workspace;
      Exec exec{pool, workspace};
      std::vector<float> c = problem.c;
      add_product(problem.args(c), exec, block);
      if (first.empty()) first = c;
      EXPECT_EQ(c, first);
    }
  }
  double tolerance = 0;
  const double expected = problem.expected(249, 400, 1, tolerance);
  EXPECT_NEAR(first[249 * 402 + 400], expected, tolerance);
}

class OnThreads : public testing::Test {
 protected:
  ThreadPool threads_{3};
  Workspace workspace_;
  Exec exec_{threads_, workspace_};
};

using Cholesky = OnThreads;

// U^T U gives back A. Backward error of the factorisation: |A - U^T U| <= (k + 1) eps |U|^T |U|
// (Higham, Accuracy and Stability of Numerical Algorithms, theorem 10.3), and (|U|^T |U|)_ij is at
// most sqrt(a_ii a_jj).
TEST_F(Cholesky, FactorGivesTheMatrixBack) {
  for (const int64_t k : {1, 2, 24, 25, 191, 192, 193, 500}) {
    SCOPED_TRACE(k);
    const auto x = normal_values((k + 7) * k, static_cast<uint64_t>(k));
    std::vector<float> a(static_cast<std::size_t>(k * k), 0.0f);
    add_gram(k + 7, k, x.data(), a.data(), exec_);
    std::vector<float> u = a;
    ASSERT_TRUE(cholesky_upper(k, u.data(), exec_));
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = i; j < k; ++j) {
        double sum = 0;
        for (int64_t t = 0; t <= i; ++t) {
          sum += double{u[static_cast<std::size_t>(t * k + i)]} *
                 double{u[static_cast<std::size_t>(t * k + j)]};
        }
        const auto at = [&](int64_t r, int64_t c) {
          return double{a[static_cast<std::size_t>(r * k + c)]};
        };
        const double tolerance =
            static_cast<double>(k + 1) * double{FLT_EPSILON} * std::sqrt(at(i, i) * at(j, j));
        ASSERT_TRUE(std::fabs(sum - at(i, j)) <= tolerance) << i << " " << j;
      }
    }
  }
}

TEST_F(Cholesky, SaysWhenThereIsNoFactor) {
  for (const int64_t k : {1, 30, 300}) {
    for (const float pivot : {0.0f, -1.0f, NAN}) {
      for (const int64_t place : {int64_t{0}, k / 2, k - 1}) {
        std::vector<float> a(static_cast<std::size_t>(k * k), 0.0f);
        for (int64_t i = 0; i < k; ++i) a[static_cast<std::size_t>(i * k + i)] = 2;
        a[static_cast<std::size_t>(place * k + place)] = pivot;
        EXPECT_FALSE(cholesky_upper(k, a.data(), exec_)) << k << " " << pivot << " " << place;
      }
    }
  }
}

using GramDot = OnThreads;

TEST_F(GramDot, IsTheTraceAndReadsTheUpperTriangle) {
  struct Case {
    int64_t n, k;
  };
  for (const Case& size : {Case{1, 1}, Case{3, 40}, Case{600, 200}, Case{520, 385}}) {
    const auto d = normal_values(size.n * size.k, 4);
    const auto x = normal_values(size.k * size.k, 5);
    std::vector<float> h(static_cast<std::size_t>(size.k * size.k), NAN);
    double expected = 0;
    double magnitude = 0;
    for (int64_t i = 0; i < size.k; ++i) {
      for (int64_t j = i; j < size.k; ++j) {
        const auto at = static_cast<std::size_t>(i * size.k + j);
        h[at] = x[at];
        double gram = 0;
        for (int64_t r = 0; r < size.n; ++r) {
          const double term = double{d[static_cast<std::size_t>(r * size.k + i)]} *
                              double{d[static_cast<std::size_t>(r * size.k + j)]};
          gram += term;
          magnitude += (i == j ? 1 : 2) * std::fabs(double{h[at]} * term);
        }
        expected += (i == j ? 1 : 2) * double{h[at]} * gram;
      }
    }
    // Chains of at most 512 rounded additions.
    const double actual = gram_dot(size.n, size.k, d.data(), h.data(), exec_);
    EXPECT_TRUE(std::fabs(actual - expected) <= 512 * double{FLT_EPSILON} * magnitude)
        << actual << " " << expected;
  }
}

}  // namespace
}  // namespace lathe
