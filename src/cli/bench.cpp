// lathe bench: prefill and decoding speed, beside what the memory of this machine allows. (bench
// kernels is bench_kernels.cpp.)
#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/bench_model.h"
#include "cli/command.h"
#include "cli/draft_speed.h"
#include "cli/flags.h"
#include "cli/kv_flags.h"
#include "cli/loaded_model.h"
#include "cli/memory_use.h"
#include "cli/output.h"
#include "cli/speed.h"
#include "kernels/features.h"
#include "kernels/peaks/peaks.h"

namespace lathe {
namespace {

struct BenchFlags {
  CommonFlags common;
  ModelFlags model;
  std::string path;
  std::string random_weights;  // a format, or "bf16"; empty: the model's own
  std::string kv_variant = "dense";
  std::vector<int64_t> prompt_tokens = {SpeedOptions().prompt_tokens};
  std::vector<int64_t> decode_tokens = {SpeedOptions().decode_tokens};
  std::vector<int64_t> batch = {SpeedOptions().batch};
  std::vector<int64_t> depth = {SpeedOptions().depth};
  SpeedOptions speed;  // the rest of it
  DraftFlags draft;

  bool has_lists() const {
    return prompt_tokens.size() > 1 || decode_tokens.size() > 1 || batch.size() > 1 ||
           depth.size() > 1;
  }
  // The first of each.
  SpeedOptions single() const {
    SpeedOptions options = speed;
    options.prompt_tokens = prompt_tokens[0];
    options.decode_tokens = decode_tokens[0];
    options.batch = batch[0];
    options.depth = depth[0];
    return options;
  }
};

// What is measured, one after the other. With lists, as llama-bench does it: every prompt by
// itself, then every number of tokens to decode behind every depth, for each batch.
std::vector<SpeedOptions> measurements(const BenchFlags& flags) {
  if (!flags.has_lists()) return {flags.single()};
  std::vector<SpeedOptions> list;
  for (const int64_t batch : flags.batch) {
    SpeedOptions options = flags.single();
    options.batch = batch;
    options.decode_tokens = 0;
    for (const int64_t tokens : flags.prompt_tokens) {
      options.prompt_tokens = tokens;
      if (tokens != 0) list.push_back(options);
    }
    options.prompt_tokens = 0;
    for (const int64_t depth : flags.depth) {
      options.depth = depth;
      for (const int64_t tokens : flags.decode_tokens) {
        options.decode_tokens = tokens;
        if (tokens != 0) list.push_back(options);
      }
    }
  }
  if (list.empty()) {
    fail(ErrorCode::kInvalidArgument, "-p and -n are 0 throughout: there is nothing to measure");
  }
  return list;
}

CacheMaker cache_maker(const BenchModel& loaded, const SpeedOptions& speed) {
  return [&loaded, &speed](int64_t num_sequences, int64_t max_sequence_tokens) {
    // Prompts run one behind the other, so each may wait for its next step, which encodes, with as
    // many rows as a chunk has.
    const int64_t waiting = num_sequences * std::min(speed.chunk_tokens, max_sequence_tokens);
    return loaded.kv().make_batch_cache(loaded.model(), num_sequences, max_sequence_tokens,
                                        std::max(speed.chunk_tokens, waiting));
  };
}

Json speed_json(const std::vector<double>& values) {
  return values.empty() ? Json(nullptr) : Json(median(values));
}

// What all measurements have in common; `peak`: of the memory, in bytes.
std::string head_text(const Json& result, double peak) {
  return str("model     ", result["model"].get<std::string>(), "\nthreads   ",
             result["threads"].get<int64_t>(), "   cpu ", result["cpu_features"].get<std::string>(),
             "\nweights   ", format_bytes(result["weight_bytes"].get<double>()),
             " read for a token, ",
             format_bytes(result["read_bandwidth_bytes_per_second"].get<double>()),
             "/s read bandwidth measured\nmemory    ", format_bytes(peak), " at most\n",
             "checked   batched and chunked logits equal those of single tokens\n\n");
}

// A row a measurement, in columns that are Markdown too.
std::string rows_text(const Json& results) {
  std::string text =
      "| kv       | batch |  depth |     test |     tokens/s |\n"
      "| -------- | ----: | -----: | -------: | -----------: |\n";
  for (const Json& result : results) {
    const bool is_prefill = result["decode_tokens_per_second"].is_null();
    const auto number = [&](const char* key) { return result[key].get<int64_t>(); };
    const std::string test =
        is_prefill ? str("pp", number("prompt_tokens")) : str("tg", number("generated_tokens"));
    const std::string depth = is_prefill ? "-" : std::to_string(number("depth"));
    const char* speed = is_prefill ? "prefill_tokens_per_second" : "decode_tokens_per_second";
    char row[160];
    std::snprintf(row, sizeof row, "| %-8s | %5lld | %6s | %8s | %12.2f |\n",
                  result["kv"].get<std::string>().c_str(), static_cast<long long>(number("batch")),
                  depth.c_str(), test.c_str(), result[speed].get<double>());
    text += row;
  }
  return text;
}

std::string table(const Json& result) {
  const auto row = [](const char* name, const Json& speed, const std::string& note) {
    if (speed.is_null()) return std::string();
    char text[160];
    std::snprintf(text, sizeof text, "%-22s %10.2f tokens/s%s\n", name, speed.get<double>(),
                  note.c_str());
    return std::string(text);
  };
  std::string share;
  if (!result["decode_bandwidth_share"].is_null()) {
    char text[64];
    std::snprintf(text, sizeof text, "   %.0f %% of the read bandwidth",
                  100 * result["decode_bandwidth_share"].get<double>());
    share = text;
  }
  std::string all_reduce;
  if (result.contains("all_reduce_share")) {
    char text[96];
    std::snprintf(text, sizeof text, "%-22s %10.1f us a decode step, %.0f %% of it\n", "all-reduce",
                  1e6 * result["all_reduce_seconds_per_step"].get<double>(),
                  100 * result["all_reduce_share"].get<double>());
    all_reduce = text;
  }
  const auto flag = [&](const char* key) { return std::to_string(result[key].get<int64_t>()); };
  return str(head_text(result, result["peak_memory_bytes"].get<double>()),
             row(("prefill " + flag("prompt_tokens") + " x " + flag("batch")).c_str(),
                 result["prefill_tokens_per_second"], ""),
             row(("decode " + flag("generated_tokens") + " x " + flag("batch")).c_str(),
                 result["decode_tokens_per_second"], share),
             all_reduce);
}

void run_draft_bench(const BenchFlags& flags) {
  if (!flags.random_weights.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "--draft needs the model's own weights: what is accepted depends on the text");
  }
  if (flags.has_lists()) {
    fail(ErrorCode::kInvalidArgument, "--draft takes one number each for -p, -n, -b and --depth");
  }
  const SpeedOptions options = flags.single();
  if (options.decode_tokens < 1) {
    fail(ErrorCode::kInvalidArgument, "--draft measures decoding: -n must be at least 1");
  }
  Runtime runtime(flags.common);
  Exec& exec = runtime.exec();
  const LoadOptions load_options = {.quiet = flags.common.json};
  const LoadedModel loaded(flags.path, flags.model, exec, load_options);
  validate(options, loaded.model().config());
  const LoadedDraft draft(flags.draft, loaded, flags.model, exec, load_options);
  const DraftSpeed speed = measure_draft_speed(loaded, draft,
                                               {.decode_tokens = options.decode_tokens,
                                                .batch = options.batch,
                                                .repetitions = options.repetitions},
                                               exec);
  Json result;
  result["model"] = flags.path;
  result["draft"] = flags.draft.draft;
  result["draft_tokens"] = flags.draft.tokens;
  result["threads"] = exec.threads.num_threads();
  result["generated_tokens"] = options.decode_tokens;
  result["batch"] = options.batch;
  result["repetitions"] = options.repetitions;
  result["plain_tokens_per_second"] = speed.plain;
  result["speculative_tokens_per_second"] = speed.speculative;
  result["speedup"] = speed.speculative / speed.plain;
  result["speculative"] = speculation_json(speed.usage);
  const bool lossy = speed.usage.judge_accepted > 0;
  const bool coded = loaded.kv_codec() != nullptr;
  result["kv"] = loaded.kv().name();
  result["checked"] = !exec.on_cuda() && !lossy && !coded;
  if (flags.common.json) {
    print_json(result);
    return;
  }
  char text[400];
  const std::string accepted = speculation_text(speed.usage);
  std::snprintf(text, sizeof text,
                "model     %s\ndraft     %s\nchecked   %s\n\nplain       %10.2f tokens/s\n"
                "speculative %10.2f tokens/s   %.2f times; %s\n",
                flags.path.c_str(), flags.draft.draft.c_str(),
                lossy            ? "no: the judge changes the text"
                : coded          ? "no: what a coded cache rebuilds depends on the steps"
                : exec.on_cuda() ? "finite logits"
                                 : "the same tokens with and without drafts",
                speed.plain, speed.speculative, speed.speculative / speed.plain,
                accepted.empty() ? "nothing was drafted" : accepted.c_str());
  print(text);
}

struct Measurement {
  SpeedOptions options;
  SpeedResult speed;
  AllReduceTimes all_reduce;
  int64_t peak_memory = 0;
};

Measurement measure(const BenchFlags& flags, const SpeedOptions& options, const BenchModel& loaded,
                    const CacheMaker& make_cache, Exec& exec) {
  Measurement result = {.options = options,
                        .speed = measure_speed(loaded.model(), make_cache, options, exec),
                        .all_reduce = {}};
  if (flags.model.tensor_parallel > 1 && options.decode_tokens > 0) {
    result.all_reduce = measure_all_reduce(loaded.model(), make_cache, options, exec);
  }
  result.peak_memory = peak_memory_bytes();
  return result;
}

Json result_json(const BenchFlags& flags, const Measurement& measured, const BenchModel& loaded,
                 double bandwidth, const Exec& exec) {
  const auto& [options, speed, all_reduce, peak_memory] = measured;
  const Model& model = loaded.model();
  Json result;
  result["model"] = flags.path;
  if (!flags.random_weights.empty()) result["random_weights"] = flags.random_weights;
  result["threads"] = exec.threads.num_threads();
  result["cpu_features"] = cpu_features_text();
  result["kernels"] = model.kernels();
  result["prompt_tokens"] = options.prompt_tokens;
  result["generated_tokens"] = options.decode_tokens;
  result["batch"] = options.batch;
  result["depth"] = options.depth;
  result["kv"] = loaded.kv().name();
  result["repetitions"] = options.repetitions;
  result["tensor_parallel"] = flags.model.tensor_parallel;
  result["prefill_tokens_per_second"] = speed_json(speed.prefill);
  result["decode_tokens_per_second"] = speed_json(speed.decode);
  result["prefill_runs"] = speed.prefill;
  result["decode_runs"] = speed.decode;
  result["load_seconds"] = loaded.load_seconds();
  result["weight_bytes"] = model.weight_bytes();
  result["read_bandwidth_bytes_per_second"] = bandwidth;
  // Every step of a batch reads the weights once.
  const double steps_per_second = median(speed.decode) / static_cast<double>(options.batch);
  result["decode_bandwidth_share"] =
      speed.decode.empty() || bandwidth == 0
          ? Json(nullptr)
          : Json(steps_per_second * static_cast<double>(model.weight_bytes()) / bandwidth);
  if (all_reduce.step_seconds > 0) {
    result["all_reduce_seconds_per_step"] = all_reduce.all_reduce_seconds;
    result["all_reduce_share"] = all_reduce.all_reduce_seconds / all_reduce.step_seconds;
  }
  result["peak_memory_bytes"] = peak_memory;
  result["checked"] = true;
  return result;
}

void run_bench(const BenchFlags& flags) {
  if (!flags.draft.draft.empty()) return run_draft_bench(flags);
  const std::vector<SpeedOptions> list = measurements(flags);
  Runtime runtime(flags.common);
  Exec& exec = runtime.exec();
  const BenchModel loaded(flags.path, flags.model, flags.random_weights, flags.kv_variant,
                          flags.common.json, exec);
  Model& model = loaded.model();
  const CacheMaker make_cache = cache_maker(loaded, flags.speed);
  for (const SpeedOptions& options : list) validate(options, model.config());
  check_forward(model, make_cache, exec);
  std::vector<Measurement> measured;
  {
    Progress progress("measuring", std::ssize(list), "speeds", flags.common.json);
    for (const SpeedOptions& options : list) {
      measured.push_back(measure(flags, options, loaded, make_cache, exec));
      progress.advance();
    }
  }
  const double bandwidth = model.measure_bandwidth(exec);  // last: it takes 512 MiB
  Json results = Json::array();
  for (const Measurement& m : measured) {
    results.push_back(result_json(flags, m, loaded, bandwidth, exec));
  }
  if (flags.common.json) {
    print_json(flags.has_lists() ? results : results[0]);
  } else if (flags.has_lists()) {
    print(head_text(results[0], static_cast<double>(measured.back().peak_memory)) +
          rows_text(results));
  } else {
    print(table(results[0]));
  }
}

}  // namespace

