#include "server/event_reader.h"

#include <gtest/gtest.h>

#include <vector>

#include "formats/expect_error.h"
#include "server/api_client.h"

namespace lathe {
namespace {

TEST(EventReader, ReadsEventsHoweverTheyAreCut) {
  const std::string bytes =
      "data: one\n\n: a comment\ndata:two\r\ndata: lines\r\n\r\nevent: x\n\ndata: \n\n";
  const std::vector<std::string> expected = {"one", "two\nlines", ""};
  for (std::size_t step = 1; step <= bytes.size(); ++step) {
    EventReader reader;
    std::vector<std::string> events;
    for (std::size_t i = 0; i < bytes.size(); i += step) {
      reader.push(std::string_view(bytes).substr(i, step), [&](const std::string& data) {
        events.push_back(data);
        return true;
      });
    }
    EXPECT_EQ(events, expected) << step;
  }
}

TEST(EventReader, StopsAndLimits) {
  EventReader reader(100);
  EXPECT_FALSE(reader.push("data: a\n\ndata: b\n\n", [](const std::string&) { return false; }));
  expect_error(ErrorCode::kCorruptData, "more than 100 bytes", [] {
    EventReader small(100);
    small.push("data: " + std::string(200, 'x'), [](const std::string&) { return true; });
  });
}

TEST(ApiClient, ReadsServerUrls) {
  EXPECT_EQ(parse_server_url("http://localhost:8000").origin, "http://localhost:8000");
  EXPECT_EQ(parse_server_url("http://localhost:8000").prefix, "/v1");
  EXPECT_EQ(parse_server_url("https://h/v1/").prefix, "/v1");
  EXPECT_EQ(parse_server_url("https://h/api/v2").prefix, "/api/v2");
  for (const char* bad : {"", "localhost:8000", "ftp://h", "http://", "http:///v1",
                          "http://h/\r\nX: y", "http://user@h/"}) {
    expect_error(ErrorCode::kInvalidArgument, "--server", [&] { parse_server_url(bad); });
  }
}

}  // namespace
}  // namespace lathe
