// The router's choice on the GPU against model/moe.h, and the rows' way to the experts and back.
#include "kernels/moe/moe_cuda.h"

#include <cfloat>
#include <cmath>

#include "base/error.h"
#include "model/moe.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

struct Choice {
  std::vector<int32_t> offsets;
  std::vector<int32_t> rows;
  std::vector<float> weights;
  std::vector<int32_t> entries;
};

Choice choose_on_gpu(const std::vector<float>& scores, int64_t num_rows, int64_t num_experts,
                     int64_t per_token, bool normalize) {
  DeviceArray<float> device_scores(scores);
  DeviceArray<int32_t> chosen(num_rows * per_token);
  DeviceArray<float> chosen_weights(num_rows * per_token);
  DeviceArray<int32_t> offsets(num_experts + 1);
  DeviceArray<int32_t> rows(num_rows * per_token);
  DeviceArray<float> weights(num_rows * per_token);
  DeviceArray<int32_t> entries(num_rows * per_token);
  ChooseExpertsCudaArgs args;
  args.scores = device_scores.data();
  args.num_rows = num_rows;
  args.num_experts = num_experts;
  args.experts_per_token = per_token;
  args.normalize = normalize;
  args.chosen = chosen.data();
  args.chosen_weights = chosen_weights.data();
  args.out = {offsets.data(), rows.data(), weights.data(), entries.data()};
  choose_experts_cuda(args, nullptr);
  return {offsets.host(), rows.host(), weights.host(), entries.host()};
}

TEST(MoeCuda, ChoosesTheExpertsOfTheReference) {
  LATHE_NEEDS_GPU();
  for (const int64_t num_experts : {1, 8, 60, 128, 1024}) {
    for (const int64_t per_token : {1, 2, 8}) {
      if (per_token > num_experts) continue;
      for (const int64_t num_rows : {1, 3, 2500}) {
        for (const bool normalize : {false, true}) {
          SCOPED_TRACE(testing::Message() << per_token << " of " << num_experts << ", " << num_rows
                                          << " rows, normalize " << normalize);
          auto scores = normal_values(num_rows * num_experts, 7);
          if (num_rows > 2) {
            std::fill(scores.begin(), scores.begin() + num_experts, 0.5f);  // a tie of all
            scores[static_cast<std::size_t>(num_experts)] = std::nanf("");  // a row of NaNs
          }
          OwnedExec machine(1);
          ModelConfig config;
          config.num_experts = num_experts;
          config.num_experts_per_token = per_token;
          config.norm_topk_prob = normalize;
          auto probabilities = scores;
          const ExpertRows expected =
              choose_experts(config, probabilities.data(), num_rows, machine.exec);
          const Choice actual = choose_on_gpu(scores, num_rows, num_experts, per_token, normalize);
          for (int64_t e = 0; e <= num_experts; ++e) {
            ASSERT_EQ(actual.offsets[static_cast<std::size_t>(e)], expected.offsets[e]) << e;
          }
          const auto num_entries = static_cast<std::size_t>(num_rows * per_token);
          const std::vector<int32_t> expected_rows(expected.rows, expected.rows + num_entries);
          ASSERT_EQ(actual.rows, expected_rows);
          // Sums of num_experts positive terms in two orders, exp of 2 ulp on either side.
          const float rel = (static_cast<float>(num_experts) + 8) * FLT_EPSILON;
          for (std::size_t i = 0; i < num_entries; ++i) {
            if (std::isnan(expected.weights[i])) {
              ASSERT_TRUE(std::isnan(actual.weights[i]));
            } else {
              ASSERT_NEAR(actual.weights[i], expected.weights[i], rel * expected.weights[i]);
            }
          }
          // The entries of a row belong to it, in order of expert.
          for (std::size_t i = 0; i < num_entries; ++i) {
            const auto row = static_cast<int32_t>(i / static_cast<std::size_t>(per_token));
            ASSERT_EQ(actual.rows[static_cast<std::size_t>(actual.entries[i])], row);
            if (i % static_cast<std::size_t>(per_token) != 0) {
              ASSERT_GT(actual.entries[i], actual.entries[i - 1]);
            }
          }
        }
      }
    }
  }
}

