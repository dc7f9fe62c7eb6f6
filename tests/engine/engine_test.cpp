#include "engine/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>

#include "engine/tiny_engine.h"
#include "formats/expect_error.h"

namespace lathe {
namespace {

// A dozen requests of all kinds, in an order that makes prompts and decoding overlap.
std::vector<Case> mixed_cases() {
  std::vector<Case> cases;
  for (int64_t i = 0; i < 16; ++i) {
    SamplingParams params = greedy(8 + 3 * i % 17);
    if (i % 3 == 1) {
      params.temperature = 0.9;
      params.seed = static_cast<uint64_t>(i);
      params.top_p = 0.95;
    }
    if (i % 5 == 2) params.frequency_penalty = 0.7;
    if (i % 4 == 3) params.top_k = 20;
    cases.push_back({random_prompt(1 + (i * 37) % 90, static_cast<uint64_t>(i)), params});
  }
  return cases;
}

std::vector<Record> run_alone(const std::vector<Case>& cases) {
  std::vector<Record> results;
  for (const Case& c : cases) results.push_back(alone(c.prompt, c.params));
  return results;
}

TEST(Engine, GreedyContinuationIsTheArgmaxOfTheModel) {
  TinyEngine tiny;
  const auto record = submit(tiny.engine, random_prompt(9, 5), greedy(12));
  tiny.run();

  std::vector<int32_t> ids = random_prompt(9, 5);
  SequenceRunner runner(tiny.loaded, 128);
  std::vector<float> logits = runner.feed(ids).logits;
  std::vector<int32_t> expected;
  const auto vocab_size = static_cast<std::size_t>(tiny.loaded.config().vocab_size);
  for (int i = 0; i < 12; ++i) {
    const std::span<const float> last = std::span(logits).last(vocab_size);
    expected.push_back(
        static_cast<int32_t>(std::max_element(last.begin(), last.end()) - last.begin()));
    logits = runner.feed(std::span(expected).last(1)).logits;
  }
  EXPECT_EQ(record->tokens, expected);
  EXPECT_EQ(record->reason, FinishReason::kLength);
  EXPECT_EQ(record->usage.prompt_tokens, 9);
  EXPECT_EQ(record->usage.completion_tokens, 12);
}

TEST(Engine, ARequestInABatchHasTheBitsOfTheRequestAlone) {
  const std::vector<Case> cases = mixed_cases();
  const std::vector<Record> expected = run_alone(cases);
  for (const int num_threads : {1, 3}) {
    TinyEngine tiny(small_options(), num_threads);
    expect_same(run_together(tiny, cases), expected);
  }
}

TEST(Engine, ChunksOfAnySizeGiveTheSameBits) {
  const std::vector<Case> cases = mixed_cases();
  const std::vector<Record> expected = run_alone(cases);
  for (const int64_t chunk : {1, 5, 31, 100}) {
    SCOPED_TRACE(chunk);
    EngineOptions options = small_options();
    options.max_num_seqs = std::min<int64_t>(16, chunk);
    options.max_batch_tokens = chunk;
    options.max_mixed_prefill_tokens = chunk;
    TinyEngine tiny(options);
    expect_same(run_together(tiny, cases), expected);
  }
}

TEST(Engine, PreemptionChangesNothing) {
  const std::vector<Case> cases = mixed_cases();
  const std::vector<Record> expected = run_alone(cases);
  EngineOptions options = small_options();
  options.cache_tokens = 128;  // four blocks: room for the longest sequence and little else
  TinyEngine tiny(options);
  expect_same(run_together(tiny, cases), expected);
  EXPECT_GT(tiny.engine.stats().num_preemptions, 0);
}

// A conversation: every prompt goes on where the last answer ended.
TEST(Engine, SharedPrefixesChangeNothing) {
  for (const int64_t cache_tokens : {16 * 128, 160}) {  // and where entries must go at once
    EngineOptions options = small_options();
    options.prefix_cache = true;
    options.cache_tokens = cache_tokens;
    TinyEngine tiny(options);
    std::vector<int32_t> prompt = random_prompt(20, 1);
    for (int turn = 0; turn < 4; ++turn) {
      SCOPED_TRACE(turn);
      const auto record = submit(tiny.engine, prompt, greedy(10));
      const auto other = submit(tiny.engine, random_prompt(15 + 7 * turn, 9), greedy(5));
      tiny.run();
      EXPECT_TRUE(record->same_as(alone(prompt, greedy(10))));
      EXPECT_TRUE(other->same_as(alone(random_prompt(15 + 7 * turn, 9), greedy(5))));
      if (turn > 0 && cache_tokens > 1000) {
        // All but what the last answer's last token and the new words add.
        EXPECT_EQ(record->usage.cached_tokens, static_cast<int64_t>(prompt.size()) - 6);
      }
      prompt.insert(prompt.end(), record->tokens.begin(), record->tokens.end());
      const std::vector<int32_t> words = random_prompt(5, static_cast<uint64_t>(turn));
      prompt.insert(prompt.end(), words.begin(), words.end());
    }
    EXPECT_GT(tiny.engine.stats().shared_prompt_tokens, 0);
    EXPECT_EQ(tiny.engine.stats().running_cache_blocks, KvBlocks{});
  }
}

TEST(Engine, ARunningSequenceSharesItsPrompt) {
  EngineOptions options = small_options();
  options.prefix_cache = true;
  TinyEngine tiny(options);
  const std::vector<int32_t> prompt = random_prompt(70, 1);
  const auto first = submit(tiny.engine, prompt, greedy(30));
  for (int i = 0; i < 5; ++i) tiny.engine.step();
  SamplingParams params = greedy(20);
  params.temperature = 1;
  const auto second = submit(tiny.engine, prompt, params);
  std::vector<int32_t> part(prompt.begin(), prompt.begin() + 45);
  const auto third = submit(tiny.engine, part, params);
  tiny.run();
  EXPECT_EQ(second->usage.cached_tokens, 69);
  EXPECT_EQ(third->usage.cached_tokens, 44);
  EXPECT_TRUE(first->same_as(alone(prompt, greedy(30))));
  EXPECT_TRUE(second->same_as(alone(prompt, params)));
  EXPECT_TRUE(third->same_as(alone(part, params)));
}

TEST(Engine, PreemptionWithSharedPrefixesChangesNothing) {
  const std::vector<Case> cases = mixed_cases();
  const std::vector<Record> expected = run_alone(cases);
  EngineOptions options = small_options();
  options.prefix_cache = true;
  options.cache_tokens = 128;
  TinyEngine tiny(options);
  for (int round = 0; round < 2; ++round) {
    std::vector<std::shared_ptr<Record>> records;
    for (const Case& c : cases) records.push_back(submit(tiny.engine, c.prompt, c.params));
    tiny.run();
    std::vector<Record> results;
    for (const auto& record : records) results.push_back(*record);
    expect_same(results, expected);
  }
  EXPECT_GT(tiny.engine.stats().num_preemptions, 0);
}

// Callers on other threads, while one runs the steps.
TEST(Engine, RequestsMayComeFromAnyThread) {
  TinyEngine tiny;
  std::atomic<int> open{0};
  std::atomic<bool> all_sent{false};
  std::vector<Record> records(24);
  std::thread loop([&] {
    while (!all_sent || tiny.engine.has_work()) {
      if (!tiny.engine.step()) tiny.engine.wait_for_work(std::chrono::milliseconds(20));
      EXPECT_LE(tiny.engine.stats().num_running, 16);
    }
  });
  std::vector<std::thread> callers;
  for (std::size_t c = 0; c < 3; ++c) {
    callers.emplace_back([&, c] {
      for (std::size_t i = c * 8; i < c * 8 + 8; ++i) {
        Request request;
        request.prompt = random_prompt(5 + static_cast<int64_t>(i), i);
        request.params = greedy(10);
        ++open;
        request.on_output = [&records, &open, i](const RequestOutput& output) {
          Record& record = records[i];
          record.tokens.insert(record.tokens.end(), output.token_ids.begin(),
                               output.token_ids.end());
          record.reason = output.finish_reason;
          if (output.finish_reason) --open;
        };
        const RequestId id = tiny.engine.add_request(std::move(request));
        if (i % 8 == 7) tiny.engine.abort(id);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  all_sent = true;
  loop.join();
  EXPECT_EQ(open, 0);
  for (std::size_t i = 0; i < records.size(); ++i) {
    const Record expected = alone(random_prompt(5 + static_cast<int64_t>(i), i), greedy(10));
    if (i % 8 == 7 && records[i].reason == FinishReason::kAbort) continue;
    EXPECT_EQ(records[i].tokens, expected.tokens) << i;
  }
}

TEST(Engine, TheSeedDecides) {
  SamplingParams params = greedy(20);
  params.temperature = 1.5;
  params.seed = 11;
  const Record first = alone(random_prompt(6, 1), params);
  EXPECT_TRUE(alone(random_prompt(6, 1), params).same_as(first));
  params.seed = 12;
  EXPECT_FALSE(alone(random_prompt(6, 1), params).same_as(first));
}

TEST(Engine, EndTokensEndUnlessIgnored) {
  const Record full = alone(random_prompt(9, 5), greedy(30));
  SamplingParams params = greedy(30);
  params.stop_token_ids = {full.tokens[4]};
  const Record cut = alone(random_prompt(9, 5), params);
  const auto first = std::find(full.tokens.begin(), full.tokens.end(), full.tokens[4]);
  EXPECT_EQ(cut.tokens, std::vector<int32_t>(full.tokens.begin(), first + 1));
  EXPECT_EQ(cut.reason, FinishReason::kStop);
  EXPECT_EQ(cut.usage.completion_tokens, first - full.tokens.begin() + 1);
}

TEST(Engine, StopStringsCutTheText) {
  SamplingParams params = greedy(40);
  params.temperature = 1;
  params.seed = 3;
  const Record full = alone(random_prompt(9, 6), params);
  ASSERT_GT(full.text.size(), 30u);
  // Every piece of the text that begins at a character, as a stop string.
  for (std::size_t begin = 5; begin < 25; begin += 4) {
    for (const std::size_t size : {1u, 2u, 7u}) {
      const std::string stop = full.text.substr(begin, size);
      if (!is_valid_utf8(stop)) continue;
      params.stop = {"never to be seen", stop};
      const Record cut = alone(random_prompt(9, 6), params);
      EXPECT_EQ(cut.text, full.text.substr(0, full.text.find(stop)));
      EXPECT_EQ(cut.reason, FinishReason::kStop);
      EXPECT_LT(cut.tokens.size(), full.tokens.size());
    }
  }
}

TEST(Engine, TextIsThatOfTheTokens) {
  const Record record = alone(random_prompt(9, 6), greedy(40));
  TinyEngine tiny;
  EXPECT_EQ(record.text, tiny.tokenizer.decode(record.tokens, true));
}

TEST(Engine, AbortFreesTheCache) {
  TinyEngine tiny;
  RequestId first = 0;
  RequestId second = 0;
  const auto gone = submit(tiny.engine, random_prompt(80, 1), greedy(40), &first);
  const auto stays = submit(tiny.engine, random_prompt(20, 2), greedy(10), &second);
  for (int i = 0; i < 4; ++i) tiny.engine.step();
  tiny.engine.abort(first);
  tiny.engine.abort(12345);  // unknown: nothing happens
  tiny.engine.step();
  EXPECT_EQ(gone->reason, FinishReason::kAbort);
  tiny.run();
  EXPECT_EQ(stays->reason, FinishReason::kLength);
  EXPECT_TRUE(stays->same_as(alone(random_prompt(20, 2), greedy(10))));
  EXPECT_TRUE(tiny.cache_is_empty());
  EXPECT_FALSE(tiny.engine.has_work());
  EXPECT_FALSE(tiny.engine.step());
}

TEST(Engine, AWaitingRequestCanBeAborted) {
  EngineOptions options = small_options();
  options.max_num_seqs = 1;
  TinyEngine tiny(options);
  RequestId second = 0;
  const auto runs = submit(tiny.engine, random_prompt(5, 1), greedy(5));
  const auto waits = submit(tiny.engine, random_prompt(5, 2), greedy(5), &second);
  tiny.engine.step();
  tiny.engine.abort(second);
  tiny.run();
  EXPECT_EQ(waits->reason, FinishReason::kAbort);
  EXPECT_TRUE(waits->tokens.empty());
  EXPECT_EQ(runs->reason, FinishReason::kLength);
}

TEST(Engine, BadRequestsFailAlone) {
  TinyEngine tiny;
  const auto good = submit(tiny.engine, random_prompt(10, 1), greedy(10));
  tiny.engine.step();
  const auto refuses = [&](std::vector<int32_t> prompt, const SamplingParams& params,
                           const std::string& part) {
    expect_error(ErrorCode::kInvalidArgument, part, [&] {
      Request request;
      request.prompt = std::move(prompt);
      request.params = params;
      tiny.engine.add_request(std::move(request));
    });
  };
  refuses({}, greedy(1), "prompt is empty");
  refuses({1, -1}, greedy(1), "token -1");
  refuses({1, 320}, greedy(1), "token 320");
  refuses(random_prompt(128, 1), greedy(1), "128 tokens");
  SamplingParams hot = greedy(1);
  hot.temperature = -1;
  refuses({1}, hot, "temperature is -1");
  tiny.run();
  EXPECT_TRUE(good->same_as(alone(random_prompt(10, 1), greedy(10))));
}

TEST(Engine, TheContextEndsAGeneration) {
  const Record record = alone(random_prompt(100, 3), greedy(-1));
  EXPECT_EQ(record.reason, FinishReason::kLength);
  EXPECT_EQ(record.usage.completion_tokens, 28);  // 128 positions
}

// A grammar that forbids everything makes a row without a choice: that request fails, not its
// neighbours.
TEST(Engine, AFailingRowFailsItsRequestOnly) {
  struct AllowsNothing : TokenConstraint {
    void allowed_tokens(std::span<uint64_t>) override {}
    void accept(int32_t) override {}
    void rollback(int64_t) override {}
  };
  TinyEngine tiny;
  const auto good = submit(tiny.engine, random_prompt(10, 1), greedy(10));
  Record bad;
  Request request;
  request.prompt = {1, 2, 3};
  request.constraint = std::make_unique<AllowsNothing>();
  request.on_output = [&](const RequestOutput& output) {
    bad.reason = output.finish_reason;
    bad.error = output.error->what();
  };
  tiny.engine.add_request(std::move(request));
  tiny.run();
  EXPECT_EQ(bad.reason, FinishReason::kError);
  EXPECT_NE(bad.error.find("not finite"), std::string::npos) << bad.error;
  EXPECT_TRUE(good->same_as(alone(random_prompt(10, 1), greedy(10))));
  EXPECT_TRUE(tiny.cache_is_empty());
}

TEST(Engine, ACallbackThatThrowsEndsItsRequest) {
  TinyEngine tiny;
  int calls = 0;
  Request request;
  request.prompt = {1, 2, 3};
  request.on_output = [&](const RequestOutput&) {
    ++calls;
    throw std::runtime_error("the client is gone");
  };
  tiny.engine.add_request(std::move(request));
  tiny.run();
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(tiny.cache_is_empty());
}

TEST(Engine, ConstraintsRuleTheChoice) {
  // Only multiples of three, in increasing order.
  struct Increasing : TokenConstraint {
    std::vector<int32_t> accepted;
    int32_t last = -1;
    void allowed_tokens(std::span<uint64_t> words) override {
      std::fill(words.begin(), words.end(), uint64_t{0});
      for (int32_t t = 0; t < 320; t += 3) {
        if (t > last) words[static_cast<std::size_t>(t / 64)] |= uint64_t{1} << (t % 64);
      }
    }
    void accept(int32_t token) override {
      last = token;
      accepted.push_back(token);
    }
    void rollback(int64_t n) override {
      accepted.resize(accepted.size() - static_cast<std::size_t>(n));
      last = accepted.empty() ? -1 : accepted.back();
    }
  };
  for (const double temperature : {0.0, 2.0}) {
    TinyEngine tiny;
    std::vector<int32_t> tokens;
    Request request;
    request.prompt = {1, 2, 3};
    request.params = greedy(3);
    request.params.temperature = temperature;
    request.constraint = std::make_unique<Increasing>();
    request.on_output = [&](const RequestOutput& output) {
      tokens.insert(tokens.end(), output.token_ids.begin(), output.token_ids.end());
    };
    tiny.engine.add_request(std::move(request));
    tiny.run();
    ASSERT_EQ(tokens.size(), 3u);
    int32_t last = -1;
    for (const int32_t token : tokens) {
      EXPECT_EQ(token % 3, 0);
      EXPECT_GT(token, last);
      last = token;
    }
  }
}

TEST(Generate, StreamsTheTextAndStopsOnDemand) {
  TinyEngine tiny;
  std::string streamed;
  const Generation whole =
      generate(tiny.engine, random_prompt(9, 6), greedy(30), [&](std::string_view text) {
        streamed += text;
        return true;
      });
  EXPECT_EQ(whole.text, streamed);
  EXPECT_EQ(whole.token_ids.size(), 30u);
  int calls = 0;
  const Generation cut = generate(tiny.engine, random_prompt(9, 6), greedy(30),
                                  [&](std::string_view) { return ++calls < 3; });
  EXPECT_EQ(cut.finish_reason, FinishReason::kAbort);
  EXPECT_EQ(whole.text.substr(0, cut.text.size()), cut.text);
  expect_error(ErrorCode::kInvalidArgument, "top_p", [&] {
    SamplingParams params;
    params.top_p = std::numeric_limits<double>::quiet_NaN();
    generate(tiny.engine, {1}, params);
  });
}

// Standard output closed, a client gone: what the callback throws must come out, not hang.
TEST(Generate, EndsWithWhatItsCallbackThrows) {
  TinyEngine tiny;
  expect_error(ErrorCode::kIo, "cannot write", [&] {
    generate(tiny.engine, random_prompt(9, 6), greedy(30),
             [&](std::string_view) -> bool { fail(ErrorCode::kIo, "cannot write"); });
  });
  EXPECT_FALSE(tiny.engine.has_work());
  const auto again = generate(tiny.engine, random_prompt(9, 6), greedy(5), nullptr);
  EXPECT_EQ(again.token_ids.size(), 5u);
}

}  // namespace
}  // namespace lathe
