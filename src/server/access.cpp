#include "server/access.h"

#include <algorithm>

#include "base/error.h"
#include "base/sha256.h"

namespace lathe {
namespace {

// Standard alphabet, padding optional; empty for anything else.
std::string base64_decoded(std::string_view text) {
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const std::size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return "";
    bits = (bits << 6 | static_cast<uint32_t>(digit)) & 0xffffffu;
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xffu);
  }
  return bytes;
}

bool starts_with_word(std::string_view text, std::string_view word) {
  if (text.size() <= word.size() || text[word.size()] != ' ') return false;
  for (std::size_t i = 0; i < word.size(); ++i) {
    if ((text[i] | 0x20) != (word[i] | 0x20)) return false;
  }
  return true;
}

// All bytes are looked at, whatever they are.
bool same_digest(const std::string& a, const std::string& b) {
  unsigned difference = a.size() == b.size() ? 0u : 1u;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  }
  return difference == 0;
}

// "[::1]:8000" to "::1", "localhost:8000" to "localhost".
std::string_view without_port(std::string_view host) {
  if (!host.empty() && host[0] == '[') {
    const std::size_t end = host.find(']');
    return end == std::string_view::npos ? host : host.substr(1, end - 1);
  }
  return host.substr(0, host.find(':'));
}

}  // namespace

bool is_loopback_name(std::string_view host) {
  if (host == "::1" || host == "localhost") return true;
  constexpr std::string_view kSuffix = ".localhost";
  if (host.size() > kSuffix.size() && host.substr(host.size() - kSuffix.size()) == kSuffix) {
    return true;
  }
  // A name such as 127.0.0.1.example.org is none: only digits and three dots.
  return host.rfind("127.", 0) == 0 && std::count(host.begin(), host.end(), '.') == 3 &&
         host.find_first_not_of("0123456789.") == std::string_view::npos;
}

AccessRules::AccessRules(const std::vector<std::string>& keys, std::string bind_host,
                         bool metrics_without_key)
    : bind_host_(std::move(bind_host)), metrics_without_key_(metrics_without_key) {
  for (const std::string& key : keys) {
    const bool printable =
        std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; });
    if (key.empty() || !printable) {
      fail(ErrorCode::kInvalidArgument,
           "--api-key: a key must be printable ASCII without spaces, and not empty");
    }
    digests_.push_back(sha256_hex(std::as_bytes(std::span(key))));
  }
  if (digests_.empty() && !is_loopback_name(bind_host_)) {
    fail(ErrorCode::kInvalidArgument, "--host ", bind_host_,
         ": others can reach this address; give --api-key or --api-key-file too, or use 127.0.0.1");
  }
}

bool AccessRules::has_key(std::string_view authorization) const {
  if (digests_.empty()) return true;
  std::string key;
  if (starts_with_word(authorization, "bearer")) {
    key = authorization.substr(7);
  } else if (starts_with_word(authorization, "basic")) {
    const std::string decoded = base64_decoded(authorization.substr(6));
    const std::size_t colon = decoded.find(':');
    if (colon != std::string::npos) key = decoded.substr(colon + 1);
  }
  const std::string digest = sha256_hex(std::as_bytes(std::span(key)));
  bool found = false;
  for (const std::string& known : digests_) found |= same_digest(digest, known);
  return found;
}

bool AccessRules::is_known_host(std::string_view host) const {
  if (!digests_.empty()) return true;  // the key decides
  std::string name(without_port(host));
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return is_loopback_name(name) || name == bind_host_;
}

}  // namespace lathe
