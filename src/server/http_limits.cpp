#include "server/http_limits.h"

#include "base/error.h"

namespace lathe {
namespace {

void check_range(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  fail(ErrorCode::kInvalidArgument, field, " is ", value, "; it must be in [", low, ", ", high,
       "]");
}

}  // namespace

void validate(const HttpLimits& limits) {
  constexpr int64_t kDay = int64_t{24} * 3600 * 1000;
  check_range("max_connections", limits.max_connections, 1, 10'000);
  check_range("max_head_bytes", limits.max_head_bytes, 256, 1 << 20);
  check_range("max_headers", limits.max_headers, 1, 1000);
  check_range("max_body_bytes", limits.max_body_bytes, 1, int64_t{1} << 30);
  check_range("idle_timeout", limits.idle_timeout.count(), 1, kDay);
  check_range("head_timeout", limits.head_timeout.count(), 1, kDay);
  check_range("body_timeout", limits.body_timeout.count(), 1, kDay);
  check_range("write_timeout", limits.write_timeout.count(), 1, kDay);
}

}  // namespace lathe
