// lathe eval: what a model is worth, and what compressing it cost.
#include <algorithm>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/eval_caches.h"
#include "cli/eval_flags.h"
#include "cli/eval_report.h"
#include "cli/loaded_model.h"
#include "cli/output.h"
#include "cli/text_windows.h"
#include "eval/json_lines.h"
#include "eval/perplexity.h"
#include "eval/user_task.h"

namespace lathe {
namespace {

Json eval_perplexity(const EvalFlags& flags, Exec& exec) {
  const std::string text = read_text_file(flags.data);
  std::vector<PerplexityResult> results;
  Json kv;
  for (const std::string& path : flags.paths) {
    const LoadedModel loaded(
        path, flags.model, exec,
        {.quiet = flags.common.json, .max_sequence_tokens = flags.windows.seq_len});
    const auto windows = text_windows(loaded, text, flags.data, flags.windows);
    Progress progress("perplexity of " + path, count_tokens(windows), "tokens", flags.common.json);
    results.push_back(measure_perplexity(measured(loaded, flags.chunk), windows, exec,
                                         [&](int64_t tokens) { progress.advance(tokens); }));
    if (&path == &flags.paths.front()) kv = kv_json(loaded, flags.windows.seq_len);
  }
  Json json = perplexity_json(results.front());
  json["model"] = flags.paths.front();
  json["kv"] = std::move(kv);
  if (results.size() == 2) json["compared"] = compared_perplexity_json(flags.paths[1], results);
  return json;
}

// One model, the cache of --kv or each of --caches against an exact one.
Json eval_cache_divergence(const EvalFlags& flags, Exec& exec) {
  const std::string& path = flags.paths.front();
  std::vector<RunningKv> caches = named_caches(flags.caches, flags.model, exec);
  const std::string text = read_text_file(flags.data);
  const LoadedModel loaded(
      path, flags.model, exec,
      {.quiet = flags.common.json, .max_sequence_tokens = flags.windows.seq_len});
  load_caches(caches, loaded, exec);
  std::vector<const RunningKv*> compared;
  for (const RunningKv& cache : caches) compared.push_back(&cache);
  if (caches.empty()) compared.push_back(&loaded.kv());
  const auto windows = text_windows(loaded, text, flags.data, flags.windows);
  const bool exact = model_options(flags.model).dense_dtype == DType::kF32;
  MeasuredModel reference = measured(loaded.model(), exact ? KvFormat::kF32 : KvFormat::kBF16);
  std::vector<MeasuredModel> models;
  for (const RunningKv* cache : compared) {
    models.push_back(measured(loaded.model(), *cache, flags.chunk));
  }
  std::vector<MeasuredModel*> coded;
  for (MeasuredModel& model : models) coded.push_back(&model);
  take_common_chunk(coded);
  reference.chunk_rows = models.front().chunk_rows;
  Progress progress("divergence of the cache", count_tokens(windows), "tokens", flags.common.json);
  const std::vector<DivergenceResult> results = measure_divergences(
      reference, models, windows, exec, [&](int64_t tokens) { progress.advance(tokens); });
  const auto result_json = [&](std::size_t i) {
    Json json = divergence_json(results[i]);
    json["kv"] = kv_json(loaded.model(), *compared[i], flags.windows.seq_len);
    return json;
  };
  Json json;
  if (caches.empty()) {
    json = result_json(0);
  } else {
    json["caches"] = Json::array();
    for (std::size_t i = 0; i < caches.size(); ++i) {
      Json cache = {{"cache", flags.caches[i]}};
      cache.update(result_json(i));
      json["caches"].push_back(std::move(cache));
    }
    json["windows"] = results.front().model.windows;
    json["seq_len"] = results.front().model.seq_len;
  }
  json["model"] = path;
  json["reference"] = path + (exact ? " with --kv f32" : " with --kv bf16");
  return json;
}

// Each of the models against the reference, which is computed once.
Json eval_divergence(const EvalFlags& flags, Exec& exec) {
  const bool other_cache =
      !flags.model.kv.empty() || !flags.model.kv_codec.empty() || !flags.caches.empty();
  if (flags.reference.empty() && flags.paths.size() == 1 && other_cache) {
    return eval_cache_divergence(flags, exec);
  }
  std::string reference_path = flags.reference;
  std::vector<std::string> paths = flags.paths;
  if (reference_path.empty()) {
    if (paths.size() < 2) {
      fail(ErrorCode::kInvalidArgument,
           "kld compares with a reference: give --reference MODEL, or the reference first and then "
           "the models, or --kv to compare caches");
    }
    reference_path = paths.front();
    paths.erase(paths.begin());
  }
  const std::string text = read_text_file(flags.data);
  const LoadOptions options = {.quiet = flags.common.json,
                               .max_sequence_tokens = flags.windows.seq_len};
  const LoadedModel reference(reference_path, flags.model, exec, options);
  const auto windows = text_windows(reference, text, flags.data, flags.windows);
  std::vector<std::unique_ptr<LoadedModel>> loaded;
  for (const std::string& path : paths) {
    loaded.push_back(std::make_unique<LoadedModel>(path, flags.model, exec, options));
    if (windows != text_windows(*loaded.back(), text, flags.data, flags.windows)) {
      fail(ErrorCode::kInvalidArgument, reference_path, " and ", path,
           " make different tokens of the text; their predictions cannot be compared");
    }
    with_context(path,
                 [&] { common_vocabulary(reference.model(), loaded.back()->model(), windows); });
  }
  MeasuredModel first = measured(reference, flags.chunk);
  std::vector<MeasuredModel> models;
  for (const auto& model : loaded) models.push_back(measured(*model, flags.chunk));
  std::vector<MeasuredModel*> all = {&first};
  for (MeasuredModel& model : models) all.push_back(&model);
  take_common_chunk(all);  // codecs of other windows, or one codec alone
  Progress progress("divergence from " + reference_path, count_tokens(windows), "tokens",
                    flags.common.json);
  const std::vector<DivergenceResult> results = measure_divergences(
      first, models, windows, exec, [&](int64_t tokens) { progress.advance(tokens); });
  Json json;
  if (paths.size() == 1) {
    json = divergence_json(results.front());
    json["model"] = paths.front();
  } else {
    json["models"] = Json::array();
    for (std::size_t i = 0; i < paths.size(); ++i) {
      Json model = {{"model", paths[i]}};
      model.update(divergence_json(results[i]));
      json["models"].push_back(std::move(model));
    }
    json["windows"] = results.front().model.windows;
    json["seq_len"] = results.front().model.seq_len;
  }
  json["reference"] = reference_path;
  return json;
}

// A flag of another task would be without effect.
void check_task_options(const EvalFlags& flags) {
  const std::string task = names_user_task(flags.task) ? "TASK.json" : flags.task;
  for (const auto& [option, tasks] : flags.task_options) {
    if (option->count() == 0) continue;
    const std::string list = str(", ", tasks, ",");
    if (list.find(str(", ", task, ",")) == std::string::npos) {
      fail(ErrorCode::kInvalidArgument, option->get_name(), " is for ", tasks, ", not for eval ",
           flags.task);
    }
  }
}

void run_eval(const EvalFlags& flags) {
  check_task_options(flags);
  if (flags.paths.size() > 2 && flags.task != "kld") {
    fail(ErrorCode::kInvalidArgument, "eval takes one model, or two to compare, not ",
         flags.paths.size());
  }
  if (flags.chunk < 0 || flags.chunk > 65536) {
    fail(ErrorCode::kInvalidArgument, "--chunk ", flags.chunk,
         ": 1 to 65536, or 0 for the default");
  }
  if (!flags.caches.empty()) {
    if (flags.paths.size() != 1 || !flags.reference.empty()) {
      fail(ErrorCode::kInvalidArgument, "--caches goes with one model alone");
    }
    if (!flags.model.kv.empty() || !flags.model.kv_codec.empty()) {
      fail(ErrorCode::kInvalidArgument,
           "--caches with --kv or --kv-codec: list them all in --caches");
    }
  }
  if (flags.limit < 0 || flags.max_tokens < 0 || flags.batch < 1 || flags.batch > 1024) {
    fail(ErrorCode::kInvalidArgument,
         "--limit and --max-tokens must be 0 or more, --batch 1 to 1024");
  }
  Runtime runtime(flags.common);
  Exec& exec = runtime.exec();
  Json json;
  if (flags.task == "perplexity") {
    json = eval_perplexity(flags, exec);
  } else if (flags.task == "kld") {
    json = eval_divergence(flags, exec);
  } else if (flags.task == "passkey") {
    json = eval_passkey(flags, exec);
  } else if (flags.task == "gsm8k") {
    json = eval_gsm8k(flags, exec);
  } else if (flags.task == "humaneval") {
    json = eval_humaneval(flags, exec);
  } else if (flags.task == "ifeval") {
    json = eval_ifeval(flags, exec);
  } else if (names_user_task(flags.task)) {
    json = eval_user_task(flags, exec);
  } else {
    fail(ErrorCode::kInvalidArgument, "eval ", flags.task,
         ": unknown task; choose perplexity, kld, passkey, gsm8k, humaneval, ifeval or a file "
         "TASK.json");
  }
  json["task"] = flags.task;
  json["data"] = flags.data;
  if (flags.common.json) {
    print_json(json);
  } else {
    print(eval_text(json));
  }
}

}  // namespace

void add_eval_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<EvalFlags>();  // shared: the callback outlives this function
  CLI::App* command =
      app.add_subcommand("eval", "Measure quality: perplexity, kld, passkey, tasks with answers");
  command
      ->add_option(
          "TASK", flags->task,
          "perplexity, kld, passkey, gsm8k, humaneval, ifeval, or a file TASK.json that names a "
          "checker of your own")
      ->required()
      ->type_name("");
  command
      ->add_option("MODEL", flags->paths,
                   "One model, or two to compare (the first is the reference); kld: the reference "
                   "and any number of models")
      ->required()
      ->type_name("");
  command->add_option("--data", flags->data, "The text, or the items as JSON lines (gzip is fine)")
      ->required()
      ->type_name("FILE");
  const auto add = [&](const char* tasks, const char* name, auto& value, const std::string& help,
                       const char* type) {
    CLI::Option* option = command->add_option(name, value, str(tasks, ": ", help))->type_name(type);
    flags->task_options.push_back({option, tasks});
    return option;
  };
  constexpr const char* kTexts = "perplexity, kld";
  constexpr const char* kAnswers = "gsm8k, humaneval, ifeval, TASK.json";
  add("kld", "--reference", flags->reference, "the model that all MODELs are compared with",
      "MODEL");
  add("kld, passkey, gsm8k, humaneval, ifeval, TASK.json", "--caches", flags->caches,
      "with one model: each of these caches, names of --kv and files of 'lathe fit-kv'; kld: "
      "against bf16, which is computed once; the others: against the first, item by item",
      "CACHE...");
  add(kTexts, "--windows", flags->windows.max_windows,
      "so many windows from the beginning; 0: the whole text", "N");
  add(kTexts, "--seq-len", flags->windows.seq_len, "tokens of a window", "N")
      ->capture_default_str();
  add("perplexity, kld, passkey", "--chunk", flags->chunk,
      "tokens computed at once. A coded cache shows them to one another exactly (default: 128, or "
      "what divides the codec's window and chunk, where every token sees what it sees in decoding; "
      "more: as in a prefill)",
      "N");
  add("passkey", "--lengths", flags->passkey.lengths, "tokens of a text, several", "N...")
      ->capture_default_str();
  add("passkey", "--depths", flags->passkey.depths, "places where the number hides", "N")
      ->capture_default_str();
  add("passkey", "--trials", flags->passkey.trials, "numbers for each length and place", "N")
      ->capture_default_str();
  add(kAnswers, "--limit", flags->limit, "only the first items", "N");
  add(kAnswers, "--max-tokens", flags->max_tokens, "length of an answer", "N");
  add("gsm8k", "--shots", flags->shots, "worked examples in the prompt, 0 to 8", "N")
      ->capture_default_str();
  add("gsm8k", "--checker", flags->checker, "gsm8k-strict-then-flexible, gsm8k-strict or numeric",
      "NAME")
      ->capture_default_str();
  add(kAnswers, "--batch", flags->batch, "answers at the same time", "N")->capture_default_str();
  add(kAnswers, "--items", flags->items_file,
      "write every answer and verdict to this file, as JSON lines", "FILE");
  add_draft_flags(*command, flags->draft);
  add_model_flags(*command, flags->model);
  add_common_flags(*command, flags->common);
  command->footer(
      "perplexity: non-overlapping windows, every token but a window's first is scored.\n"
      "kld: the reference is computed once for all models, which are in memory together. With --kv "
      "and one model: that cache against bf16. passkey: --data is the text that the "
      "number hides in.\n"
      "humaneval runs model-written code in a sandbox, or not at all. ifeval: a prompt is right "
      "when "
      "all its instructions are followed strictly. TASK.json: docs/tasks.md.\n\n"
      "Examples:\n"
      "  lathe eval perplexity smollm2.gguf --data wiki.test.raw --windows 32 --seq-len 512\n"
      "  lathe eval kld smollm2.gguf OUT --data wiki.test.raw --windows 8\n"
      "  lathe eval kld smollm2.gguf OUT1 OUT2 OUT3 --data wiki.test.raw --windows 8\n"
      "  lathe eval kld OUT --kv aqua2 --data wiki.test.raw --windows 8\n"
      "  lathe eval kld OUT --caches q4 higgs2 aqua2 star.safetensors --data wiki.test.raw "
      "--windows 8\n"
      "  lathe eval passkey OUT --kv aqua2 --data book.txt --lengths 2048 8192\n"
      "  lathe eval gsm8k MODEL OUT --data gsm8k/test.jsonl --limit 200\n"
      "  lathe eval gsm8k OUT --caches bf16 aqua2 --data gsm8k/test.jsonl --limit 200\n"
      "  lathe eval ifeval MODEL OUT --data ifeval/input_data.jsonl --items answers.jsonl\n"
      "  lathe eval mine.json MODEL OUT --data mine.jsonl");
  command->callback([flags, &invocation] { invocation.run = [flags] { run_eval(*flags); }; });
}

}  // namespace lathe
