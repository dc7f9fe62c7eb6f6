#include "server/api_client.h"

#include <httplib.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "base/error.h"
#include "base/json.h"
#include "server/event_reader.h"

namespace lathe {
namespace {

constexpr std::size_t kMaxErrorBytes = 64 << 10;

// What the server says is wrong, or its status.
[[noreturn]] void fail_with_answer(const std::string& url, int status, const std::string& body) {
  std::string message;
  try {
    const Json json = parse_json(body, "answer");
    if (json.is_object() && json.contains("error") && json["error"].is_object() &&
        json["error"].contains("message") && json["error"]["message"].is_string()) {
      message = json["error"]["message"].get<std::string>();
    }
  } catch (const Error&) {
    // Not JSON: the status has to do.
  }
  if (message.empty()) message = str("status ", status);
  ErrorCode code = ErrorCode::kInternal;
  if (status == 404) code = ErrorCode::kNotFound;
  if (status == 400 || status == 401 || status == 413) code = ErrorCode::kInvalidArgument;
  fail(code, url, ": ", message);
}

[[noreturn]] void fail_to_reach(const std::string& url, httplib::Error error) {
  const char* reason = "the connection broke off";
  if (error == httplib::Error::Connection || error == httplib::Error::ConnectionTimeout) {
    reason = "cannot connect; is the server running?";
  } else if (error == httplib::Error::SSLConnection || error == httplib::Error::SSLLoadingCerts) {
    reason = "TLS failed; is this an https server?";
  } else if (error == httplib::Error::SSLServerVerification) {
    reason = "the server's certificate is not signed by anyone this machine trusts";
  }
  fail(ErrorCode::kIo, url, ": ", reason);
}

httplib::Client make_client(const ServerAddress& address) {
  httplib::Client client(address.origin);
  if (!client.is_valid())
    fail(ErrorCode::kInvalidArgument, address.origin, " is no server address");
  client.set_connection_timeout(10);
  client.set_read_timeout(600);  // a long prompt on a busy server comes before the first token
  client.set_follow_location(false);
  return client;
}

httplib::Headers headers_of(const std::string& key) {
  httplib::Headers headers;
  if (!key.empty()) headers.emplace("Authorization", "Bearer " + key);
  return headers;
}

// One event of a streamed answer, added to the reply. False: on_text does not want more.
bool add_event(const std::string& url, const std::string& data, ServerReply& reply,
               const std::function<bool(std::string_view)>& on_text) {
  const Json json = parse_json(data, url);
  if (!json.is_object()) fail(ErrorCode::kCorruptData, url, ": an event that is no object");
  if (json.contains("error")) fail_with_answer(url, 500, data);
  if (json.contains("usage") && json["usage"].is_object()) {
    const Json& usage = json["usage"];
    reply.usage.prompt_tokens = usage.value("prompt_tokens", int64_t{0});
    reply.usage.completion_tokens = usage.value("completion_tokens", int64_t{0});
  }
  if (!json.contains("choices") || !json["choices"].is_array() || json["choices"].empty())
    return true;
  const Json& choice = json["choices"][0];
  if (!choice.is_object()) return true;
  if (choice.contains("finish_reason") && choice["finish_reason"] == "length") {
    reply.reason = FinishReason::kLength;
  }
  if (!choice.contains("delta") || !choice["delta"].is_object()) return true;
  const Json& delta = choice["delta"];
  if (!delta.contains("content") || !delta["content"].is_string()) return true;
  const std::string text = delta["content"].get<std::string>();
  reply.text += text;
  return text.empty() || on_text(text);
}

}  // namespace

ServerAddress parse_server_url(const std::string& url) {
  const std::size_t scheme = url.rfind("https://", 0) == 0  ? 8
                             : url.rfind("http://", 0) == 0 ? 7
                                                            : 0;
  const std::size_t slash = url.find('/', scheme);
  ServerAddress address;
  address.origin = url.substr(0, slash);
  address.prefix = slash == std::string::npos ? "" : url.substr(slash);
  while (!address.prefix.empty() && address.prefix.back() == '/') address.prefix.pop_back();
  if (address.prefix.empty()) address.prefix = "/v1";
  const bool plain = url.find_first_of(" \t\r\n?#@") == std::string::npos;
  if (scheme == 0 || address.origin.size() == scheme || !plain) {
    fail(ErrorCode::kInvalidArgument, "--server ", url,
         ": write it as http://localhost:8000 or https://HOST/v1");
  }
  return address;
}

ApiClient::ApiClient(const std::string& url, std::string key)
    : address_(parse_server_url(url)), key_(std::move(key)) {}

std::string ApiClient::first_model() const {
  httplib::Client client = make_client(address_);
  const std::string url = address_.origin + address_.prefix + "/models";
  const httplib::Result result =
      client.Get((address_.prefix + "/models").c_str(), headers_of(key_));
  if (!result) fail_to_reach(url, result.error());
  if (result->status != 200) fail_with_answer(url, result->status, result->body);
  const Json json = parse_json(result->body, url);
  if (json.is_object() && json.contains("data") && json["data"].is_array() &&
      !json["data"].empty()) {
    const Json& first = json["data"][0];
    if (first.is_object() && first.contains("id") && first["id"].is_string()) {
      return first["id"].get<std::string>();
    }
  }
  fail(ErrorCode::kCorruptData, url, ": lists no model");
}

namespace {

// The request in a thread of its own, so that the caller can end it while the server is silent:
// before the first token of a long prompt, and while nobody answers at all.
class StreamedRequest {
 public:
  StreamedRequest(const ServerAddress& address, const std::string& key, const std::string& body)
      : client_(make_client(address)) {
    request_.method = "POST";
    request_.path = address.prefix + "/chat/completions";
    request_.headers = headers_of(key);
    request_.set_header("Content-Type", "application/json");
    request_.set_header("Accept", "text/event-stream");
    request_.body = body;
    request_.response_handler = [this](const httplib::Response& response) {
      const std::lock_guard lock(mutex_);
      status_ = response.status;
      return true;
    };
    request_.content_receiver = [this](const char* bytes, std::size_t size, uint64_t, uint64_t) {
      const std::lock_guard lock(mutex_);
      received_.append(bytes, size);
      arrived_.notify_one();
      return received_.size() < kMaxUnread;
    };
    thread_ = std::thread([this] {
      const httplib::Result result = client_.send(request_);
      const std::lock_guard lock(mutex_);
      if (!result) error_ = result.error();
      done_ = true;
      arrived_.notify_one();
    });
  }
  ~StreamedRequest() {
    client_.stop();
    thread_.join();
  }
  StreamedRequest(const StreamedRequest&) = delete;
  StreamedRequest& operator=(const StreamedRequest&) = delete;