void add_bench_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<BenchFlags>();  // shared: the callback outlives this function
  CLI::App* command = app.add_subcommand("bench", "Measure how fast a model runs here");
  add_model_argument(*command, flags->path)->required(false);  // bench kernels has none
  add_bench_kernels_command(*command, invocation);
  add_bench_kv_command(*command, invocation);
  add_bench_attention_command(*command, invocation);
  const auto add = [&](const char* name, auto& value, const char* help) {
    command->add_option(name, value, help)->capture_default_str()->type_name("N");
  };
  // One word each, or a MODEL behind it would be taken for a number.
  const auto add_list = [&](const char* name, std::vector<int64_t>& values, const char* help) {
    command->add_option(name, values, help)
        ->capture_default_str()
        ->type_name("N,...")
        ->delimiter(',')
        ->allow_extra_args(false);
  };
  add_list("-p,--prompt-tokens", flags->prompt_tokens, "Tokens to prefill; 0: skip");
  add_list("-n,--decode-tokens", flags->decode_tokens, "Tokens to decode; 0: skip");
  add_list("-b,--batch", flags->batch, "Sequences at the same time");
  add_list("--depth", flags->depth, "Tokens of context when decoding begins");
  add("--chunk", flags->speed.chunk_tokens, "Rows of one prefill step");
  add("-r,--repetitions", flags->speed.repetitions, "Repetitions; the median is reported");
  command
      ->add_option("--random-weights", flags->random_weights,
                   "Random weights in this format (bf16, mxfp4, nvfp4, int4, fp8, ...) instead of "
                   "the model's; MODEL needs a config.json only")
      ->type_name("FORMAT");
  command
      ->add_option("--kv-variant", flags->kv_variant,
                   "With --random-weights and --kv aqua2 or the like: the cache's codec, made up: "
                   "dense, low-rank, block-diagonal, latent, latent-alone, mean, none")
      ->capture_default_str()
      ->type_name("VARIANT");
  add_draft_flags(*command, flags->draft);
  add_model_flags(*command, flags->model);
  add_common_flags(*command, flags->common);
  command->footer(
      "The speed is printed only if batched and chunked logits equal those of single tokens. With "
      "--draft: answers to a few fixed prompts, -b at once, with and without drafts, compared "
      "token for token. With several values of -p, -n, -b or --depth: a row each for every prompt "
      "and every number of tokens to decode.\n\n"
      "Examples:\n  lathe bench smollm2.gguf -p 512 -n 64 --threads 2\n"
      "  lathe bench smollm2.gguf -p 128,512 -n 32 -b 1,8 --depth 4,2048\n"
      "  lathe bench big.gguf --draft small.gguf -n 128\n"
      "  lathe bench kernels --rows 1,16\n"
      "  lathe bench attention --context 16384");
  command->callback([flags, command, &invocation] {
    for (const char* name : {"kernels", "attention", "kv"}) {
      if (command->got_subcommand(name)) return;
    }
    if (flags->path.empty()) throw CLI::RequiredError("MODEL");
    invocation.run = [flags] { run_bench(*flags); };
  });
}

}  // namespace lathe
