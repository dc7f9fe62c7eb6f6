#include "server/api_error.h"

#include <new>

#include "base/json.h"

namespace lathe {
namespace {

ErrorCode code_of(int status) {
  if (status == 404) return ErrorCode::kNotFound;
  if (status == 503) return ErrorCode::kOutOfMemory;
  return status < 500 ? ErrorCode::kInvalidArgument : ErrorCode::kInternal;
}

const char* type_of(int status) {
  if (status == 429) return "rate_limit_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

Json or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

}  // namespace

ApiError::ApiError(int status, const std::string& message, std::string param, std::string api_code)
    : Error(code_of(status), message),
      status_(status),
      param_(std::move(param)),
      api_code_(std::move(api_code)) {}

ApiError to_api_error(const std::exception& error) {
  if (const auto* api = dynamic_cast<const ApiError*>(&error)) return *api;
  if (const auto* own = dynamic_cast<const Error*>(&error)) {
    switch (own->code()) {
      case ErrorCode::kInvalidArgument:
      case ErrorCode::kCorruptData:
      case ErrorCode::kUnsupported:
        return {400, own->what()};
      case ErrorCode::kNotFound:
        return {404, own->what()};
      case ErrorCode::kOutOfMemory:
        return {503, own->what(), "", "out_of_memory"};
      case ErrorCode::kIo:
      case ErrorCode::kDevice:
      case ErrorCode::kCanceled:
      case ErrorCode::kInternal:
        return {500, own->what()};
    }
  }
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) {
    return {503, "the server is out of memory", "", "out_of_memory"};
  }
  return {500, "internal error"};
}

std::string error_body(const ApiError& error) {
  return dump_json({{"error",
                     {{"message", error.what()},
                      {"type", type_of(error.status())},
                      {"param", or_null(error.param())},
                      {"code", or_null(error.api_code())}}}});
}

HttpResponse error_response(const ApiError& error) {
  HttpResponse response;
  response.status = error.status();
  response.body = error_body(error);
  if (error.status() == 429 || error.status() == 503) response.headers = {{"Retry-After", "1"}};
  return response;
}

}  // namespace lathe
