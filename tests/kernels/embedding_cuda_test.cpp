#include "kernels/embedding/embedding_cuda.h"

#include <cfloat>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/activation/softcap_cuda.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

TEST(EmbeddingCuda, ReadsTheRowsOfTheTokens) {
  LATHE_NEEDS_GPU();
  constexpr int64_t kVocab = 50;
  const std::vector<int32_t> ids = {49, 0, 7, 7, 50, 3, -1};  // two outside the vocabulary
  DeviceArray<int32_t> device_ids(ids);
  for (const int64_t hidden_size : {8, 576, 1024, 5120}) {
    for (const CudaElement element : {CudaElement::kF32, CudaElement::kBF16}) {
      SCOPED_TRACE(testing::Message() << hidden_size << " " << static_cast<int>(element));
      const auto table = from_bf16(to_bf16(normal_values(kVocab * hidden_size, 1)));
      DeviceArray<float> f32(table);
      DeviceArray<uint16_t> bf16(to_bf16(table));
      DeviceArray<float> hidden(static_cast<int64_t>(ids.size()) * hidden_size);
      EmbeddingCudaArgs args;
      args.table = element == CudaElement::kF32 ? static_cast<const void*>(f32.data())
                                                : static_cast<const void*>(bf16.data());
      args.element = element;
      args.vocab_size = kVocab;
      args.hidden_size = hidden_size;
      args.token_ids = device_ids.data();
      args.num_tokens = static_cast<int64_t>(ids.size());
      args.scale = 1.7f;
      args.hidden = hidden.data();
      embedding_lookup_cuda(args, nullptr);
      const auto actual = hidden.host();
      for (std::size_t i = 0; i < actual.size(); ++i) {
        const int64_t id = ids[i / static_cast<std::size_t>(hidden_size)];
        if (id < 0 || id >= kVocab) {
          ASSERT_TRUE(std::isnan(actual[i])) << i;
          continue;
        }
        const auto column = static_cast<int64_t>(i) % hidden_size;
        ASSERT_EQ(actual[i], 1.7f * table[static_cast<std::size_t>(id * hidden_size + column)]);
      }
    }
  }
}

TEST(EmbeddingCuda, RejectsWhatDoesNotFit) {
  EmbeddingCudaArgs args;
  args.vocab_size = 10;
  args.hidden_size = 12;
  EXPECT_THROW(embedding_lookup_cuda(args, nullptr), Error);
  args.hidden_size = 16;
  embedding_lookup_cuda(args, nullptr);  // no tokens: nothing to do
  args.num_tokens = 1;
  args.element = CudaElement::kE4M3;
  EXPECT_THROW(embedding_lookup_cuda(args, nullptr), Error);
}

TEST(SoftcapCuda, CapsInPlace) {
  LATHE_NEEDS_GPU();
  for (const int64_t count : {1, 1000, 128256}) {
    auto x = normal_values(count, 2, 40);
    x[0] = std::numeric_limits<float>::infinity();
    DeviceArray<float> device(x);
    softcap_cuda(device.data(), count, 30.0f, nullptr);
    const auto actual = device.host();
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = 30.0 * std::tanh(double{x[i]} / 30.0);
      // Two ulp of tanhf(), half of one each for the quotient and the product.
      ASSERT_NEAR(actual[i], expected, 3 * FLT_EPSILON * std::fabs(expected)) << x[i];
    }
    DeviceArray<float> unchanged(x);
    softcap_cuda(unchanged.data(), count, 0.0f, nullptr);
    EXPECT_TRUE(same_bits(unchanged.host(), x));
  }
  EXPECT_THROW(softcap_cuda(nullptr, 1, -1.0f, nullptr), Error);
}

}  // namespace
}  // namespace lathe
