#include "server/choices.h"

#include <gtest/gtest.h>

#include "formats/expect_error.h"
#include "server/served_tiny.h"

namespace lathe {
namespace {

ChoicesRequest request_of(int64_t n, int64_t max_tokens) {
  ChoicesRequest request;
  request.prompts = {random_prompt(40, 1)};
  request.n = n;
  request.params = greedy(max_tokens);
  request.params.logprobs = -1;
  request.params.ignore_eos = true;
  return request;
}

// With the prefix cache off, running sequences still share: the prompt is computed once.
TEST(Choices, FollowersShareTheFirstOnesPrompt) {
  EngineOptions options = small_options();
  options.prefix_cache = true;
  TinyApi api(options);
  Choices choices(api.runner, api.metrics, request_of(4, 20), api.client, std::nullopt);
  ChoiceNews news;
  int64_t tokens = 0;
  while (choices.next(news) == Choices::Wait::kNews) tokens += news.num_tokens;
  EXPECT_EQ(tokens, 80);
  EXPECT_EQ(choices.usage().completion_tokens, 80);
  EXPECT_EQ(choices.usage().prompt_tokens, 40);
  // Three of them took all but the last token from the first.
  EXPECT_EQ(api.tiny.engine.stats().shared_prompt_tokens, 3 * 39);
  EXPECT_EQ(api.metrics.choices_started.value(), 4);
}

TEST(Choices, ErrorsAtTheStartLeaveNothingBehind) {
  TinyApi api;
  ChoicesRequest request = request_of(2, 5);
  request.prompts.push_back({-1});
  expect_error(ErrorCode::kInvalidArgument, "token -1", [&] {
    Choices choices(api.runner, api.metrics, std::move(request), api.client, std::nullopt);
  });
  EXPECT_TRUE(eventually([&] { return !api.tiny.engine.has_work(); }));
  EXPECT_TRUE(api.tiny.cache_is_empty());
}

TEST(Choices, GoneClientsAndDeadlinesAbort) {
  EngineOptions options = small_options();
  options.cache_tokens = 16 * 1024;
  TinyApi api(options);
  {
    Choices choices(api.runner, api.metrics, request_of(2, 400), api.client, std::nullopt);
    ChoiceNews news;
    ASSERT_EQ(choices.next(news), Choices::Wait::kNews);
    api.client.gone = true;
    Choices::Wait wait = Choices::Wait::kNews;
    while (wait == Choices::Wait::kNews) wait = choices.next(news);
    EXPECT_EQ(wait, Choices::Wait::kClientGone);
    EXPECT_TRUE(eventually([&] { return api.tiny.engine.stats().num_running == 0; }));
  }
  api.client.gone = false;
  Choices late(api.runner, api.metrics, request_of(1, 400), api.client, Choices::Clock::now());
  ChoiceNews news;
  Choices::Wait wait = Choices::Wait::kNews;
  while (wait == Choices::Wait::kNews) wait = late.next(news);
  EXPECT_EQ(wait, Choices::Wait::kTimeout);
  EXPECT_TRUE(eventually([&] { return !api.tiny.engine.has_work(); }));
}

// Followers that never start are given back with the rest (LeakSanitizer sees it when not).
TEST(Choices, LeavingBeforeTheFirstTokenStartsNoFollowers) {
  TinyApi api;
  api.client.gone = true;
  for (int i = 0; i < 20; ++i) {
    Choices choices(api.runner, api.metrics, request_of(5, 10), api.client, std::nullopt);
  }
  EXPECT_TRUE(eventually([&] { return !api.tiny.engine.has_work(); }));
  const std::string text = api.metrics.text(api.tiny.engine.stats(), {}, kBlockSize);
  EXPECT_NE(text.find("lathe_choices_open{engine=\"0\",model_name=\"tiny\"} 0\n"),
            std::string::npos);
}

// Many at once, some left in the middle: every choice ends under one reason, all blocks come back.
TEST(Choices, CountersAddUpUnderLoad) {
  EngineOptions options = small_options();
  options.cache_tokens = 16 * 64;  // too small for all: some are preempted
  TinyApi api(options, {}, /*max_queue=*/1000);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 15; ++i) {
        FakeClient client;
        ChoicesRequest request = request_of(1 + i % 3, 5 + i);
        request.prompts = {random_prompt(5 + i, static_cast<uint64_t>(t * 100 + i))};
        Choices choices(api.runner, api.metrics, std::move(request), client, std::nullopt);
        ChoiceNews news;
        int count = 0;
        while (choices.next(news) == Choices::Wait::kNews) {
          if (i % 4 == 3 && ++count == 4) break;  // the destructor aborts
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(eventually([&] { return !api.tiny.engine.has_work(); }));
  EXPECT_TRUE(api.tiny.cache_is_empty());
  const std::string text = api.metrics.text(api.tiny.engine.stats(), {}, kBlockSize);
  EXPECT_NE(text.find("lathe_choices_open{engine=\"0\",model_name=\"tiny\"} 0\n"),
            std::string::npos)
      << text;
}

}  // namespace
}  // namespace lathe
