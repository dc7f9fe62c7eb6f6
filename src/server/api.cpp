#include "server/api.h"

#include <algorithm>

#include "base/json.h"
#include "server/api_error.h"
#include "server/chat_completions.h"
#include "server/completions.h"
#include "server/embedded.h"
#include "server/embeddings.h"
#include "server/model_routes.h"

namespace lathe {
namespace {

enum class RouteId {
  kHealth,
  kMetrics,
  kOpenApi,
  kPageIndex,
  kPageStyle,
  kPageScript,
  kModels,
  kModel,
  kChat,
  kCompletions,
  kEmbeddings,
  kTokenize,
  kDetokenize,
};

struct Route {
  const char* path;  // "/*" at the end: one more part
  const char* method;
  RouteId id;
};

constexpr Route kRoutes[] = {
    {"/health", "GET", RouteId::kHealth},
    {"/metrics", "GET", RouteId::kMetrics},
    {"/openapi.json", "GET", RouteId::kOpenApi},
    {"/", "GET", RouteId::kPageIndex},
    {"/style.css", "GET", RouteId::kPageStyle},
    {"/app.js", "GET", RouteId::kPageScript},
    {"/v1/models", "GET", RouteId::kModels},
    {"/v1/models/*", "GET", RouteId::kModel},
    {"/v1/chat/completions", "POST", RouteId::kChat},
    {"/v1/completions", "POST", RouteId::kCompletions},
    {"/v1/embeddings", "POST", RouteId::kEmbeddings},
    {"/tokenize", "POST", RouteId::kTokenize},
    {"/detokenize", "POST", RouteId::kDetokenize},
};

const Route* find_route(const std::string& path) {
  for (const Route& route : kRoutes) {
    const std::string_view pattern = route.path;
    if (pattern.size() > 2 && pattern.substr(pattern.size() - 2) == "/*") {
      const std::string_view prefix = pattern.substr(0, pattern.size() - 1);
      if (path.size() > prefix.size() && path.rfind(prefix, 0) == 0) return &route;
    } else if (path == pattern) {
      return &route;
    }
  }
  return nullptr;
}

bool is_page(RouteId id) {
  return id == RouteId::kPageIndex || id == RouteId::kPageStyle || id == RouteId::kPageScript;
}

// %41 to A; what is no such triple stays.
std::string percent_decoded(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 &&
        digit(text[i + 2]) >= 0) {
      result += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
      i += 2;
    } else {
      result += text[i];
    }
  }
  return result;
}

// "application/json; charset=utf-8" is JSON too.
bool is_json_type(std::string_view content_type) {
  std::string type(content_type.substr(0, content_type.find(';')));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.pop_back();
  for (char& c : type) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return type == "application/json";
}

HttpResponse page_file(const char* name, const char* content_type) {
  const std::string_view bytes = embedded_file(name);
  if (bytes.empty()) throw ApiError(404, "this build has no chat page");
  HttpResponse response;
  response.content_type = content_type;
  response.body = bytes;
  response.headers = {
      {"Cache-Control", "no-cache"},
      {"Content-Security-Policy",
       "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
       "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
      {"Referrer-Policy", "no-referrer"}};
  return response;
}

}  // namespace

Api::Api(const ApiContext& context, const AccessRules& access, RequestLog& log)
    : context_(context), access_(access), log_(log) {}

std::optional<HttpResponse> Api::check_head(const HttpRequest& request) {
  try {
    const Route* route = find_route(request.path);
    const bool is_health = route != nullptr && route->id == RouteId::kHealth;
    if (!access_.is_known_host(request.host)) {
      throw ApiError(403,
                     "the Host header does not name this machine; without --api-key only "
                     "localhost is served");
    }
    const bool is_open = is_health || (route != nullptr && route->id == RouteId::kMetrics &&
                                       !access_.metrics_need_key());
    if (!is_open && !access_.has_key(request.authorization)) {
      throw ApiError(401,
                     request.authorization.empty()
                         ? "an API key is needed: Authorization: Bearer KEY"
                         : "the API key is not valid",
                     "", "invalid_api_key");
    }
    if (route == nullptr) {
      throw ApiError(404, "there is nothing at " + request.path.substr(0, 200) +
                              "; /openapi.json lists the routes");
    }
    const bool fits = request.method == route->method ||
                      (request.method == "HEAD" && std::string_view(route->method) == "GET");
    if (!fits) {
      throw ApiError(405,
                     str(request.method, " is not for ", route->path, "; use ", route->method));
    }
    const bool posts = request.method == "POST";
    if (!posts && request.has_body) throw ApiError(400, "a GET request has no body");
    // A page of another site can send plain forms without asking; JSON it cannot.
    if (posts && !is_json_type(request.content_type)) {
      throw ApiError(415, "the body must be JSON, with Content-Type: application/json");
    }
    const bool watches = is_health || route->id == RouteId::kMetrics;
    if (draining_ && !watches) throw ApiError(503, "the server is shutting down", "", "draining");
    return std::nullopt;
  } catch (const ApiError& error) {
    return answer_of(request, error);
  }
}

