#include "cli/draft_speed.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <memory>

#include "base/error.h"
#include "cli/speed.h"
#include "engine/engine.h"

namespace lathe {
namespace {

// Reasoning, code, editing (where the answer repeats the prompt), prose.
constexpr const char* kPrompts[] = {
    "Tom has 3 boxes with 12 pencils each. He gives 7 pencils to Ann and buys 2 more boxes. How "
    "many pencils does he have now? Reason step by step.",
    "Write a Python function that returns the n-th Fibonacci number, with a docstring and a loop.",
    "Rename the variable x to total in this function and print the whole function:\n\ndef "
    "sum_of_squares(values):\n    x = 0\n    for value in values:\n        x = x + value * "
    "value\n    return x\n",
    "Explain in a few sentences why the sky is blue.",
    "Write a C function that reverses a string in place.",
    "A train travels 240 km in 3 hours and then 150 km in 2 hours. What is its average speed? "
    "Reason step by step.",
};

struct Answers {
  std::vector<std::vector<int32_t>> tokens;
  SpeculationUsage usage;
  double tokens_per_second = 0;
};

Answers answer_all(Engine& engine, const std::vector<std::vector<int32_t>>& prompts,
                   int64_t max_tokens) {
  Answers answers;
  answers.tokens.resize(prompts.size());
  const auto start = std::chrono::steady_clock::now();
  int64_t count = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Request request;
    request.prompt = prompts[i];
    request.params.temperature = 0;
    request.params.max_tokens = max_tokens;
    request.on_output = [&, i](const RequestOutput& output) {
      if (output.error != nullptr) throw *output.error;
      answers.tokens[i].insert(answers.tokens[i].end(), output.token_ids.begin(),
                               output.token_ids.end());
      count += static_cast<int64_t>(output.token_ids.size());
      if (output.finish_reason) answers.usage += output.usage.speculation;
    };
    engine.add_request(std::move(request));
  }
  while (engine.step()) {
  }
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  answers.tokens_per_second = static_cast<double>(count) / time.count();
  return answers;
}

}  // namespace

DraftSpeed measure_draft_speed(const LoadedModel& loaded, const LoadedDraft& draft,
                               const DraftSpeedOptions& options, Exec& exec) {
  const PromptMaker make_prompt = loaded.prompt_maker();
  std::vector<std::vector<int32_t>> prompts;
  const std::size_t count =
      std::max<std::size_t>(static_cast<std::size_t>(options.batch), std::size(kPrompts));
  for (std::size_t i = 0; i < count; ++i) {
    const Turn turns[] = {{"user", kPrompts[i % std::size(kPrompts)]}};
    prompts.push_back(make_prompt(turns, ""));
  }
  EngineOptions wanted;
  wanted.max_num_seqs = options.batch;
  wanted.max_batch_tokens = std::max<int64_t>(wanted.max_batch_tokens, options.batch);
  wanted.prefix_cache = false;  // or the second repetition has no prompts to compute
  const EngineOptions engine_options =
      loaded.kv().engine_options(wanted, loaded.model().config(), exec, draft.cache_token_bytes());
  const auto make_engine = [&] {
    return std::make_unique<Engine>(loaded.model(),
                                    make_engine_cache(loaded.model(), engine_options),
                                    &loaded.tokenizer(), engine_options, exec);
  };
  const auto plain_engine = make_engine();
  const auto draft_engine = make_engine();
  draft.attach(*draft_engine);

  DraftSpeed speed;
  std::vector<double> plain_speeds, draft_speeds;
  for (int i = 0; i < options.repetitions; ++i) {
    const Answers plain = answer_all(*plain_engine, prompts, options.decode_tokens);
    const Answers speculative = answer_all(*draft_engine, prompts, options.decode_tokens);
    // With a coded cache, what a step accepts decides when tokens become codes.
    const bool must_agree = !exec.on_cuda() && loaded.kv_codec() == nullptr;
    if (must_agree && plain.tokens != speculative.tokens && speculative.usage.judge_accepted == 0) {
      fail(ErrorCode::kInternal,
           "speculative decoding gave other tokens than plain decoding; no speed is reported. Try "
           "LATHE_FORCE_KERNEL=ref, and report this as a bug");
    }
    plain_speeds.push_back(plain.tokens_per_second);
    draft_speeds.push_back(speculative.tokens_per_second);
    speed.usage = speculative.usage;
  }
  speed.plain = median(std::move(plain_speeds));
  speed.speculative = median(std::move(draft_speeds));
  return speed;
}

}  // namespace lathe
