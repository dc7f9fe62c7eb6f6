#include "server/request_id.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <random>

#include "base/rng.h"

namespace lathe {

std::string new_request_id() {
  static const uint64_t process = (uint64_t{std::random_device()()} << 32) | std::random_device()();
  static std::atomic<uint64_t> count{0};
  Rng rng(process + count++);
  char text[33];
  std::snprintf(text, sizeof text, "%016llx%016llx",
                static_cast<unsigned long long>(rng.next_u64()),
                static_cast<unsigned long long>(rng.next_u64()));
  return text;
}

}  // namespace lathe