HttpResponse Api::handle(const HttpRequest& request, const ClientWatch& client) {
  try {
    HttpResponse response = dispatch(request, client);
    response.headers.emplace_back("X-Request-Id", request.id);
    response.headers.emplace_back("X-Content-Type-Options", "nosniff");
    return response;
  } catch (const std::exception& error) {
    const ApiError api_error = to_api_error(error);
    if (api_error.status() == 429) context_.metrics.rejected_full.add();
    if (api_error.status() >= 500) {
      log_.write("error", {{"id", request.id}, {"message", error.what()}});
    }
    return answer_of(request, api_error);
  }
}

HttpResponse Api::refuse(const HttpRequest& request, int status, const std::string& message) {
  return answer_of(request, ApiError(status, message));
}

HttpResponse Api::answer_of(const HttpRequest& request, const ApiError& error) const {
  HttpResponse response = error_response(error);
  response.headers.emplace_back("X-Request-Id", request.id);
  response.headers.emplace_back("X-Content-Type-Options", "nosniff");
  const Route* route = find_route(request.path);
  if (error.status() == 405 && route != nullptr) {
    const bool gets = std::string_view(route->method) == "GET";
    response.headers.emplace_back("Allow", gets ? "GET, HEAD" : route->method);
  }
  if (error.status() == 401) {
    // A browser that opens the page asks for the key then, as a password.
    const bool page = route != nullptr && is_page(route->id);
    response.headers.emplace_back("WWW-Authenticate",
                                  page ? "Basic realm=\"lathe\", charset=\"UTF-8\"" : "Bearer");
  }
  return response;
}

HttpResponse Api::dispatch(const HttpRequest& request, const ClientWatch& client) {
  switch (find_route(request.path)->id) {
    case RouteId::kHealth:
      return health();
    case RouteId::kMetrics:
      return metrics();
    case RouteId::kOpenApi: {
      HttpResponse response;
      response.body = embedded_file("openapi.json");
      return response;
    }
    case RouteId::kPageIndex:
      return page_file("page/index.html", "text/html; charset=utf-8");
    case RouteId::kPageStyle:
      return page_file("page/style.css", "text/css; charset=utf-8");
    case RouteId::kPageScript:
      return page_file("page/app.js", "text/javascript; charset=utf-8");
    case RouteId::kModels:
      return list_models(context_);
    case RouteId::kModel:
      return show_model(context_, percent_decoded(request.path.substr(sizeof "/v1/models/" - 1)));
    case RouteId::kChat:
      return chat_completions(context_, request, client);
    case RouteId::kCompletions:
      return completions(context_, request, client);
    case RouteId::kEmbeddings:
      return embeddings(context_, request, client);
    case RouteId::kTokenize:
      return tokenize(context_, request);
    case RouteId::kDetokenize:
      return detokenize(context_, request);
  }
  throw ApiError(500, "internal error");
}

HttpResponse Api::health() const {
  const bool healthy = context_.runner.is_healthy();
  HttpResponse response = json_response({{"status", !healthy    ? "failed"
                                                    : draining_ ? "draining"
                                                                : "ok"}});
  if (!healthy || draining_) response.status = 503;
  return response;
}

HttpResponse Api::metrics() const {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = context_.metrics.text(context_.runner.engine().stats(),
                                        http_stats_ ? http_stats_() : HttpServerStats{}, kBlockSize,
                                        context_.shadow);
  return response;
}

void Api::finished(const HttpRequest& request, const HttpOutcome& outcome) {
  const Route* route = find_route(request.path);
  context_.metrics.count_http(route != nullptr ? route->path : "other", outcome.status);
  if (outcome.client_gone) context_.metrics.clients_gone.add();
  log_.write("request", {{"id", request.id},
                         {"method", request.method},
                         {"path", request.path.substr(0, 200)},
                         {"status", outcome.status},
                         {"bytes", outcome.body_bytes},
                         {"seconds", std::max(0.0, outcome.seconds)},
                         {"peer", request.peer},
                         {"client_gone", outcome.client_gone}});
}

}  // namespace lathe
