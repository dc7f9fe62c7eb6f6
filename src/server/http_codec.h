// The HTTP library (cpp-httplib) behind one function: it decodes a request's body and writes the
// answer. It gets the head that request_head.h wrote and a stream that ends where the body may, and
// knows nothing of sockets, deadlines and TLS.
#pragma once
#include <string>

#include "server/connection.h"
#include "server/http.h"
#include "server/http_limits.h"
#include "server/request_head.h"

namespace lathe {

// Where the library reads bodies from and writes answers to.
class ByteChannel {
 public:
  virtual ~ByteChannel() = default;
  // As Connection's, without deadlines.
  virtual Connection::Result receive(std::string& buffer, std::size_t max_bytes) = 0;
  virtual Connection::Result send(const char* bytes, std::size_t size) = 0;
};

struct CodecResult {
  HttpOutcome outcome;  // without seconds
  // The connection is in order and stands behind the body: it may serve another request.
  bool can_go_on = false;
};

// Answers one request. `head`: as parsed; `request`: the same for the handler, without a body.
// `buffer`: bytes that were received behind the head; what the body does not use stays in it.
// early: the answer, when it is known already; the body is then not read. close: says so in the
// answer. Does not throw for any bytes.
CodecResult run_request(const RequestHead& head, HttpRequest& request,
                        std::optional<HttpResponse> early, bool close, std::string& buffer,
                        ByteChannel& channel, const ClientWatch& client, HttpHandler& handler,
                        const HttpLimits& limits);

}  // namespace lathe
