// The stated error of the vectorised exp and tanh, over a dense sample of all floats.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <vector>

#include "kernels/exp_probe.h"
#include "kernels/features.h"
#include "kernels/registry.h"

namespace lathe {
namespace {

struct Probe {
  const char* name;
  uint32_t needs;
  void (*exp)(const float*, float*, int64_t);
  void (*tanh)(const float*, float*, int64_t);
};

std::vector<Probe> runnable_probes() {
  std::vector<Probe> probes;
  for (const Probe& probe :
       {Probe{"avx2", kAvx2, exp_probe_avx2, tanh_probe_avx2},
        Probe{"avx512", kAvx2 | kAvx512, exp_probe_avx512, tanh_probe_avx512}}) {
    if (machine_has(probe.needs)) probes.push_back(probe);
  }
  return probes;
}

// Calls check(x, f(x)) for every step-th float, both signs, and what lies near the edges.
template <typename Check>
void for_floats(void (*f)(const float*, float*, int64_t), uint64_t step, Check check) {
  std::vector<float> x, y;
  const auto flush = [&] {
    while (x.size() % 16 != 0) x.push_back(0);
    y.resize(x.size());
    f(x.data(), y.data(), static_cast<int64_t>(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) check(x[i], y[i]);
    x.clear();
  };
  for (const float edge : {-86.6f, 88.3763f, 88.7228f, 0.34657f, -0.34657f, 0.0f}) {
    const uint32_t bits = std::bit_cast<uint32_t>(edge);
    for (uint32_t d = 0; d < 2000; ++d) {
      x.push_back(std::bit_cast<float>(bits + d));
      x.push_back(std::bit_cast<float>(bits - std::min(bits, d)));
    }
  }
  flush();
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += step) {
    x.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
    if (x.size() == 4096) flush();
  }
  flush();
}

TEST(ExpSimd, WithinOneUlpOfTheTrueValue) {
  for (const Probe& probe : runnable_probes()) {
    double worst = 0;
    float worst_x = 0;
    for_floats(probe.exp, /*step=*/1009, [&](float x, float y) {
      if (std::isnan(x)) {
        EXPECT_TRUE(std::isnan(y));
      } else if (x < -86.6f) {
        EXPECT_EQ(y, 0) << x;
      } else if (double{x} > 128 * std::log(2.0)) {
        EXPECT_EQ(y, INFINITY) << x;
      } else {
        const double expected = std::exp(double{x});
        const double ulp = std::ldexp(1.0, std::ilogb(expected) - 23);
        const double error = std::fabs(double{y} - expected) / ulp;
        if (!(error <= worst)) worst = error, worst_x = x;
      }
    });
    EXPECT_LE(worst, 1.0) << probe.name << " at " << worst_x;
    RecordProperty(probe.name, std::to_string(worst));
  }
}

TEST(ExpSimd, TanhWithinTwoEpsilon) {
  for (const Probe& probe : runnable_probes()) {
    for_floats(probe.tanh, /*step=*/100003, [&](float x, float y) {
      if (std::isnan(x)) {
        EXPECT_TRUE(std::isnan(y));
      } else {
        EXPECT_NEAR(double{y}, std::tanh(double{x}), 2 * FLT_EPSILON) << x;
      }
    });
  }
}

}  // namespace
}  // namespace lathe
