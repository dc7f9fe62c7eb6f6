// step() allocates nothing after warm-up in steps in which no request arrives or ends. Every malloc
// and operator new of the program goes through the counters below.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>

#include "engine/tiny_engine.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LATHE_COUNTS_ALLOCATIONS 0
#else
#define LATHE_COUNTS_ALLOCATIONS 1
#endif

namespace {
std::atomic<bool> counting{false};
std::atomic<int64_t> num_allocations{0};
[[maybe_unused]] void count() {
  if (counting.load(std::memory_order_relaxed)) ++num_allocations;
}
}  // namespace

#if LATHE_COUNTS_ALLOCATIONS
// glibc lets a program define these; its own remain under the __libc names.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void __libc_free(void*);

void* malloc(std::size_t size) {
  count();
  return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) {
  count();
  return __libc_calloc(n, size);
}
void* realloc(void* p, std::size_t size) {
  count();
  return __libc_realloc(p, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** p, std::size_t alignment, std::size_t size) {
  count();
  *p = __libc_memalign(alignment, size);
  return *p == nullptr ? ENOMEM : 0;
}
void free(void* p) { __libc_free(p); }
}
#endif

namespace lathe {
namespace {

TEST(Allocation, TheCounterCounts) {
  if (!LATHE_COUNTS_ALLOCATIONS) GTEST_SKIP() << "sanitizers own malloc";
  counting = true;
  auto* volatile p = new std::vector<int>(100);
  delete p;
  Buffer buffer(100);
  counting = false;
  EXPECT_GE(num_allocations.exchange(0), 3);
}

TEST(Allocation, StepsInWhichNothingArrivesOrEndsDoNotAllocate) {
  if (!LATHE_COUNTS_ALLOCATIONS) GTEST_SKIP() << "sanitizers own malloc";
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
      counting = true;
      for (int i = 0; i < 40; ++i) tiny.engine.step();
      counting = false;
      EXPECT_EQ(num_allocations.exchange(0), 0) << name;
      EXPECT_EQ(tiny.engine.stats().num_running + tiny.engine.stats().num_waiting, 8)
          << "a request ended; the test must be shorter";
      EXPECT_GT(tiny.engine.stats().generated_tokens, generated);
    }
    EXPECT_GT(tiny.engine.stats().num_preemptions, 0);
  }
}

}  // namespace
}  // namespace lathe
