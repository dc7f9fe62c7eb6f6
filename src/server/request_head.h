// Request line and headers, checked before anything else sees them. Every byte is hostile; what is
// ambiguous (two lengths, a length beside chunks, bare line feeds, folded lines) is refused, since
// a proxy in front may read it in the other way (RFC 9112, section 11.2).
//
// The HTTP library behind this gets `forwarded`, written anew from what was understood: how the
// body is framed, and nothing else. So its code for paths (regular expressions), ranges,
// compression and forms is out of reach.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "server/http_limits.h"

namespace lathe {

struct RequestHead {
  std::string method;  // as sent: methods have case
  std::string path;    // without the query, as sent (not percent-decoded)
  std::string query;   // behind '?'
  bool is_http_1_0 = false;
  bool keep_alive = true;
  bool is_chunked = false;
  int64_t content_length = 0;  // when not chunked
  std::string host, authorization, content_type, request_id, user_agent;
  std::string forwarded;  // the head for the library, blank line included

  bool has_body() const { return is_chunked || content_length > 0; }
};

// Why a head is refused: answered with this status, then the connection is closed.
struct HeadRefusal {
  int status = 400;
  std::string message;
};

// bytes: the head with the blank line that ends it. Does not throw for any bytes.
std::variant<RequestHead, HeadRefusal> parse_request_head(std::string_view bytes,
                                                          const HttpLimits& limits);

// Where a head ends: one past its blank line; nullopt when it is not all there.
std::optional<std::size_t> find_head_end(std::string_view bytes, std::size_t search_from);

}  // namespace lathe
