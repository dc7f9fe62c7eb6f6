// Who may use the server: API keys, and, without any, requests from this machine alone.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/http.h"

namespace lathe {

class AccessRules {
 public:
  // keys: any of them is enough; none: no key is asked for, and the Host header must name this
  // machine, so that a web page elsewhere cannot reach the server under a name of its own (DNS
  // rebinding). bind_host: the address that is listened on. Throws kInvalidArgument for an address
  // beyond this machine without a key, and for a key that is empty or not printable ASCII.
  // metrics_without_key: /metrics is for whoever reaches the server, as a scraper expects it.
  AccessRules(const std::vector<std::string>& keys, std::string bind_host,
              bool metrics_without_key = false);

  // "Authorization: Bearer KEY", or Basic with the key as password, which browsers ask for. The
  // time does not depend on how much of the key is right.
  bool has_key(std::string_view authorization) const;
  // Whether the Host header may be answered.
  bool is_known_host(std::string_view host) const;
  bool asks_for_key() const { return !digests_.empty(); }
  bool metrics_need_key() const { return asks_for_key() && !metrics_without_key_; }

 private:
  std::vector<std::string> digests_;  // SHA-256 of each key: equal lengths
  std::string bind_host_;
  bool metrics_without_key_;
};

// 127.0.0.0/8, ::1 and localhost.
bool is_loopback_name(std::string_view host);

}  // namespace lathe
