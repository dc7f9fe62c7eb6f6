// Any bytes, and any under a checksum that fits, are either refused with an Error or give a record
// whose parts can be read to the last byte.
#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/sha256.h"
#include "cache/parked_record.h"

namespace {

void read(std::span<const std::byte> bytes) {
  using namespace lathe;
  try {
    const ParkedRecord record = read_parked_record(bytes, "fuzz");
    volatile unsigned sum = 0;
    for (const std::byte b : record.codes) sum = sum + std::to_integer<unsigned>(b);
    for (const std::byte b : record.sinks) sum = sum + std::to_integer<unsigned>(b);
  } catch (const Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  std::vector<std::byte> bytes(size);
  std::transform(data, data + size, bytes.begin(), [](uint8_t b) { return std::byte{b}; });
  read(bytes);
  const std::string hex = lathe::sha256_hex(bytes);
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoul(hex.substr(i, 2), nullptr, 16)));
  }
  read(bytes);
  return 0;
}
