// SHA-256 of data and files (OpenSSL), as lower-case hex.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace lathe {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(std::span<const std::byte> bytes);
  std::string hex_digest();  // call once

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string sha256_hex(std::span<const std::byte> bytes);
std::string sha256_hex_of_file(const std::string& path);

}  // namespace lathe
