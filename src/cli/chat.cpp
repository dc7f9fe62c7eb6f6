// lathe chat: a conversation in the terminal, or over pipes a line a turn.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "cli/chat_session.h"
#include "cli/command.h"
#include "cli/draft_flags.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/kv_flags.h"
#include "cli/line_reader.h"
#include "cli/output.h"
#include "cli/sampling_flags.h"
#include "server/sampling_fields.h"

namespace lathe {
namespace {

constexpr const char* kHelp =
    "/help           this list\n"
    "/clear          begin a new conversation\n"
    "/system TEXT    set the system message (nothing: remove it) and begin anew\n"
    "/regen          another answer to the last question\n"
    "/stats          times of the last answer, size of the conversation\n"
    "/save FILE      write the conversation as JSON\n"
    "/exit           leave (also Ctrl-D)\n"
    "A line that ends with \\ goes on in the next one. Ctrl-C stops an answer.\n";

struct ChatFlags {
  CommonFlags common;
  ModelFlags model;
  KvFlags kv;
  SamplingParams params;
  DraftFlags draft;
  std::string path;
  std::string system;
  std::string schema;
  int64_t context = 0;
  int64_t cache_tokens = 0;
  std::string server;
  std::string api_key;
};

// The flags that were on the command line, by their long names.
class GivenFlags {
 public:
  explicit GivenFlags(const CLI::App& command) {
    for (const CLI::Option* option : command.get_options()) {
      if (option->count() > 0) names_.push_back(option->get_name());
    }
  }
  bool operator()(std::string_view name) const {
    return std::find(names_.begin(), names_.end(), name) != names_.end();
  }
  const std::vector<std::string>& names() const { return names_; }

 private:
  std::vector<std::string> names_;
};

class Chat {
 public:
  Chat(const ChatFlags& flags, ChatSession& session, int64_t context)
      : json_(flags.common.json), session_(session), context_(context) {}

  // False: the user wants to leave.
  bool handle(const std::string& line) {
    if (line.empty() || line[0] != '/') {
      if (line.find_first_not_of(" \t") != std::string::npos) answer(&line);
      return true;
    }
    const std::size_t space = line.find(' ');
    const std::string command = line.substr(0, space);
    const std::string argument = space == std::string::npos ? "" : line.substr(space + 1);
    if (command == "/exit" || command == "/quit") return false;
    if (command == "/help") {
      say(kHelp);
    } else if (command == "/clear") {
      session_.clear();
      say("A new conversation.\n");
    } else if (command == "/system") {
      session_.set_system(argument);
      say(argument.empty() ? "No system message.\n" : "System message set.\n");
    } else if (command == "/regen") {
      answer(nullptr);
    } else if (command == "/stats") {
      say(stats());
    } else if (command == "/save") {
      save(argument);
    } else {
      say("There is no " + command + "; /help lists the commands.\n");
    }
    return true;
  }

 private:
  void say(const std::string& text) const {
    if (json_) {
      print_line(dump_json({{"note", text}}));
    } else {
      print(text);
    }
  }

  // A question, or (null) the last one again. A failure ends the turn, not the program.
  void answer(const std::string* question) {
    const InterruptScope interrupt;
    bool output_lost = false;
    const auto on_text = [&](std::string_view text) {
      output_lost = true;  // unless print() returns
      if (!json_ && !text.empty()) print(text);
      output_lost = false;
      return !interrupt.requested();
    };
    try {
      last_ = question != nullptr ? session_.ask(*question, on_text) : session_.ask_again(on_text);
    } catch (const Error& error) {
      if (output_lost) throw;  // nobody reads the answers
      say(std::string("lathe: ") + error.what() + "\n");
      return;
    }
    if (json_) {
      print_line(dump_json({{"role", "assistant"},
                            {"content", last_.text},
                            {"finish_reason", to_string(last_.reason)},
                            {"prompt_tokens", last_.usage.prompt_tokens},
                            {"completion_tokens", last_.usage.completion_tokens},
                            {"speculative", speculation_json(last_.usage.speculation)}}));
      return;
    }
    if (last_.text.empty() || last_.text.back() != '\n') print("\n");
    if (last_.reason == FinishReason::kAbort) say("[stopped]\n");
    if (last_.reason == FinishReason::kLength) {
      say("[cut off: --max-tokens or the context is reached; /clear begins anew]\n");
    }
  }

