// A server on the committed tiny model (random weights, a token for each byte), and plain sockets
// to talk to it: what a hostile client sends, no HTTP library would.
#pragma once
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/json.h"
#include "engine/tiny_engine.h"
#include "server/api.h"
#include "server/http_server.h"

namespace lathe {

inline constexpr const char* kTinyTemplate =
    "{% if tools %}<tool_call>arguments{% endif %}"
    "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('no such role') }}"
    "{% endif %}{{ m.role + ':' + m.content + ';' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";

// A client that leaves when it is told to.
struct FakeClient : ClientWatch {
  bool is_gone() const override { return gone; }
  int fd() const override { return -1; }
  std::atomic<bool> gone{false};
};

// Makes the engine speculate before it runs, and says what requests may ask for.
using TinySpeculation = std::function<ServedSpeculation(TinyEngine&)>;

struct TinyApi {
  explicit TinyApi(const EngineOptions& options = small_options(), const ApiLimits& limits = {},
                   int64_t max_queue = 8, std::vector<std::string> keys = {},
                   const TinySpeculation& speculate = nullptr, double shadow_share = 0)
      : tiny(options),
        speculation(speculate ? speculate(tiny) : ServedSpeculation{}),
        shadow(shadow_share > 0
                   ? std::make_unique<JudgeShadow>(
                         tiny.engine, JudgeShadowOptions{.share = shadow_share,
                                                         .threshold = speculation.judge_threshold,
                                                         .certified = {},
                                                         .on_alarm = nullptr})
                   : nullptr),
        chat_template(kTinyTemplate, "", ""),
        prompt_pass(*tiny.loaded.model, KvFormat::kF32, 64, tiny.loaded.owned.exec),
        metrics("tiny", tiny.options.max_sequence_tokens, speculation),
        admission(tiny.options.max_num_seqs, max_queue),
        runner(tiny.engine, prompt_pass, shadow.get()),
        context{.runner = runner,
                .metrics = metrics,
                .admission = admission,
                .model = {.id = "tiny",
                          .created = 1,
                          .tokenizer = &tiny.tokenizer,
                          .chat_template = &chat_template,
                          .vocabulary = std::make_shared<TokenTrie>(tiny.tokenizer,
                                                                    std::vector<int64_t>{300}),
                          .vocab_size = tiny.loaded.config().vocab_size,
                          .max_tokens = tiny.options.max_sequence_tokens,
                          .defaults = {},
                          .speculation = speculation},
                .limits = limits,
                .shadow = shadow.get()},
        access(keys, "127.0.0.1"),
        log([this](std::string_view line) { log_lines.emplace_back(line); }),
        api(context, access, log) {}

  // One request without sockets. Fills `streamed` with the pieces of a streamed answer.
  HttpResponse post(const std::string& path, const std::string& body) {
    HttpRequest request = head("POST", path);
    request.content_type = "application/json";
    request.has_body = true;
    if (auto early = api.check_head(request)) return *early;
    request.body = body;
    HttpResponse response = api.handle(request, client);
    streamed.clear();
    if (response.stream) {
      response.stream([this](std::string_view piece) {
        streamed.emplace_back(piece);
        if (on_piece) on_piece();
        return !client.gone;
      });
    }
    return response;
  }
  HttpResponse get(const std::string& path) {
    const HttpRequest request = head("GET", path);
    if (auto early = api.check_head(request)) return *early;
    return api.handle(request, client);
  }
  Json answer(const std::string& path, const Json& body) {
    const HttpResponse response = post(path, dump_json(body));
    EXPECT_EQ(response.status, 200) << response.body;
    return parse_json(response.body, path);
  }
  // The data of the events of a streamed answer, without the last, "[DONE]".
  std::vector<Json> events(const std::string& path, const Json& body) {
    const HttpResponse response = post(path, dump_json(body));
    EXPECT_EQ(response.status, 200) << response.body;
    std::vector<Json> result;
    for (const std::string& piece : streamed) {
      EXPECT_EQ(piece.rfind("data: ", 0), 0u) << piece;
      EXPECT_TRUE(piece.ends_with("\n\n")) << piece;
      const std::string data = piece.substr(6, piece.size() - 8);
      if (data != "[DONE]") result.push_back(parse_json(data, "event"));
    }
    EXPECT_EQ(streamed.empty() ? "" : streamed.back(), "data: [DONE]\n\n");
    return result;
  }
  static HttpRequest head(const std::string& method, const std::string& path) {
    HttpRequest request;
    request.id = "test";
    request.method = method;
    request.path = path;
    request.host = "localhost";
    return request;
  }

  TinyEngine tiny;
  ServedSpeculation speculation;
  std::unique_ptr<JudgeShadow> shadow;
  ChatTemplate chat_template;
  PromptPass prompt_pass;
  ServerMetrics metrics;
  Admission admission;
  EngineRunner runner;
  ApiContext context;
  AccessRules access;
  std::vector<std::string> log_lines;
  RequestLog log;
  Api api;
  FakeClient client;
  std::vector<std::string> streamed;
  std::function<void()> on_piece;
};

// A connection to 127.0.0.1.
class RawClient {
 public:
  explicit RawClient(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~RawClient() { close(fd_); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  void send(const std::string& bytes) const {
    (void)!::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  // What comes until the other end closes, `until` has come, or the time is over.
  std::string read(const std::string& until = "", int timeout_ms = 10'000) {
    std::string received;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    for (;;) {
      if (!until.empty() && received.find(until) != std::string::npos) return received;
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline - std::chrono::steady_clock::now());
      pollfd poll_fd = {fd_, POLLIN, 0};
      if (left.count() <= 0 || poll(&poll_fd, 1, static_cast<int>(left.count())) <= 0) {
        timed_out_ = true;
        return received;
      }
      char bytes[4096];
      const ssize_t size = recv(fd_, bytes, sizeof bytes, 0);
      if (size <= 0) {
        closed_ = true;
        return received;
      }
      received.append(bytes, static_cast<std::size_t>(size));
    }
  }
  bool timed_out() const { return timed_out_; }
  bool closed() const { return closed_; }
  int fd() const { return fd_; }

 private:
  int fd_;
  bool timed_out_ = false;
  bool closed_ = false;
};

// Waits until a condition holds; false when it does not within ten seconds.
template <typename Condition>
bool eventually(const Condition& condition) {
  for (int i = 0; i < 1000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

}  // namespace lathe
