#include "cli/judge_task.h"

#include "base/error.h"
#include "base/json.h"
#include "eval/gsm8k.h"

namespace lathe {
namespace {

template <typename Item>
std::vector<Item> take(std::vector<Item> items, const JudgeTaskFlags& flags) {
  if (flags.questions > 0 && flags.questions < std::ssize(items)) {
    items.resize(static_cast<std::size_t>(flags.questions));
  }
  if (items.empty()) fail(ErrorCode::kInvalidArgument, flags.data, ": holds no items");
  return items;
}

}  // namespace

std::string judge_checker_name(const JudgeTaskFlags& flags) {
  if (flags.name == "gsm8k") return flags.checker;
  if (flags.name == "humaneval") return "pass";
  return "sha256:" + load_user_task(flags.name).sha256;
}

JudgeTask::JudgeTask(const JudgeTaskFlags& flags, const LoadedModel& target) {
  const PromptMaker make_prompt = target.prompt_maker();
  if (flags.name == "gsm8k") {
    use_gsm8k(flags, make_prompt);
  } else if (flags.name == "humaneval") {
    use_humaneval(flags, make_prompt, target.has_chat_template());
  } else if (names_user_task(flags.name)) {
    use_file(flags, make_prompt);
  } else {
    fail(ErrorCode::kInvalidArgument, "--task ", flags.name,
         ": unknown; use gsm8k, humaneval or a file TASK.json");
  }
}

void JudgeTask::use_gsm8k(const JudgeTaskFlags& flags, const PromptMaker& make_prompt) {
  const Gsm8kChecker checker = gsm8k_checker_from_name(flags.checker);
  for (const Gsm8kItem& item : take(load_gsm8k(flags.data), flags)) {
    const Turn turns[] = {{"user", gsm8k_prompt(item.question)}};
    mining_.prompts.push_back(make_prompt(turns, ""));
  }
  for (const std::string_view stop : gsm8k_stop_strings()) mining_.stop.emplace_back(stop);
  mining_.outcome = [checker](int64_t, const std::string& response) {
    return gsm8k_outcome(checker, response);
  };
}

void JudgeTask::use_humaneval(const JudgeTaskFlags& flags, const PromptMaker& make_prompt,
                              bool chat) {
  sandbox_.emplace();
  humaneval_ = take(load_humaneval(flags.data), flags);
  for (const HumanEvalTask& task : humaneval_) {
    const Turn turns[] = {{"user", humaneval_user_turn(task)}};
    mining_.prompts.push_back(chat ? make_prompt(turns, humaneval_answer_prefix(task))
                                   : make_prompt({}, task.prompt));
  }
  for (const std::string_view stop : humaneval_stop_strings()) mining_.stop.emplace_back(stop);
  if (chat) mining_.stop.emplace_back("```");
  mining_.outcome = [this, chat](int64_t question, const std::string& response) -> Outcome {
    const HumanEvalTask& task = humaneval_[static_cast<std::size_t>(question)];
    const Verdict verdict = check_completion(task, cut_completion(response, chat), *sandbox_);
    return verdict.passed ? "passed" : "failed";
  };
  // A program that fails stays failed whatever changes: its tokens would all be unimportant.
  mining_.is_usable = [](const std::string& outcome) { return outcome == "passed"; };
}

void JudgeTask::use_file(const JudgeTaskFlags& flags, const PromptMaker& make_prompt) {
  const UserTask task = load_user_task(flags.name);
  items_ = take(load_user_items(flags.data), flags);
  for (const Json& item : items_) mining_.prompts.push_back(user_prompt(item, make_prompt));
  mining_.stop = task.stop;
  checker_ = task.start_checker();
  mining_.outcome = [this](int64_t question, const std::string& response) -> Outcome {
    return checker_->check(items_[static_cast<std::size_t>(question)], response).outcome;
  };
  // As with programs: where a checker tells only right from wrong, wrong answers teach nothing.
  mining_.is_usable = [](const std::string& outcome) { return outcome != "wrong"; };
}

}  // namespace lathe
