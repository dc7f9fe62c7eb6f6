// What a client sends, from its first byte: heads are parsed, bodies decoded, answers written,
// request after request on one connection, as http_server.cpp does.
#include <cstdlib>

#include "server/http_codec.h"
#include "text/unicode.h"

namespace {

// The rest of the bytes comes in small pieces; the answers are kept.
class MemoryChannel : public lathe::ByteChannel {
 public:
  explicit MemoryChannel(std::string_view bytes) : rest_(bytes) {}
  lathe::Connection::Result receive(std::string& buffer, std::size_t max_bytes) override {
    if (rest_.empty()) return lathe::Connection::Result::kClosed;
    const std::size_t size = std::min({max_bytes, rest_.size(), std::size_t{7}});
    buffer.append(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return lathe::Connection::Result::kOk;
  }
  lathe::Connection::Result send(const char* bytes, std::size_t size) override {
    sent.append(bytes, size);
    return lathe::Connection::Result::kOk;
  }
  std::string sent;

 private:
  std::string_view rest_;
};

struct Client : lathe::ClientWatch {
  bool is_gone() const override { return false; }
  int fd() const override { return -1; }
};

class Handler : public lathe::HttpHandler {
 public:
  std::optional<lathe::HttpResponse> check_head(const lathe::HttpRequest& request) override {
    if (request.path != "/no") return std::nullopt;
    return lathe::HttpResponse{.status = 403, .body = "no"};
  }
  lathe::HttpResponse handle(const lathe::HttpRequest& request,
                             const lathe::ClientWatch&) override {
    if (static_cast<int64_t>(request.body.size()) > limits.max_body_bytes) std::abort();
    lathe::HttpResponse response;
    if (request.path == "/stream") {
      response.stream = [](const lathe::StreamWrite& write) {
        write("a");
        write("b");
      };
    }
    return response;
  }
  lathe::HttpResponse refuse(const lathe::HttpRequest&, int status,
                             const std::string& message) override {
    if (status < 400 || status > 599 || message.empty()) std::abort();
    return {.status = status, .body = message};
  }
  void finished(const lathe::HttpRequest&, const lathe::HttpOutcome&) override {}
  lathe::HttpLimits limits{.max_head_bytes = 512, .max_headers = 16, .max_body_bytes = 256};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  MemoryChannel channel(bytes);
  Client client;
  Handler handler;
  std::string buffer;
  for (int requests = 0; requests < 8; ++requests) {
    std::size_t searched = 0;
    std::optional<std::size_t> end;
    while (!(end = lathe::find_head_end(buffer, searched))) {
      searched = buffer.size();
      if (static_cast<int64_t>(searched) > handler.limits.max_head_bytes) return 0;
      if (channel.receive(buffer, 1 << 10) != lathe::Connection::Result::kOk) return 0;
    }
    const auto parsed =
        lathe::parse_request_head(std::string_view(buffer).substr(0, *end), handler.limits);
    buffer.erase(0, *end);
    const auto* head = std::get_if<lathe::RequestHead>(&parsed);
    if (head == nullptr) return 0;
    if (head->path.empty() || head->path[0] != '/' || head->content_length < 0 ||
        head->content_length > handler.limits.max_body_bytes) {
      std::abort();
    }
    lathe::HttpRequest request;
    request.method = head->method;
    request.path = head->path;
    request.has_body = head->has_body();
    channel.sent.clear();
    const lathe::CodecResult result =
        lathe::run_request(*head, request, handler.check_head(request), !head->keep_alive, buffer,
                           channel, client, handler, handler.limits);
    if (channel.sent.rfind("HTTP/1.1 ", 0) != 0 || result.outcome.status == 0) std::abort();
    if (!result.can_go_on) return 0;
  }
  return 0;
}
