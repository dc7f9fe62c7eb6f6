// lathe serve: the OpenAI-compatible server and the chat page.
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <ctime>
#include <iostream>
#include <memory>
#include <random>

#include "base/error.h"
#include "base/json.h"
#include "cli/command.h"
#include "cli/draft_flags.h"
#include "cli/flags.h"
#include "cli/kv_flags.h"
#include "cli/loaded_model.h"
#include "cli/output.h"
#include "cli/version.h"
#include "eval/json_lines.h"
#include "server/api.h"
#include "server/embedded.h"
#include "server/http_server.h"
#include "server/sampling_fields.h"

namespace lathe {
namespace {

struct ServeFlags {
  CommonFlags common;
  ModelFlags model;
  KvFlags kv;
  DraftFlags draft;
  double judge_shadow = 0;
  double judge_alarm = -1;
  std::string path;
  std::string name;
  HttpServerOptions http;
  ApiLimits limits;
  EngineOptions engine;
  std::vector<std::string> api_keys;
  std::string api_key_file;
  bool metrics_without_key = false;
  std::string tls_cert, tls_key;
  int64_t max_embedding_tokens = 8192;
  std::string pooling = "last";
  bool ignore_generation_config = false;
  double idle_timeout = 30, head_timeout = 10, body_timeout = 30, write_timeout = 30;
  double drain_timeout = 30;
  std::string log = "json";
};

std::chrono::milliseconds milliseconds(const char* flag, double seconds) {
  if (!(seconds > 0 && seconds <= 86400)) {
    fail(ErrorCode::kInvalidArgument, flag, " ", seconds, ": seconds, more than 0, at most 86400");
  }
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000 + 0.5));
}

void check_range(const char* flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  fail(ErrorCode::kInvalidArgument, flag, " ", value, ": it must be in [", low, ", ", high, "]");
}

void check_judge_flags(const ServeFlags& flags) {
  if (!(flags.judge_shadow >= 0 && flags.judge_shadow <= 1)) {
    fail(ErrorCode::kInvalidArgument, "--judge-shadow ", flags.judge_shadow, ": 0 to 1");
  }
  if (flags.judge_shadow > 0 && flags.draft.judge.empty()) {
    fail(ErrorCode::kInvalidArgument, "--judge-shadow watches a judge; it needs --judge");
  }
  if (flags.judge_alarm == -1) return;
  if (!(flags.judge_alarm > 0 && flags.judge_alarm < 1)) {
    fail(ErrorCode::kInvalidArgument, "--judge-alarm ", flags.judge_alarm, ": above 0 and below 1");
  }
  if (flags.judge_shadow == 0 || !(flags.draft.judge_threshold > 0)) {
    fail(ErrorCode::kInvalidArgument,
         "--judge-alarm lowers --judge-threshold by what --judge-shadow sees; it needs both");
  }
}

// Checked before the model is loaded, which takes a while.
void check(ServeFlags& flags) {
  flags.http.limits.idle_timeout = milliseconds("--idle-timeout", flags.idle_timeout);
  flags.http.limits.head_timeout = milliseconds("--header-timeout", flags.head_timeout);
  flags.http.limits.body_timeout = milliseconds("--body-timeout", flags.body_timeout);
  flags.http.limits.write_timeout = milliseconds("--write-timeout", flags.write_timeout);
  if (flags.drain_timeout != 0) milliseconds("--drain-timeout", flags.drain_timeout);
  validate(flags.http.limits);
  name_flags([&] { validate(flags.engine); });
  check_range("--max-choices", flags.limits.max_choices, 1, 4096);
  check_range("--max-queue", flags.limits.max_queue, 0, 100'000);
  check_range("--request-timeout", flags.limits.max_seconds, 0, 7 * 86400);
  check_range("--max-json-depth", flags.limits.json.max_depth, 4, 256);
  check_range("--max-json-keys", flags.limits.json.max_keys, 16, 1'000'000);
  check_range("--max-json-values", flags.limits.json.max_values, 64, 100'000'000);
  check_range("--max-embedding-tokens", flags.max_embedding_tokens, 1, 1 << 22);
  if (flags.pooling != "last" && flags.pooling != "mean") {
    fail(ErrorCode::kInvalidArgument, "--pooling ", flags.pooling, ": unknown; use last or mean");
  }
  if (flags.log != "json" && flags.log != "off") {
    fail(ErrorCode::kInvalidArgument, "--log ", flags.log, ": unknown; use json or off");
  }
  check_judge_flags(flags);
  if (flags.tls_cert.empty() != flags.tls_key.empty()) {
    fail(ErrorCode::kInvalidArgument, "--tls-cert and --tls-key belong together; give both");
  }
  if (flags.api_key_file.empty()) return;
  const std::string text = read_text_file(flags.api_key_file);
  std::size_t found = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string key = text.substr(begin, end - begin);
    if (!key.empty() && key.back() == '\r') key.pop_back();
    begin = end + 1;
    if (key.empty()) continue;
    flags.api_keys.push_back(key);
    ++found;
  }
  if (found == 0) {
    fail(ErrorCode::kInvalidArgument, "--api-key-file ", flags.api_key_file,
         ": holds no key; write one a line");
  }
}