  std::string stats() const {
    char text[300];
    std::snprintf(
        text, sizeof text,
        "prompt %lld tokens, first token after %.2f s; answer %lld tokens, %.1f tokens/s\n"
        "%lld messages, %lld tokens of context used",
        static_cast<long long>(last_.usage.prompt_tokens), last_.seconds_to_first_token,
        static_cast<long long>(last_.usage.completion_tokens), last_.decode_tokens_per_second,
        static_cast<long long>(session_.num_messages()),
        static_cast<long long>(last_.usage.prompt_tokens + last_.usage.completion_tokens));
    const std::string limit = context_ > 0 ? str(" of ", context_) : "";
    const std::string speculation = speculation_text(last_.usage.speculation);
    return text + limit + "\n" + (speculation.empty() ? "" : speculation + "\n");
  }

  void save(const std::string& file) const {
    if (file.empty()) {
      say("/save needs a file name.\n");
      return;
    }
    try {
      write_file_atomically(file, dump_json({{"messages", session_.messages()}}, 1) + "\n");
      say("Saved to " + file + ".\n");
    } catch (const Error& error) {
      say(std::string("lathe: ") + error.what() + "\n");
    }
  }

  bool json_;
  ChatSession& session_;
  int64_t context_;
  ChatSession::Answer last_;
};

// context: tokens, 0 when only the server knows.
void converse(const ChatFlags& flags, LineReader& reader, ChatModel model,
              const SamplingParams& params, int64_t context, const std::string& welcome) {
  ChatSession session(std::move(model), params);
  if (!flags.system.empty()) session.set_system(flags.system);
  Chat chat(flags, session, context);
  if (reader.interactive()) print(welcome + ". /help lists the commands.\n");
  while (const std::optional<std::string> line = reader.read("> ")) {
    if (!chat.handle(*line)) break;
  }
}

// What a server cannot be told in a request, or decides for all of them.
void refuse_local_flags(const GivenFlags& given) {
  static constexpr std::string_view kKnown[] = {
      "MODEL",   "--server", "--api-key", "--system", "--schema",     "--temperature", "--top-p",
      "--top-k", "--min-p",  "--seed",    "--stop",   "--max-tokens", "--json"};
  for (const std::string& name : given.names()) {
    if (std::find(std::begin(kKnown), std::end(kKnown), name) != std::end(kKnown)) continue;
    fail(ErrorCode::kInvalidArgument, name,
         " is for a model in this process; leave it out with --server, which has its own");
  }
}

// Only what was asked for: the server has defaults of its own.
Json request_fields(const std::string& model, const ChatFlags& flags, const GivenFlags& given) {
  const SamplingParams& params = flags.params;
  Json fields = {{"model", model}};
  if (given("--temperature")) fields["temperature"] = params.temperature;
  if (given("--top-p")) fields["top_p"] = params.top_p;
  if (given("--top-k")) fields["top_k"] = params.top_k;
  if (given("--min-p")) fields["min_p"] = params.min_p;
  if (given("--seed")) fields["seed"] = 0;  // the session's
  if (params.max_tokens > 0) fields["max_tokens"] = params.max_tokens;
  if (!params.stop.empty()) fields["stop"] = params.stop;
  if (!flags.schema.empty()) {
    fields["response_format"] = {
        {"type", "json_schema"},
        {"json_schema", {{"name", "answer"}, {"schema", read_schema(flags.schema)}}}};
  }
  return fields;
}

void chat_with_server(const ChatFlags& flags, const SamplingParams& params,
                      const GivenFlags& given) {
  refuse_local_flags(given);
  const ApiClient client(flags.server, flags.api_key);
  Json fields = request_fields(flags.path, flags, given);
  if (flags.path.empty()) fields["model"] = client.first_model();
  LineReader reader;
  converse(flags, reader, server_chat_model(client, fields), params, 0,
           str(fields["model"].get<std::string>(), " at ", flags.server));
}

// What the flags leave open, as the model's authors recommend it.
SamplingParams with_model_defaults(const SamplingParams& flags, const GivenFlags& given,
                                   const Checkpoint& checkpoint) {
  SamplingParams params =
      sampling_defaults(checkpoint.auxiliary_file("generation_config.json"), flags);
  if (given("--temperature")) params.temperature = flags.temperature;
  if (given("--top-p")) params.top_p = flags.top_p;
  if (given("--top-k")) params.top_k = flags.top_k;
  if (given("--min-p")) params.min_p = flags.min_p;
  return params;
}

void run_chat(const ChatFlags& flags, const GivenFlags& given) {
  SamplingParams params = flags.params;
  if (!given("--seed")) params.seed = std::random_device()();
  check_sampling_flags(params);
  if (!flags.server.empty()) return chat_with_server(flags, params, given);
  if (flags.path.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "give a MODEL, or --server URL to talk with a running server");
  }
  const std::shared_ptr<const Grammar> grammar = schema_grammar(flags.schema);
  Runtime runtime(flags.common);
  LineReader reader;
  KvParking parking(flags.model, flags.kv);
  const EngineOptions wanted = {
      .max_num_seqs = 1, .max_sequence_tokens = flags.context, .cache_tokens = flags.cache_tokens};
  name_flags([&] { validate(wanted); });
  const LoadedModel loaded(flags.path, parking.model_flags(), runtime.exec(),
                           {.quiet = !reader.interactive(), .max_sequence_tokens = flags.context});
  const LoadedDraft draft(flags.draft, loaded, parking.model_flags(), runtime.exec(),
                          {.quiet = !reader.interactive(), .max_sequence_tokens = flags.context});
  parking.load(loaded.checkpoint());
  const EngineOptions options = loaded.kv().engine_options(
      wanted, loaded.model().config(), runtime.exec(), draft.cache_token_bytes());
  Engine engine(loaded.model(), make_engine_cache(loaded.model(), options), &loaded.tokenizer(),
                options, runtime.exec());
  draft.attach(engine);
  parking.attach(engine, loaded.model(), loaded.checkpoint(), runtime.exec());
  params = with_model_defaults(params, given, loaded.checkpoint());
  converse(flags, reader, local_chat_model(loaded, engine, token_grammar(grammar, loaded)), params,
           options.max_sequence_tokens,
           str(flags.path, ", ", options.max_sequence_tokens, " tokens of context"));
}

}  // namespace

