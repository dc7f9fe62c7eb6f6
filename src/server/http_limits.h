// What one client may ask of the server before any of it is looked at. Every field has a flag of
// `lathe serve` and its default in docs/server.md.
#pragma once
#include <chrono>
#include <cstdint>

namespace lathe {

struct HttpLimits {
  int64_t max_connections = 256;                   // more get 503 and are closed
  int64_t max_head_bytes = 16 << 10;               // request line and headers
  int64_t max_headers = 64;                        // lines
  int64_t max_body_bytes = int64_t{8} << 20;       // as sent, chunk framing counted
  std::chrono::milliseconds idle_timeout{30'000};  // between two requests of a connection
  std::chrono::milliseconds head_timeout{10'000};  // from its first byte to the blank line; TLS too
  std::chrono::milliseconds body_timeout{30'000};  // the whole body
  std::chrono::milliseconds write_timeout{30'000};  // one piece of an answer
};

// Throws kInvalidArgument, naming the field, the value and the range.
void validate(const HttpLimits& limits);

}  // namespace lathe
