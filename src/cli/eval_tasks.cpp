#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/eval_caches.h"
#include "cli/eval_flags.h"
#include "cli/eval_report.h"
#include "cli/loaded_model.h"
#include "eval/tasks.h"

namespace lathe {
namespace {

// Runs a task on each model, or with each of --caches.
template <typename Item, typename Run>
Json eval_items(const EvalFlags& flags, std::vector<Item> items, Exec& exec, const Run& run) {
  if (flags.limit > 0 && flags.limit < static_cast<int64_t>(items.size())) {
    items.resize(static_cast<std::size_t>(flags.limit));
  }
  if (items.empty()) fail(ErrorCode::kInvalidArgument, flags.data, ": holds no items");
  if ((flags.paths.size() == 2 || !flags.caches.empty()) && !flags.draft.judge.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "--judge compares one model with and without its judge; give one model, without --caches");
  }
  std::vector<RunningKv> caches = named_caches(flags.caches, flags.model, exec);
  std::vector<TaskResult> results;
  std::vector<std::string> names;
  std::vector<Json> kv;
  for (const std::string& path : flags.paths) {
    const LoadedModel loaded(path, flags.model, exec, {.quiet = flags.common.json});
    load_caches(caches, loaded, exec);
    const LoadedDraft draft(flags.draft, loaded, flags.model, exec, {.quiet = flags.common.json});
    const auto run_once = [&](const RunningKv& cache, const std::string& name, bool judged) {
      const EngineOptions options = cache.engine_options(
          {.max_num_seqs = flags.batch, .max_batch_tokens = std::max<int64_t>(512, flags.batch)},
          loaded.model().config(), exec, draft.cache_token_bytes());
      Engine engine(loaded.model(), make_engine_cache(loaded.model(), options), &loaded.tokenizer(),
                    options, exec);
      judged ? draft.attach(engine) : draft.attach_exact(engine);
      Progress progress(flags.task + " on " + name, static_cast<int64_t>(items.size()), "items",
                        flags.common.json);
      results.push_back(run(loaded, engine, items, [&] { progress.advance(); }));
      names.push_back(name);
      kv.push_back(kv_json(loaded.model(), cache, /*num_tokens=*/0));
    };
    for (std::size_t i = 0; i < caches.size(); ++i) {
      run_once(caches[i], path + " with cache " + flags.caches[i], false);
    }
    if (caches.empty()) run_once(loaded.kv(), path, false);
    if (!flags.draft.judge.empty()) {
      run_once(loaded.kv(), path + " with judge " + flags.draft.judge, true);
    }
  }
  if (!flags.items_file.empty()) write_task_items(flags.items_file, names, results);
  Json json;
  if (caches.empty()) {
    json = task_json(flags.task, results.front());
    json["kv"] = kv.front();
    if (results.size() == 2) json["compared"] = compared_task_json(flags.task, names[1], results);
  } else {
    json["caches"] = Json::array();
    for (std::size_t i = 0; i < caches.size(); ++i) {
      Json row = {{"cache", flags.caches[i]}};
      row.update(task_json(flags.task, results[i]));
      row["kv"] = kv[i];
      if (i > 0) {
        row["paired"] = paired_accuracy_json(right_items(results[0]), right_items(results[i]));
      }
      json["caches"].push_back(std::move(row));
    }
  }
  json["model"] = flags.paths.front();
  return json;
}

}  // namespace

Json eval_gsm8k(const EvalFlags& flags, Exec& exec) {
  Gsm8kOptions options;
  options.shots = flags.shots;
  options.checker = gsm8k_checker_from_name(flags.checker);
  if (flags.max_tokens > 0) options.max_tokens = flags.max_tokens;
  Json json = eval_items(flags, load_gsm8k(flags.data), exec,
                         [&](const LoadedModel& loaded, Engine& engine,
                             const std::vector<Gsm8kItem>& items, const ItemDone& done) {
                           return run_gsm8k(engine, loaded.prompt_maker(), items, options, done);
                         });
  json["checker"] = flags.checker;
  json["shots"] = flags.shots;
  return json;
}

Json eval_humaneval(const EvalFlags& flags, Exec& exec) {
  const Sandbox sandbox;  // first: without it there is no point in generating
  return eval_items(flags, load_humaneval(flags.data), exec,
                    [&](const LoadedModel& loaded, Engine& engine,
                        const std::vector<HumanEvalTask>& tasks, const ItemDone& done) {
                      HumanEvalOptions options;
                      options.chat = loaded.has_chat_template();
                      if (flags.max_tokens > 0) options.max_tokens = flags.max_tokens;
                      return run_humaneval(engine, loaded.prompt_maker(), tasks, sandbox, options,
                                           exec, done);
                    });
}

Json eval_ifeval(const EvalFlags& flags, Exec& exec) {
  return eval_items(flags, load_ifeval(flags.data), exec,
                    [&](const LoadedModel& loaded, Engine& engine,
                        const std::vector<IfevalItem>& items, const ItemDone& done) {
                      return run_ifeval(engine, loaded.prompt_maker(), items,
                                        flags.max_tokens > 0 ? flags.max_tokens : kIfevalMaxTokens,
                                        done);
                    });
}

Json eval_user_task(const EvalFlags& flags, Exec& exec) {
  const UserTask task = load_user_task(flags.task);
  return eval_items(flags, load_user_items(flags.data), exec,
                    [&](const LoadedModel& loaded, Engine& engine, const std::vector<Json>& items,
                        const ItemDone& done) {
                      return run_user_task(engine, loaded.prompt_maker(), task, items,
                                           flags.max_tokens > 0 ? flags.max_tokens : 512, done);
                    });
}

}  // namespace lathe
