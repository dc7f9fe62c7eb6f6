#include "server/access.h"

#include <gtest/gtest.h>

#include "formats/expect_error.h"

namespace lathe {
namespace {

TEST(Access, AsksForAKeyBeyondThisMachine) {
  for (const char* host :
       {"0.0.0.0", "::", "192.168.0.1", "example.org", "127.0.0.1.example.org"}) {
    expect_error(ErrorCode::kInvalidArgument, "--api-key", [&] { AccessRules rules({}, host); });
    EXPECT_NO_THROW(AccessRules({"key"}, host));
  }
  for (const char* host : {"127.0.0.1", "127.1.2.3", "::1", "localhost"}) {
    EXPECT_NO_THROW(AccessRules({}, host));
  }
}

TEST(Access, RefusesKeysThatCannotBeSent) {
  for (const char* key : {"", "a b", "a\n", "\xc3\xa9"}) {
    expect_error(ErrorCode::kInvalidArgument, "printable",
                 [&] { AccessRules rules({key}, "::1"); });
  }
}

TEST(Access, KnowsItsKeys) {
  const AccessRules rules({"first", "second"}, "0.0.0.0");
  EXPECT_TRUE(rules.has_key("Bearer first"));
  EXPECT_TRUE(rules.has_key("bearer second"));
  EXPECT_TRUE(rules.has_key("Basic dXNlcjpmaXJzdA=="));  // user:first
  EXPECT_TRUE(rules.has_key("Basic OnNlY29uZA"));        // :second, without padding
  for (const char* wrong :
       {"", "Bearer", "Bearer ", "Bearer firs", "Bearer firstx", "Bearer FIRST", "first",
        "Basic first", "Basic Zmlyc3Q=", "Bearerfirst", "Basic dXNlcjpmaXJzdA=!"}) {
    EXPECT_FALSE(rules.has_key(wrong)) << wrong;
  }
}

TEST(Access, WithoutAKeyAnswersToNamesOfThisMachineOnly) {
  const AccessRules rules({}, "127.0.0.1");
  for (const char* host : {"localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]:8000",
                           "chat.localhost"}) {
    EXPECT_TRUE(rules.is_known_host(host)) << host;
  }
  for (const char* host : {"", "example.org", "127.0.0.1.example.org", "localhost.example.org",
                           "1.127.0.0", "[::2]", "[::1"}) {
    EXPECT_FALSE(rules.is_known_host(host)) << host;
  }
  EXPECT_TRUE(AccessRules({"key"}, "0.0.0.0").is_known_host("example.org"));
}

}  // namespace
}  // namespace lathe
