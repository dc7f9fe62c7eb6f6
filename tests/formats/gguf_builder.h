// GGUF files for tests, byte by byte.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace lathe {

struct GgufBuilder {
  std::string body;  // metadata, then tensor infos
  uint64_t num_values = 0;
  uint64_t num_tensors = 0;
  uint32_t version = 3;
  std::string data;

  template <typename T>
  static std::string raw(T value) {
    std::string bytes(sizeof value, '\0');
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
  }
  static std::string text(std::string_view value) {
    return raw(uint64_t{value.size()}) + std::string(value);
  }
  GgufBuilder& value(std::string_view key, uint32_t type, const std::string& bytes) {
    body += text(key) + raw(type) + bytes;
    ++num_values;
    return *this;
  }
  GgufBuilder& u32(std::string_view key, uint32_t number) { return value(key, 4, raw(number)); }
  GgufBuilder& string(std::string_view key, std::string_view content) {
    return value(key, 8, text(content));
  }
  GgufBuilder& tensor(std::string_view name, std::initializer_list<uint64_t> dims, uint32_t type,
                      uint64_t offset) {
    body += text(name) + raw(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) body += raw(dim);
    body += raw(type) + raw(offset);
    ++num_tensors;
    return *this;
  }
  std::string file(std::size_t alignment = 32) const {
    std::string bytes = "GGUF" + raw(version) + raw(num_tensors) + raw(num_values) + body;
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    return bytes + data;
  }
};

}  // namespace lathe
