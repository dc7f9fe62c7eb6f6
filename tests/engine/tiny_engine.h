// An engine on a committed tiny model (random weights), and requests to it that remember what came
// out.
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/rng.h"
#include "engine/engine.h"
#include "engine/generate.h"
#include "model/model_runner.h"
#include "support/shared_data.h"
#include "text/unicode.h"

namespace lathe {

// Token i < 256 is byte i; the others have names.
inline Tokenizer byte_tokenizer(int64_t vocab_size) {
  TokenizerSpec spec;
  for (int64_t i = 0; i < vocab_size; ++i) {
    const char byte = static_cast<char>(i);
    spec.tokens.push_back(i < 256 ? bytes_to_byte_level({&byte, 1})
                                  : "<t" + std::to_string(i) + ">");
  }
  spec.in_model.assign(static_cast<std::size_t>(vocab_size), true);
  spec.byte_level = true;
  spec.decoder.byte_level = true;
  return Tokenizer(std::move(spec));
}

inline EngineOptions small_options() {
  EngineOptions options;
  options.max_num_seqs = 16;
  options.max_batch_tokens = 64;
  options.max_mixed_prefill_tokens = 32;
  options.cache_tokens = 16 * 128;
  options.kv_format = KvFormat::kF32;
  options.prefix_cache = false;
  return options;
}

struct TinyEngine {
  explicit TinyEngine(const EngineOptions& wanted = small_options(), int num_threads = 2,
                      const char* name = "qwen2-tied-mqa")
      : TinyEngine(wanted, Checkpoint::open(golden_path(std::string("tiny/") + name)),
                   num_threads) {}
  TinyEngine(const EngineOptions& wanted, std::unique_ptr<Checkpoint> checkpoint, int num_threads)
      : loaded(std::move(checkpoint), num_threads),
        tokenizer(byte_tokenizer(loaded.config().vocab_size)),
        options(resolve(wanted, loaded.config())),
        engine(*loaded.model, make_engine_cache(*loaded.model, options), &tokenizer, options,
               loaded.owned.exec) {}

  void run() {
    while (engine.has_work()) engine.step();
  }
  // Everything was given back.
  bool cache_is_empty() const {
    return engine.stats().free_cache_blocks == engine.stats().cache_blocks;
  }

  LoadedModel loaded;
  Tokenizer tokenizer;
  EngineOptions options;
  Engine engine;
};

// What a request produced.
struct Record {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::string text;
  std::optional<FinishReason> reason;
  std::string error;
  Usage usage;
  int64_t num_outputs = 0;

  bool same_as(const Record& other) const {
    return tokens == other.tokens && same_bits(logprobs, other.logprobs) && text == other.text &&
           reason == other.reason;
  }
};

inline std::vector<int32_t> random_prompt(int64_t size, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> prompt;
  for (int64_t i = 0; i < size; ++i) prompt.push_back(static_cast<int32_t>(rng.below(256)));
  return prompt;
}

inline SamplingParams greedy(int64_t max_tokens) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = max_tokens;
  params.logprobs = 2;
  return params;
}

inline std::shared_ptr<Record> submit(Engine& engine, std::vector<int32_t> prompt,
                                      const SamplingParams& params, RequestId* id = nullptr) {
  auto record = std::make_shared<Record>();
  Request request;
  request.prompt = std::move(prompt);
  request.params = params;
  request.on_output = [record](const RequestOutput& output) {
    EXPECT_FALSE(record->reason.has_value()) << "an output behind the last one";
    record->tokens.insert(record->tokens.end(), output.token_ids.begin(), output.token_ids.end());
    for (const SampledToken& token : output.logprobs) record->logprobs.push_back(token.logprob);
    record->text += output.text;
    record->reason = output.finish_reason;
    if (output.error != nullptr) record->error = output.error->what();
    record->usage = output.usage;
    ++record->num_outputs;
  };
  const RequestId given = engine.add_request(std::move(request));
  if (id != nullptr) *id = given;
  return record;
}

// The same request in an engine of its own.
inline Record alone(const std::vector<int32_t>& prompt, const SamplingParams& params) {
  TinyEngine tiny;
  const auto record = submit(tiny.engine, prompt, params);
  tiny.run();
  return *record;
}

struct Case {
  std::vector<int32_t> prompt;
  SamplingParams params;
};

// Some are added while others already run, so that prompts and decoding overlap.
inline std::vector<Record> run_together(TinyEngine& tiny, const std::vector<Case>& cases) {
  std::vector<std::shared_ptr<Record>> records;
  for (const Case& c : cases) {
    records.push_back(submit(tiny.engine, c.prompt, c.params));
    if (records.size() % 3 == 0) tiny.engine.step();
  }
  tiny.run();
  EXPECT_TRUE(tiny.options.prefix_cache || tiny.cache_is_empty());
  std::vector<Record> results;
  for (const auto& record : records) results.push_back(*record);
  return results;
}

inline void expect_same(const std::vector<Record>& actual, const std::vector<Record>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(actual[i].tokens, expected[i].tokens);
    EXPECT_TRUE(same_bits(actual[i].logprobs, expected[i].logprobs));
    EXPECT_EQ(actual[i].text, expected[i].text);
    EXPECT_EQ(actual[i].reason, expected[i].reason);
    EXPECT_EQ(actual[i].error, expected[i].error);
  }
}

}  // namespace lathe
