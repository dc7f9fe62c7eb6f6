// step() allocates nothing after warm-up in steps in which no request arrives or ends.
#include <gtest/gtest.h>

#include "engine/tiny_engine.h"
#include "support/counting_allocator.h"

namespace lathe {
namespace {

TEST(Allocation, TheCounterCounts) {
  if (!counting_allocator_available()) GTEST_SKIP() << "a sanitizer has its own allocator";
  const int64_t before = num_allocations();
  auto* volatile p = new std::vector<int>(100);
  delete p;
  Buffer buffer(100);
  EXPECT_EQ(num_allocations(), before + 3);
}

TEST(Allocation, StepsInWhichNothingArrivesOrEndsDoNotAllocate) {
  if (!counting_allocator_available()) GTEST_SKIP() << "a sanitizer has its own allocator";
  for (const char* name : {"qwen2-tied-mqa", "gemma3-sliding-global"}) {
    EngineOptions options = small_options();
    options.cache_tokens = 12 * 32;  // tight, so that steps preempt and compute again
    TinyEngine tiny(options, 2, name);
    for (const bool warm_up : {true, false}) {
      std::vector<std::shared_ptr<int>> ended;
      for (int i = 0; i < 8; ++i) {
        SamplingParams params = greedy(60);
        params.ignore_eos = true;
        params.temperature = i % 2;
        params.top_p = 0.9;
        params.top_k = i % 3 == 0 ? 0 : 20;
        params.frequency_penalty = i % 4 == 0 ? 0.5 : 0;
        params.stop = {"no such text will come"};
        Request request;
        request.prompt = random_prompt(10 + 5 * i, static_cast<uint64_t>(i));
        request.params = params;
        request.on_output = [](const RequestOutput&) {};
        tiny.engine.add_request(std::move(request));
      }
      if (warm_up) {
        tiny.run();
        continue;
      }
      tiny.engine.step();  // takes the requests up
      const int64_t generated = tiny.engine.stats().generated_tokens;
      const int64_t before = num_allocations();
      for (int i = 0; i < 40; ++i) tiny.engine.step();
      EXPECT_EQ(num_allocations(), before) << name;
      EXPECT_EQ(tiny.engine.stats().num_running + tiny.engine.stats().num_waiting, 8)
          << "a request ended; the test must be shorter";
      EXPECT_GT(tiny.engine.stats().generated_tokens, generated);
    }
    EXPECT_GT(tiny.engine.stats().num_preemptions, 0);
  }
}

}  // namespace
}  // namespace lathe
