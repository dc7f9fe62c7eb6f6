// Errors as OpenAI's API has them:
//   {"error": {"message": "...", "type": "invalid_request_error", "param": "n", "code": null}}
#pragma once
#include <exception>
#include <string>

#include "base/error.h"
#include "server/http.h"

namespace lathe {

// An Error that knows its HTTP status, and the field of the request that it is about.
class ApiError : public Error {
 public:
  // param, api_code: empty for null.
  ApiError(int status, const std::string& message, std::string param = "",
           std::string api_code = "");
  int status() const { return status_; }
  const std::string& param() const { return param_; }
  const std::string& api_code() const { return api_code_; }

 private:
  int status_;
  std::string param_;
  std::string api_code_;
};

template <typename... Parts>
[[noreturn]] void bad_field(const std::string& param, const Parts&... parts) {
  throw ApiError(400, str(parts...), param);
}

// What any exception is to the client: an ApiError as it says, an Error by its code (a request that
// cannot be: 400, something that is not there: 404, no memory: 503), everything else 500 without
// its text.
ApiError to_api_error(const std::exception& error);

// {"error": {...}} as text.
std::string error_body(const ApiError& error);
HttpResponse error_response(const ApiError& error);

}  // namespace lathe