// A connection and what waits for its request are two descriptors; shells often allow 1024.
void allow_descriptors(int64_t max_connections) {
  const auto needed = static_cast<rlim_t>(2 * max_connections + 256);
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= needed) return;
  limit.rlim_cur = std::min(needed, limit.rlim_max);
  setrlimit(RLIMIT_NOFILE, &limit);  // where it fails, requests beyond the limit get status 503
}

// The last part of the path, without .gguf.
std::string name_of(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const std::size_t slash = path.rfind('/');
  std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  constexpr std::string_view kSuffix = ".gguf";
  if (name.size() > kSuffix.size() && name.ends_with(kSuffix)) {
    name.resize(name.size() - kSuffix.size());
  }
  return name;
}

int g_termination_fd = -1;  // a signal handler can reach nothing but a global

// SIGTERM and SIGINT, noted once; a second one ends the program as usual. By handler, not by a
// signal mask: libraries have started threads before main() that do not have ours.
class TerminationSignals {
 public:
  TerminationSignals() {
    g_termination_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct sigaction action = {};
    action.sa_handler = [](int) {
      const uint64_t one = 1;
      (void)!write(g_termination_fd, &one, sizeof one);
    };
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGINT, &action, nullptr);
  }
  ~TerminationSignals() {
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    close(g_termination_fd);
  }
  TerminationSignals(const TerminationSignals&) = delete;
  TerminationSignals& operator=(const TerminationSignals&) = delete;
  // True when one came in time.
  static bool wait(std::chrono::milliseconds timeout) {
    pollfd poll_fd = {g_termination_fd, POLLIN, 0};
    return poll(&poll_fd, 1, static_cast<int>(timeout.count())) > 0;
  }
};

std::string url_of(const ServeFlags& flags, int port) {
  const bool v6 = flags.http.host.find(':') != std::string::npos;
  return str(flags.tls_cert.empty() ? "http://" : "https://", v6 ? "[" : "", flags.http.host,
             v6 ? "]" : "", ":", port);
}

// The judge of the flags, and what requests may ask for. Exact is what a request gets that says
// nothing, unless --judge-threshold says otherwise.
ServedSpeculation set_up_speculation(const ServeFlags& flags, const LoadedDraft& draft,
                                     const LoadedModel& loaded, Engine& engine) {
  draft.attach_exact(engine);
  ServedSpeculation served;
  served.method = draft.method();
  served.is_deterministic = loaded.model().batch_tolerance() == 0;
  const ChosenJudge& chosen = draft.judge();
  auto judge = chosen.make();
  if (judge == nullptr) return served;
  served.judge = chosen.name;
  served.judge_threshold = std::max(0.0, flags.draft.judge_threshold);
  served.named_threshold = served.judge_threshold > 0 || !chosen.file
                               ? served.judge_threshold
                               : chosen.file->default_threshold;
  if (chosen.file) {
    for (std::size_t i = 0; i < chosen.file->threshold.size(); ++i) {
      served.calibration.push_back({chosen.file->threshold[i], chosen.file->recall[i]});
    }
    served.certified_thresholds = chosen.file->certified;
  }
  engine.set_judge(std::move(judge), served.judge_threshold);
  return served;
}

// Null without --judge-shadow.
std::unique_ptr<JudgeShadow> make_shadow(const ServeFlags& flags, const ServedSpeculation& served,
                                         Engine& engine, RequestLog& log) {
  if (flags.judge_shadow == 0) return nullptr;
  std::random_device device;
  return std::make_unique<JudgeShadow>(
      engine, JudgeShadowOptions{.share = flags.judge_shadow,
                                 .alarm_rate = flags.judge_alarm,
                                 .threshold = served.judge_threshold,
                                 .certified = served.certified_thresholds,
                                 .seed = (uint64_t{device()} << 32) | device(),
                                 .on_alarm = [&log](double threshold) {
                                   log.write("judge_alarm", {{"threshold", threshold}});
                                 }});
}

