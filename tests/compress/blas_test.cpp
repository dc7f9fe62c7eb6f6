#include "compress/blas.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

TEST(Blas, ProcessorsYoungerThanTheLibraryGetTheKernelsThatTheyRun) {
  const auto better = [](std::string_view chosen, bool avx512, bool avx2) {
    const char* core = better_blas_core(chosen, avx512, avx2);
    return std::string(core != nullptr ? core : "as chosen");
  };
  EXPECT_EQ(better("Prescott", true, true), "SkylakeX");
  EXPECT_EQ(better("Prescott", false, true), "Haswell");
  EXPECT_EQ(better("generic", false, true), "Haswell");
  EXPECT_EQ(better("Prescott", false, false), "as chosen");  // it is an old one
  EXPECT_EQ(better("SkylakeX", true, true), "as chosen");
  EXPECT_EQ(better("Haswell", true, true), "as chosen");
  EXPECT_EQ(better("Zen", true, true), "as chosen");
  EXPECT_EQ(better("Sapphirerapids", true, true), "as chosen");
}

TEST(Blas, AUsersChoiceStands) {
  setenv("OPENBLAS_CORETYPE", "Nehalem", 1);
  EXPECT_EQ(better_blas_core(), nullptr);
  unsetenv("OPENBLAS_CORETYPE");
}

}  // namespace
}  // namespace lathe