TEST(MoeCuda, GathersRowsAndAddsThemUpAgain) {
  LATHE_NEEDS_GPU();
  constexpr int64_t kRows = 37, kExperts = 16, kPerToken = 4;
  for (const int64_t hidden_size : {8, 1032, 2048}) {
    for (const CudaElement element : {CudaElement::kF32, CudaElement::kBF16}) {
      SCOPED_TRACE(testing::Message() << hidden_size << " " << static_cast<int>(element));
      const Choice choice =
          choose_on_gpu(normal_values(kRows * kExperts, 8), kRows, kExperts, kPerToken, true);
      const auto x = from_bf16(to_bf16(normal_values(kRows * hidden_size, 9)));
      const bool is_f32 = element == CudaElement::kF32;
      DeviceArray<float> x_f32(x), gathered_f32(kRows * kPerToken * hidden_size);
      DeviceArray<uint16_t> x_bf16(to_bf16(x)), gathered_bf16(kRows * kPerToken * hidden_size);
      DeviceArray<int32_t> rows(choice.rows), entries(choice.entries);
      DeviceArray<float> weights(choice.weights);
      DeviceArray<float> scales(normal_values(kRows, 10)), gathered_scales(kRows * kPerToken);
      GatherRowsCudaArgs gather;
      gather.from = is_f32 ? static_cast<void*>(x_f32.data()) : x_bf16.data();
      gather.to = is_f32 ? static_cast<void*>(gathered_f32.data()) : gathered_bf16.data();
      gather.row_bytes = hidden_size * (is_f32 ? 4 : 2);
      gather.rows = rows.data();
      gather.count = kRows * kPerToken;
      gather.from_scales = scales.data();
      gather.to_scales = gathered_scales.data();
      gather_rows_cuda(gather, nullptr);
      const auto gathered = is_f32 ? gathered_f32.host() : from_bf16(gathered_bf16.host());
      const auto all_scales = scales.host();
      const auto new_scales = gathered_scales.host();
      for (std::size_t i = 0; i < gathered.size(); ++i) {
        const auto entry = i / static_cast<std::size_t>(hidden_size);
        const auto row = static_cast<std::size_t>(choice.rows[entry]);
        ASSERT_EQ(gathered[i], x[row * static_cast<std::size_t>(hidden_size) +
                                 i % static_cast<std::size_t>(hidden_size)]);
        ASSERT_EQ(new_scales[entry], all_scales[row]);
      }

      DeviceArray<float> y_f32(kRows * hidden_size);
      DeviceArray<uint16_t> y_bf16(kRows * hidden_size);
      CombineExpertsCudaArgs combine;
      combine.results = gather.to;
      combine.element = element;
      combine.weights = weights.data();
      combine.entries = entries.data();
      combine.num_rows = kRows;
      combine.experts_per_token = kPerToken;
      combine.hidden_size = hidden_size;
      combine.y = is_f32 ? static_cast<void*>(y_f32.data()) : y_bf16.data();
      combine_experts_cuda(combine, nullptr);
      const auto y = is_f32 ? y_f32.host() : from_bf16(y_bf16.host());
      for (std::size_t i = 0; i < y.size(); ++i) {
        const auto row = i / static_cast<std::size_t>(hidden_size);
        float sum = 0;
        for (std::size_t j = 0; j < kPerToken; ++j) {
          const auto entry = static_cast<std::size_t>(choice.entries[row * kPerToken + j]);
          sum += choice.weights[entry] * x[i];
        }
        ASSERT_EQ(y[i], is_f32 ? sum : float_from_bf16(bf16_from_float(sum))) << i;
      }
    }
  }
}

TEST(MoeCuda, RejectsWhatDoesNotFit) {
  ChooseExpertsCudaArgs choose;
  choose.num_experts = 4;
  choose.experts_per_token = 5;
  EXPECT_THROW(choose_experts_cuda(choose, nullptr), Error);
  choose.num_experts = kMaxExperts + 1;
  EXPECT_THROW(choose_experts_cuda(choose, nullptr), Error);
  GatherRowsCudaArgs gather;
  gather.row_bytes = 24;
  EXPECT_THROW(gather_rows_cuda(gather, nullptr), Error);
  CombineExpertsCudaArgs combine;
  combine.experts_per_token = 2;
  combine.hidden_size = 12;
  EXPECT_THROW(combine_experts_cuda(combine, nullptr), Error);
}

}  // namespace
}  // namespace lathe
