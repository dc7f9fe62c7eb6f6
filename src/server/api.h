// The routes: who may call which, and what answers. Every error becomes an answer here.
#pragma once
#include <atomic>
#include <functional>
#include <optional>

#include "server/access.h"
#include "server/api_context.h"
#include "server/api_error.h"
#include "server/http.h"
#include "server/http_server.h"
#include "server/request_log.h"

namespace lathe {

class Api : public HttpHandler {
 public:
  // Borrows all three. http_stats: of the server in front, for /metrics.
  Api(const ApiContext& context, const AccessRules& access, RequestLog& log);
  void set_http_stats(std::function<HttpServerStats()> stats) { http_stats_ = std::move(stats); }

  std::optional<HttpResponse> check_head(const HttpRequest& request) override;
  HttpResponse handle(const HttpRequest& request, const ClientWatch& client) override;
  HttpResponse refuse(const HttpRequest& request, int status, const std::string& message) override;
  void finished(const HttpRequest& request, const HttpOutcome& outcome) override;

  // From now on /health says 503 and new requests are refused; those in progress go on.
  void start_draining() { draining_ = true; }

 private:
  HttpResponse dispatch(const HttpRequest& request, const ClientWatch& client);
  HttpResponse health() const;
  HttpResponse metrics() const;
  HttpResponse answer_of(const HttpRequest& request, const ApiError& error) const;

  const ApiContext& context_;
  const AccessRules& access_;
  RequestLog& log_;
  std::function<HttpServerStats()> http_stats_;
  std::atomic<bool> draining_{false};
};

}  // namespace lathe
