#include "eval/tasks.h"

#include <chrono>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/json.h"

namespace lathe {
namespace {

struct Response {
  std::string text;
  std::optional<FinishReason> reason;
  std::optional<Error> error;
  Usage usage;
};

// All prompts at once; the engine runs as many together as it may. Throws the first request's
// error.
std::vector<Response> generate_all(Engine& engine, std::vector<std::vector<int32_t>> prompts,
                                   const SamplingParams& params, const ItemDone& done) {
  std::vector<Response> responses(prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Request request;
    request.prompt = std::move(prompts[i]);
    request.params = params;
    request.on_output = [&response = responses[i], &done](const RequestOutput& output) {
      response.text += output.text;
      if (output.error != nullptr) response.error = *output.error;
      if (!output.finish_reason) return;
      response.reason = output.finish_reason;
      response.usage = output.usage;
      if (done) done();
    };
    engine.add_request(std::move(request));
  }
  while (engine.step()) {
  }
  for (const Response& response : responses) {
    if (response.error) throw *response.error;
  }
  return responses;
}

SamplingParams greedy(int64_t max_tokens, std::span<const std::string_view> stops) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = max_tokens;
  params.stop.assign(stops.begin(), stops.end());
  return params;
}

TaskResult generate_items(Engine& engine, std::vector<std::vector<int32_t>> prompts,
                          const SamplingParams& params, const ItemDone& done) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<Response> responses = generate_all(engine, std::move(prompts), params, done);
  TaskResult result;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (Response& response : responses) {
    TaskItem item;
    item.response = std::move(response.text);
    item.completion_tokens = response.usage.completion_tokens;
    item.cut_off = response.reason == FinishReason::kLength;
    result.completion_tokens += item.completion_tokens;
    result.speculation += response.usage.speculation;
    result.items.push_back(std::move(item));
  }
  return result;
}

void summarize(TaskResult& result) {
  for (const TaskItem& item : result.items) result.num_right += item.right;
  const auto n = static_cast<double>(result.items.size());
  if (n == 0) return;
  result.accuracy = static_cast<double>(result.num_right) / n;
  result.standard_error = std::sqrt(result.accuracy * (1 - result.accuracy) / n);
}

}  // namespace

TaskResult run_gsm8k(Engine& engine, const PromptMaker& make_prompt,
                     std::span<const Gsm8kItem> items, const Gsm8kOptions& options,
                     const ItemDone& done) {
  const auto shots = gsm8k_shots();
  if (options.shots < 0 || options.shots > static_cast<int64_t>(shots.size())) {
    fail(ErrorCode::kInvalidArgument, "--shots ", options.shots, ": 0 to ", shots.size());
  }
  std::vector<Turn> turns;
  for (const Gsm8kShot& shot : shots.first(static_cast<std::size_t>(options.shots))) {
    turns.push_back({"user", gsm8k_prompt(shot.question)});
    turns.push_back({"assistant", std::string(shot.answer)});
  }
  std::vector<std::vector<int32_t>> prompts;
  for (const Gsm8kItem& item : items) {
    turns.push_back({"user", gsm8k_prompt(item.question)});
    prompts.push_back(make_prompt(turns, ""));
    turns.pop_back();
  }
  TaskResult result = generate_items(engine, std::move(prompts),
                                     greedy(options.max_tokens, gsm8k_stop_strings()), done);
  for (std::size_t i = 0; i < items.size(); ++i) {
    TaskItem& item = result.items[i];
    const auto outcome = gsm8k_outcome(options.checker, item.response);
    const auto gold = gsm8k_gold(options.checker, items[i].answer);
    item.id = str("gsm8k/", i);
    item.outcome = outcome.value_or("");
    item.expected = gold.value_or("");
    item.right = equivalent(outcome, gold);
    result.invalid += !outcome;
  }
  summarize(result);
  return result;
}

TaskResult run_humaneval(Engine& engine, const PromptMaker& make_prompt,
                         std::span<const HumanEvalTask> tasks, const Sandbox& sandbox,
                         const HumanEvalOptions& options, Exec& exec, const ItemDone& done) {
  std::vector<std::vector<int32_t>> prompts;
  for (const HumanEvalTask& task : tasks) {
    if (options.chat) {
      const Turn turns[] = {{"user", humaneval_user_turn(task)}};
      prompts.push_back(make_prompt(turns, humaneval_answer_prefix(task)));
    } else {
      prompts.push_back(make_prompt({}, task.prompt));
    }
  }
  std::vector<std::string_view> stops(humaneval_stop_strings().begin(),
                                      humaneval_stop_strings().end());
  if (options.chat) stops.push_back("```");
  TaskResult result =
      generate_items(engine, std::move(prompts), greedy(options.max_tokens, stops), done);
  exec.threads.parallel_for(
      static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end, int) {
        for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
          TaskItem& item = result.items[i];
          const Verdict verdict =
              check_completion(tasks[i], cut_completion(item.response, options.chat), sandbox);
          item.id = tasks[i].task_id;
          item.outcome = verdict.reason;
          item.right = verdict.passed;
        }
      });
  summarize(result);
  return result;
}

TaskResult run_ifeval(Engine& engine, const PromptMaker& make_prompt,
                      std::span<const IfevalItem> items, int64_t max_tokens, const ItemDone& done) {
  std::vector<std::vector<int32_t>> prompts;
  for (const IfevalItem& item : items) {
    const Turn turns[] = {{"user", item.prompt}};
    prompts.push_back(make_prompt(turns, ""));
  }
  TaskResult result = generate_items(engine, std::move(prompts), greedy(max_tokens, {}), done);
  IfevalCounts counts;
  for (std::size_t i = 0; i < items.size(); ++i) {
    TaskItem& item = result.items[i];
    const IfevalVerdict verdict = check_ifeval(items[i], item.response);
    item.id = str("ifeval/", items[i].key);
    item.outcome = to_string(items[i], verdict);
    const int64_t before = counts.strict_prompts;
    counts.add(verdict);
    item.right = counts.strict_prompts > before;
  }
  result.ifeval = counts;
  summarize(result);
  return result;
}

TaskResult run_user_task(Engine& engine, const PromptMaker& make_prompt, const UserTask& task,
                         std::span<const Json> items, int64_t max_tokens, const ItemDone& done) {
  std::vector<std::vector<int32_t>> prompts;
  for (const Json& item : items) prompts.push_back(user_prompt(item, make_prompt));
  const std::vector<std::string_view> stops(task.stop.begin(), task.stop.end());
  TaskResult result = generate_items(engine, std::move(prompts), greedy(max_tokens, stops), done);
  const auto checker = task.start_checker();
  for (std::size_t i = 0; i < items.size(); ++i) {
    TaskItem& item = result.items[i];
    const CheckerVerdict verdict = checker->check(items[i], item.response);
    item.id = str("item/", i);
    item.outcome = verdict.outcome.value_or("");
    item.right = verdict.correct.value_or(false);
    result.invalid += !verdict.outcome;
    result.unjudged += !verdict.correct;
  }
  summarize(result);
  return result;
}

std::vector<char> right_items(const TaskResult& result) {
  std::vector<char> right;
  for (const TaskItem& item : result.items) right.push_back(item.right);
  return right;
}

}  // namespace lathe
