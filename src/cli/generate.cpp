// lathe generate: one prompt to the end. Standard output is the text alone.
#include "engine/generate.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/draft_flags.h"
#include "cli/flags.h"
#include "cli/kv_flags.h"
#include "cli/loaded_model.h"
#include "cli/output.h"
#include "cli/sampling_flags.h"
#include "cli/schema_flag.h"
#include "eval/json_lines.h"

namespace lathe {
namespace {

struct GenerateFlags {
  CommonFlags common;
  ModelFlags model;
  KvFlags kv;
  SamplingParams params;
  DraftFlags draft;
  std::string path;
  std::optional<std::string> prompt;
  std::string prompt_file;
  std::string system;
  std::string schema;
  bool raw = false;
  bool stats = false;
  int64_t context = 0;
  int64_t cache_tokens = 0;
};

std::string prompt_text(const GenerateFlags& flags) {
  if (flags.prompt && !flags.prompt_file.empty()) {
    fail(ErrorCode::kInvalidArgument, "give PROMPT or --prompt-file, not both");
  }
  if (flags.prompt && *flags.prompt != "-") return *flags.prompt;
  const bool from_file = !flags.prompt_file.empty();
  if (!from_file && isatty(STDIN_FILENO) != 0) print_warning("type the prompt; Ctrl-D ends it");
  const std::string text = from_file ? read_text_file(flags.prompt_file) : read_standard_input();
  // A command in front of the pipe that failed, rather than a question: PROMPT may be "".
  if (text.empty()) {
    fail(ErrorCode::kInvalidArgument, "the prompt is empty: nothing came from ",
         from_file ? flags.prompt_file : "standard input");
  }
  return text;
}

std::vector<int32_t> prompt_ids(const LoadedModel& loaded, const GenerateFlags& flags,
                                const std::string& text) {
  std::vector<int32_t> ids;
  if (flags.raw || !loaded.has_chat_template()) {
    if (!flags.system.empty()) {
      fail(ErrorCode::kInvalidArgument, "--system needs a chat template",
           flags.raw ? ", which --raw leaves out" : str(", and ", flags.path, " has none"));
    }
    ids = loaded.encode_text(text);
  } else {
    Json messages = Json::array();
    if (!flags.system.empty()) messages.push_back({{"role", "system"}, {"content", flags.system}});
    messages.push_back({{"role", "user"}, {"content", text}});
    ids = loaded.encode_conversation(messages, "");
  }
  if (ids.empty()) fail(ErrorCode::kInvalidArgument, "the prompt is empty");
  return ids;
}

void run_generate(const GenerateFlags& flags) {
  Runtime runtime(flags.common);
  KvParking parking(flags.model, flags.kv);
  // What can be wrong without the model is found before it is loaded.
  check_sampling_flags(flags.params);
  const EngineOptions wanted = {
      .max_num_seqs = 1, .max_sequence_tokens = flags.context, .cache_tokens = flags.cache_tokens};
  name_flags([&] { validate(wanted); });
  const std::shared_ptr<const Grammar> grammar = schema_grammar(flags.schema);
  Checkpoint::open(flags.path);  // before a prompt is waited for
  const std::string prompt_read = prompt_text(flags);
  const bool quiet = loads_quietly(flags.common);
  const LoadedModel loaded(flags.path, parking.model_flags(), runtime.exec(),
                           {.quiet = quiet, .max_sequence_tokens = flags.context});
  const LoadedDraft draft(flags.draft, loaded, parking.model_flags(), runtime.exec(),
                          {.quiet = quiet, .max_sequence_tokens = flags.context});
  std::vector<int32_t> prompt = prompt_ids(loaded, flags, prompt_read);
  std::unique_ptr<TokenConstraint> constraint = answer_constraint(token_grammar(grammar, loaded));
  parking.load(loaded.checkpoint());
  const EngineOptions options = loaded.kv().engine_options(
      wanted, loaded.model().config(), runtime.exec(), draft.cache_token_bytes());
  Engine engine(loaded.model(), make_engine_cache(loaded.model(), options), &loaded.tokenizer(),
                options, runtime.exec());
  draft.attach(engine);
  parking.attach(engine, loaded.model(), loaded.checkpoint(), runtime.exec());

  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  std::optional<Clock::time_point> first;
  bool ends_with_newline = false;
  const Generation generation = generate(
      engine, std::move(prompt), flags.params,
      [&](std::string_view text) {
        if (!first) first = Clock::now();
        if (text.empty()) return true;
        ends_with_newline = text.back() == '\n';
        if (!flags.common.json) print(text);
        return true;
      },
      std::move(constraint));
  const double total = std::chrono::duration<double>(Clock::now() - start).count();
  const double to_first = first ? std::chrono::duration<double>(*first - start).count() : total;
  const auto decoded = static_cast<double>(generation.usage.completion_tokens - 1);
  const double decode_rate = decoded > 0 && total > to_first ? decoded / (total - to_first) : 0;
  if (flags.common.json) {
    Json json = {{"text", generation.text},
                 {"finish_reason", to_string(generation.finish_reason)},
                 {"prompt_tokens", generation.usage.prompt_tokens},
                 {"completion_tokens", generation.usage.completion_tokens},
                 {"cached_tokens", generation.usage.cached_tokens},
                 {"seconds_to_first_token", to_first},
                 {"decode_tokens_per_second", decode_rate},
                 {"load_seconds", loaded.load_seconds()}};
    if (!draft.empty()) json["speculative"] = speculation_json(generation.usage.speculation);
    print_json(json);
    return;
  }
  if (!ends_with_newline) print("\n");
  if (flags.stats) {
    char text[200];
    std::snprintf(text, sizeof text,
                  "loaded in %.1f s; %lld prompt tokens, first token after %.2f s; %lld tokens, "
                  "%.1f tokens/s; ended by %s\n",
                  loaded.load_seconds(), static_cast<long long>(generation.usage.prompt_tokens),
                  to_first, static_cast<long long>(generation.usage.completion_tokens), decode_rate,
                  std::string(to_string(generation.finish_reason)).c_str());
    std::cerr << text;
    const std::string speculation = speculation_text(generation.usage.speculation);
    if (!speculation.empty()) std::cerr << speculation << "\n";
  }
}

}  // namespace

void add_generate_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<GenerateFlags>();  // shared: the callback outlives this function
  flags->params.temperature = 0;  // the same text every time, unless asked otherwise
  flags->params.max_tokens = 512;
  CLI::App* command = app.add_subcommand("generate", "Answer one prompt");
  add_model_argument(*command, flags->path);
  command->add_option("PROMPT", flags->prompt, "The prompt; '-' or nothing: from standard input")
      ->type_name("");
  command->add_option("--prompt-file", flags->prompt_file, "Read the prompt from a file")
      ->type_name("FILE");
  command->add_option("--system", flags->system, "System message")->type_name("TEXT");
  add_schema_flag(*command, flags->schema);
  command->add_flag("--raw", flags->raw, "Continue the text itself, without the chat template");
  command->add_flag("--stats", flags->stats, "Print times on standard error");
  command->add_option("--context", flags->context, "Longest prompt and answer; 0: the model's")
      ->type_name("TOKENS");
  command->add_option("--cache-tokens", flags->cache_tokens, kCacheTokensHelp)->type_name("TOKENS");
  add_sampling_flags(*command, flags->params);
  add_draft_flags(*command, flags->draft);
  add_model_flags(*command, flags->model);
  add_kv_flags(*command, flags->kv);
  add_common_flags(*command, flags->common);
  command->footer(
      "Example:\n  lathe generate smollm2.gguf \"Why is the sky blue?\" --max-tokens 100");
  command->callback([flags, &invocation] { invocation.run = [flags] { run_generate(*flags); }; });
}

}  // namespace lathe
