#include "kernels/embedding/embedding.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

TEST(Embedding, LooksUpRowsOfEveryDtype) {
  constexpr int64_t kVocab = 50;
  constexpr int64_t kHidden = 33;
  const auto values = normal_values(kVocab * kHidden, 1);
  Tensor f32(DType::kF32, {kVocab, kHidden});
  std::copy(values.begin(), values.end(), f32.as<float>());
  std::vector<int32_t> ids;
  for (int32_t t = 0; t < 40; ++t) ids.push_back((t * 7) % static_cast<int32_t>(kVocab));
  ids.push_back(kVocab - 1);
  OwnedExec owned(2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const Tensor table = convert(f32.view(), dtype);
    const Tensor decoded = convert(table.view(), DType::kF32);
    std::vector<float> y(ids.size() * kHidden);
    embedding_lookup(table.view(), ids, 1.5f, y.data(), owned.exec);
    for (std::size_t t = 0; t < ids.size(); ++t) {
      for (std::size_t j = 0; j < kHidden; ++j) {
        const float stored = decoded.as<float>()[std::size_t(ids[t]) * kHidden + j];
        ASSERT_EQ(y[t * kHidden + j], 1.5f * stored)
            << dtype_name(dtype) << " token " << t << " column " << j;
      }
    }
  }
}

TEST(Embedding, RefusesIdsOutsideTheVocabularyAndOtherDtypes) {
  const Tensor table(DType::kF32, {4, 8});
  float y[8];
  OwnedExec owned(1);
  const auto code = [&](const TensorView& view, int32_t id) {
    try {
      embedding_lookup(view, {&id, 1}, 1, y, owned.exec);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(code(table.view(), 4), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(table.view(), -1), ErrorCode::kInvalidArgument);
  const Tensor integers(DType::kI32, {4, 8});
  EXPECT_EQ(code(integers.view(), 0), ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace lathe
