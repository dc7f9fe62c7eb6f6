// Requests, answers and who makes them, without a word about sockets or the HTTP library.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/connection.h"

namespace lathe {

struct HttpRequest {
  std::string id;      // for logs, answers and X-Request-Id: the client's, or a new one
  std::string method;  // GET, POST, ...
  std::string path;    // without the query
  std::string query;
  std::string host, authorization, content_type, user_agent;
  std::string peer;  // address of the client
  bool has_body = false;
  std::string body;  // empty while only the head is there
};

// Sends a piece of a streamed answer at once. False: the client is gone or too slow; stop.
using StreamWrite = std::function<bool(std::string_view)>;

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  // Set: the body comes from this, in pieces, and `body` is not used. Called once, or not at all
  // when the client leaves before. The reason for a status other than 200 must be known before.
  std::function<void(const StreamWrite&)> stream;
};

// What became of a request, for logs and counters.
struct HttpOutcome {
  int status = 0;
  int64_t body_bytes = 0;
  double seconds = 0;        // from the end of the head
  bool client_gone = false;  // it left, or read too slowly, before the answer was complete
};

// Makes the answers. Called from many threads at once, one for each connection; must not throw.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // Before the body is read: the answer when the head alone decides (no such path, no key).
  virtual std::optional<HttpResponse> check_head(const HttpRequest& request) = 0;
  // The answer. It may take as long as it wants, but has to end soon once the client is gone.
  virtual HttpResponse handle(const HttpRequest& request, const ClientWatch& client) = 0;
  // The answer to what is no proper request (bad head, too large, too slow).
  virtual HttpResponse refuse(const HttpRequest& request, int status,
                              const std::string& message) = 0;
  virtual void finished(const HttpRequest& request, const HttpOutcome& outcome) = 0;
};

}  // namespace lathe