void run_serve(ServeFlags flags) {
  check(flags);
  const AccessRules access(flags.api_keys, flags.http.host, flags.metrics_without_key);
  std::optional<TlsContext> tls;
  if (!flags.tls_cert.empty()) tls.emplace(flags.tls_cert, flags.tls_key);
  const TerminationSignals signals;
  allow_descriptors(flags.http.limits.max_connections);
  BoundSocket socket(flags.http.host, flags.http.port);  // before the model takes its time
  Runtime runtime(flags.common);
  KvParking parking(flags.model, flags.kv);
  const LoadedModel loaded(
      flags.path, parking.model_flags(), runtime.exec(),
      {.quiet = false, .max_sequence_tokens = flags.engine.max_sequence_tokens});
  parking.load(loaded.checkpoint());
  const LoadedDraft draft(
      flags.draft, loaded, parking.model_flags(), runtime.exec(),
      {.quiet = false, .max_sequence_tokens = flags.engine.max_sequence_tokens});
  const ModelConfig& config = loaded.model().config();
  const EngineOptions options =
      loaded.kv().engine_options(flags.engine, config, runtime.exec(), draft.cache_token_bytes());
  Engine engine(loaded.model(), make_engine_cache(loaded.model(), options), &loaded.tokenizer(),
                options, runtime.exec());
  const ServedSpeculation speculation = set_up_speculation(flags, draft, loaded, engine);
  parking.attach(engine, loaded.model(), loaded.checkpoint(), runtime.exec());
  PromptPass prompt_pass(loaded.model(), loaded.kv().live_format(),
                         std::min(flags.max_embedding_tokens, options.max_sequence_tokens),
                         runtime.exec());

  ServedModel model;
  model.id = flags.name.empty() ? name_of(flags.path) : flags.name;
  model.created = std::time(nullptr);
  model.tokenizer = &loaded.tokenizer();
  model.chat_template = loaded.chat_template();
  model.vocabulary = std::make_shared<TokenTrie>(loaded.tokenizer(), config.eos_token_ids);
  model.vocab_size = config.vocab_size;
  model.max_tokens = options.max_sequence_tokens;
  if (!flags.ignore_generation_config) {
    model.defaults =
        sampling_defaults(loaded.checkpoint().auxiliary_file("generation_config.json"));
  }
  model.speculation = speculation;
  ServerMetrics metrics(model.id, options.max_sequence_tokens, speculation);
  Admission admission(options.max_num_seqs, flags.limits.max_queue);
  RequestLog log(flags.log == "off"
                     ? std::function<void(std::string_view)>()
                     : [](std::string_view line) { std::cerr << line << std::flush; });
  const std::unique_ptr<JudgeShadow> shadow = make_shadow(flags, speculation, engine, log);
  EngineRunner runner(engine, prompt_pass, shadow.get());
  const ApiContext context{.runner = runner,
                           .metrics = metrics,
                           .admission = admission,
                           .model = model,
                           .limits = flags.limits,
                           .pooling = flags.pooling == "mean" ? Pooling::kMean : Pooling::kLast,
                           .shadow = shadow.get()};
  Api api(context, access, log);
  HttpServer server(std::move(socket), flags.http.limits, tls ? &*tls : nullptr, api);
  api.set_http_stats([&server] { return server.stats(); });
  server.start();
  const std::string url = url_of(flags, server.port());
  const bool has_page = !embedded_file("page/index.html").empty();
  if (flags.common.json) {
    print_line(dump_json({{"url", url}, {"port", server.port()}, {"model", model.id}}));
  } else {
    print(str(model.id, ": ", options.max_sequence_tokens, " tokens of context, cache of ",
              options.cache_tokens, " tokens\n", has_page ? "chat: " + url + "/\n" : "",
              "API:  ", url, "/v1\n"));
  }
  log.write("listening", {{"url", url}, {"model", model.id}, {"version", kLatheVersion}});

  while (!signals.wait(std::chrono::milliseconds(500)) && runner.is_healthy()) {
  }
  const bool healthy = runner.is_healthy();
  log.write("draining", {{"open", admission.num_open()}, {"seconds", flags.drain_timeout}});
  api.start_draining();
  const bool in_time = server.stop(
      std::chrono::milliseconds(static_cast<int64_t>(healthy ? flags.drain_timeout * 1000 : 0)));
  log.write("stopped", {{"all_answered", in_time}});
  if (!healthy) fail(ErrorCode::kInternal, "the engine failed; see the log above");
}

}  // namespace