void add_chat_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<ChatFlags>();  // shared: the callback outlives this function
  flags->params.temperature = 0.7;
  flags->params.top_p = 0.95;
  CLI::App* command = app.add_subcommand("chat", "Talk with a model");
  add_model_argument(*command, flags->path)
      ->required(false)
      ->description("A model directory or a GGUF file; with --server: the model's name there");
  command->add_option("--server", flags->server, "Talk with a server of OpenAI's API instead")
      ->type_name("URL");
  command->add_option("--api-key", flags->api_key, "The key that the server wants")
      ->type_name("KEY");
  command->add_option("--system", flags->system, "System message")->type_name("TEXT");
  add_schema_flag(*command, flags->schema);
  command->add_option("--context", flags->context, "Tokens of the conversation; 0: the model's")
      ->type_name("TOKENS");
  command->add_option("--cache-tokens", flags->cache_tokens, kCacheTokensHelp)->type_name("TOKENS");
  add_sampling_flags(*command, flags->params);
  add_draft_flags(*command, flags->draft);
  add_model_flags(*command, flags->model);
  add_kv_flags(*command, flags->kv);
  add_common_flags(*command, flags->common);
  command->footer(
      std::string(kHelp) +
      "\nWhere no flag says otherwise, a model's generation_config.json sets temperature, "
      "top-p, top-k, min-p and the repetition penalty. With --server that is the server's to say: "
      "it is "
      "sent the flags that were given, and those of a model in this process are refused.\n"
      "\nExample:\n  lathe chat smollm2.gguf --system \"Be brief.\"\n"
      "  lathe chat --server http://localhost:8000");
  command->callback([flags, command, &invocation] {
    invocation.run = [flags, command] { run_chat(*flags, GivenFlags(*command)); };
  });
}

}  // namespace lathe
