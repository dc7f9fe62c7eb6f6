// The other end of the API: asks a running server (lathe's or any of its kind) for a streamed
// answer.
#pragma once
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "engine/request.h"

namespace lathe {

struct ServerAddress {
  std::string origin;  // "http://localhost:8000"
  std::string prefix;  // in front of "/chat/completions": "/v1"
};
// Of "http://HOST[:PORT]" or "https://...", with or without "/v1" behind it. Throws
// kInvalidArgument.
ServerAddress parse_server_url(const std::string& url);

struct ServerReply {
  std::string text;
  FinishReason reason = FinishReason::kStop;  // kAbort: on_text said false
  Usage usage;
};

class ApiClient {
 public:
  // key: empty for none. Throws kInvalidArgument for a URL that is none.
  ApiClient(const std::string& url, std::string key);

  // The first model that the server lists. Throws kIo when it cannot be reached, and what it says.
  std::string first_model() const;
  // Streams the answer to a body of /v1/chat/completions, to which stream and stream_options are
  // added. on_text gets it as it comes, and nothing (an empty text) some times a second while the
  // server is silent; false from it closes the connection, which ends the request at the server.
  // Throws kIo when the server cannot be reached or breaks off, and what it answers otherwise as an
  // Error with its words.
  ServerReply chat(const nlohmann::ordered_json& body,
                   const std::function<bool(std::string_view)>& on_text) const;

 private:
  ServerAddress address_;
  std::string key_;
};

}  // namespace lathe