  // Adds what has come within a moment; false: that was all.
  bool receive(std::string& bytes) {
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, std::chrono::milliseconds(50),
                      [this] { return done_ || !received_.empty(); });
    bytes += received_;
    received_.clear();
    return !done_;
  }
  // Once receive() has said false, or the first bytes have come.
  int status() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }
  std::optional<httplib::Error> error() const {
    const std::lock_guard lock(mutex_);
    return error_;
  }

 private:
  static constexpr std::size_t kMaxUnread = std::size_t{64} << 20;
  httplib::Client client_;
  httplib::Request request_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::string received_;
  int status_ = 0;
  bool done_ = false;
  std::optional<httplib::Error> error_;
  std::thread thread_;
};

}  // namespace

ServerReply ApiClient::chat(const Json& body,
                            const std::function<bool(std::string_view)>& on_text) const {
  const std::string url = address_.origin + address_.prefix + "/chat/completions";
  Json wanted = body;
  wanted["stream"] = true;
  wanted["stream_options"] = {{"include_usage", true}};
  StreamedRequest request(address_, key_, dump_json(wanted));
  ServerReply reply;
  EventReader reader;
  std::string error_text;
  bool complete = false;
  bool goes_on = true;
  bool is_open = true;
  while (is_open && goes_on) {
    std::string bytes;
    is_open = request.receive(bytes);
    if (bytes.empty()) {
      goes_on = on_text("");
    } else if (request.status() != 200) {
      error_text += bytes.substr(0, kMaxErrorBytes - std::min(kMaxErrorBytes, error_text.size()));
    } else {
      goes_on = reader.push(bytes, [&](const std::string& data) {
        complete = complete || data == "[DONE]";
        return data == "[DONE]" || add_event(url, data, reply, on_text);
      });
    }
  }
  if (!goes_on && !complete) {
    reply.reason = FinishReason::kAbort;
    return reply;
  }
  const int status = request.status();
  if (status != 0 && status != 200) fail_with_answer(url, status, error_text);
  if (const auto error = request.error(); error && !complete) fail_to_reach(url, *error);
  if (!complete) fail(ErrorCode::kIo, url, ": the answer broke off");
  return reply;
}

}  // namespace lathe
