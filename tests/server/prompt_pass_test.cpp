#include "engine/prompt_pass.h"

#include <gtest/gtest.h>

#include "engine/logits.h"
#include "formats/expect_error.h"
#include "model/model_runner.h"
#include "server/served_tiny.h"

namespace lathe {
namespace {

std::shared_ptr<PromptPassJob> job_of(std::vector<int32_t> tokens, PromptPassJob::Wants wants,
                                      std::optional<PromptPassResult>& result) {
  auto job = std::make_shared<PromptPassJob>();
  job->tokens = std::move(tokens);
  job->wants = wants;
  job->num_top = 3;
  job->on_done = [&result](PromptPassResult done) { result = std::move(done); };
  job->on_error = [](const Error& error) { ADD_FAILURE() << error.what(); };
  return job;
}

// In chunks of any size, what one forward pass over everything gives.
TEST(PromptPass, EqualsOneForwardPass) {
  LoadedModel loaded(golden_path("tiny/qwen2-tied-mqa"));
  const std::vector<int32_t> tokens = random_prompt(50, 3);
  const auto vocab_size = static_cast<std::size_t>(loaded.config().vocab_size);
  const auto hidden_size = static_cast<std::size_t>(loaded.config().hidden_size);
  const SequenceRunner::Result whole = SequenceRunner(loaded, 64).feed(tokens);
  for (const int64_t rows : {1, 7, 64}) {
    PromptPass pass(*loaded.model, KvFormat::kF32, 64, loaded.owned.exec);
    std::optional<PromptPassResult> last, mean, logprobs;
    pass.add(job_of(tokens, PromptPassJob::Wants::kLast, last));
    pass.add(job_of(tokens, PromptPassJob::Wants::kMean, mean));
    pass.add(job_of(tokens, PromptPassJob::Wants::kLogprobs, logprobs));
    while (pass.step(rows)) {
    }
    EXPECT_FALSE(pass.has_work());
    ASSERT_TRUE(last && mean && logprobs);
    for (std::size_t j = 0; j < hidden_size; ++j) {
      // The same bits: rows do not depend on each other.
      EXPECT_EQ(last->hidden[j], whole.hidden[49 * hidden_size + j]);
      double sum = 0;
      for (std::size_t i = 0; i < 50; ++i)
        sum += static_cast<double>(whole.hidden[i * hidden_size + j]);
      EXPECT_EQ(mean->hidden[j], static_cast<float>(sum / 50));
    }
    ASSERT_EQ(logprobs->logprobs.size(), 49u);
    for (std::size_t i = 0; i < 49; ++i) {
      const std::span<const float> logits(whole.logits.data() + i * vocab_size, vocab_size);
      const double log_sum = log_sum_exp(logits);
      EXPECT_EQ(
          logprobs->logprobs[i],
          static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(tokens[i + 1])]) -
                             log_sum));
      ASSERT_EQ(logprobs->top[i].size(), 3u);
      EXPECT_EQ(logprobs->top[i][0].token, argmax(logits));
      EXPECT_GE(logprobs->top[i][0].logprob, logprobs->top[i][1].logprob);
      EXPECT_GE(logprobs->top[i][1].logprob, logprobs->top[i][2].logprob);
    }
  }
}

TEST(PromptPass, RefusesAndCancels) {
  LoadedModel loaded(golden_path("tiny/qwen2-tied-mqa"));
  PromptPass pass(*loaded.model, KvFormat::kF32, 64, loaded.owned.exec);
  std::optional<PromptPassResult> result, after;
  expect_error(ErrorCode::kInvalidArgument, "empty",
               [&] { pass.add(job_of({}, PromptPassJob::Wants::kLast, result)); });
  expect_error(ErrorCode::kInvalidArgument, "at most 64", [&] {
    pass.add(job_of(random_prompt(65, 1), PromptPassJob::Wants::kLast, result));
  });
  expect_error(ErrorCode::kInvalidArgument, "token -1",
               [&] { pass.add(job_of({-1}, PromptPassJob::Wants::kLast, result)); });
  auto job = job_of(random_prompt(64, 1), PromptPassJob::Wants::kLast, result);
  pass.add(job);
  pass.add(job_of(random_prompt(64, 2), PromptPassJob::Wants::kLast, after));
  EXPECT_TRUE(pass.step(10));
  job->canceled = true;
  while (pass.step(10)) {
  }
  EXPECT_FALSE(result.has_value());
  EXPECT_TRUE(after.has_value());
}

}  // namespace
}  // namespace lathe