void add_serve_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<ServeFlags>();  // shared: the callback outlives this function
  CLI::App* command = app.add_subcommand("serve", "OpenAI-compatible server and chat page");
  const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
    return command->add_option(name, value, help)->capture_default_str()->type_name(type);
  };
  HttpLimits& http = flags->http.limits;
  add_model_argument(*command, flags->path);
  add("--host", flags->http.host, "Address to listen on; beyond this machine a key is needed",
      "ADDRESS");
  add("--port", flags->http.port, "Port to listen on; 0: a free one", "N");
  add("--served-model-name", flags->name, "The model's name in the API (default: of its path)",
      "NAME");
  command->add_option("--api-key", flags->api_keys, "A key that clients must send; several may be")
      ->type_name("KEY")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  command->add_option("--api-key-file", flags->api_key_file, "Keys, one a line")->type_name("FILE");
  command->add_flag(
      "--metrics-without-key", flags->metrics_without_key,
      "Answer /metrics to whoever can reach it, as vLLM does; Prometheus sends no key");
  command->add_option("--tls-cert", flags->tls_cert, "Serve HTTPS with this certificate (PEM)")
      ->type_name("FILE");
  command->add_option("--tls-key", flags->tls_key, "The certificate's key (PEM)")
      ->type_name("FILE");
  add("--context", flags->engine.max_sequence_tokens,
      "Longest prompt and answer; 0: what model and cache allow", "TOKENS");
  add("--cache-tokens", flags->engine.cache_tokens, kCacheTokensHelp, "TOKENS");
  add("--max-num-seqs", flags->engine.max_num_seqs, "Choices that are computed at the same time",
      "N");
  add("--max-batch-tokens", flags->engine.max_batch_tokens, "Tokens of one step", "N");
  command->add_flag("!--no-prefix-cache", flags->engine.prefix_cache,
                    "Do not share what prompts have in common with earlier ones");
  add("--max-queue", flags->limits.max_queue, "Choices that may wait; more get status 429", "N");
  add("--max-choices", flags->limits.max_choices, "Prompts times n of one request", "N");
  add("--request-timeout", flags->limits.max_seconds, "Longest request; 0: no limit", "SECONDS");
  add("--max-connections", http.max_connections, "Open connections; more get status 503", "N");
  add("--max-header", http.max_head_bytes, "Bytes of a request's line and headers", "BYTES");
  add("--max-headers", http.max_headers, "Headers of a request", "N");
  add("--max-body", http.max_body_bytes, "Bytes of a request's body", "BYTES");
  add("--max-json-depth", flags->limits.json.max_depth, "Nesting of a body", "N");
  add("--max-json-keys", flags->limits.json.max_keys, "Keys of one object in a body", "N");
  add("--max-json-values", flags->limits.json.max_values, "Values in a body", "N");
  add("--idle-timeout", flags->idle_timeout, "Connections without a request are closed", "SECONDS");
  add("--header-timeout", flags->head_timeout, "For a request's headers to arrive", "SECONDS");
  add("--body-timeout", flags->body_timeout, "For a request's body to arrive", "SECONDS");
  add("--write-timeout", flags->write_timeout, "For a client to take a piece of its answer",
      "SECONDS");
  add("--drain-timeout", flags->drain_timeout, "For open requests to end after SIGTERM", "SECONDS");
  add("--pooling", flags->pooling, "Embeddings: last (token) or mean", "KIND");
  add("--max-embedding-tokens", flags->max_embedding_tokens,
      "Longest text for embeddings and echoed logprobs", "TOKENS");
  command->add_flag("--ignore-generation-config", flags->ignore_generation_config,
                    "Sampling defaults of the API, not of the model's generation_config.json");
  add("--log", flags->log, "json: a line for each request on standard error; off", "KIND");
  add_draft_flags(*command, flags->draft);
  command->get_option("--judge-threshold")
      ->description(
          "Of requests that do not name the judge; larger lets more pass (default: 0, exact). "
          "top-k: k; kl: nats; typical: 0 to 1");
  add("--judge-shadow", flags->judge_shadow,
      "Compute this share of judged answers once more, exactly, while nobody waits, and count "
      "those "
      "that differ (/metrics)",
      "SHARE");
  command
      ->add_option("--judge-alarm", flags->judge_alarm,
                   "Lower --judge-threshold when more than this share of them differ (a test at "
                   "5 %)")
      ->type_name("SHARE");
  add_model_flags(*command, flags->model);
  add_kv_flags(*command, flags->kv);
  add_common_flags(*command, flags->common);
  command->footer(
      "Listens until SIGTERM or Ctrl-C, then answers what is open and ends. docs/server.md has the "
      "routes.\n\nExample:\n  lathe serve smollm2.gguf --port 8000\n"
      "  curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n"
      "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}]}'");
  command->callback([flags, &invocation] { invocation.run = [flags] { run_serve(*flags); }; });
}

}  // namespace lathe
