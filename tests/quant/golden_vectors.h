// Reading tests/golden/quant/mr-gptq-vectors.json: inputs and exact bytes, computed in double
// precision with numpy by an implementation of its own.
#pragma once
#include <charconv>
#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "support/shared_data.h"
#include "tensor/buffer.h"

namespace lathe {

inline const Json& golden_vectors() {
  static const Json json = read_json_file(golden_path("quant/mr-gptq-vectors.json"));
  return json;
}

inline std::vector<uint8_t> bytes_from_hex(const std::string& hex) {
  std::vector<uint8_t> bytes(hex.size() / 2);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::from_chars(hex.data() + 2 * i, hex.data() + 2 * i + 2, bytes[i], 16);
  }
  return bytes;
}

inline std::vector<uint8_t> to_vector(const Buffer& buffer) {
  return {buffer.as<uint8_t>(), buffer.as<uint8_t>() + buffer.size()};
}

}  // namespace lathe
