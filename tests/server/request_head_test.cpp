#include "server/request_head.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

std::variant<RequestHead, HeadRefusal> parsed(const std::string& bytes) {
  return parse_request_head(bytes, HttpLimits{});
}

RequestHead accepted(const std::string& bytes) {
  auto result = parsed(bytes);
  if (const auto* refusal = std::get_if<HeadRefusal>(&result)) {
    ADD_FAILURE() << "refused: " << refusal->message;
    return {};
  }
  return std::get<RequestHead>(std::move(result));
}

int status(const std::string& bytes) {
  const auto result = parsed(bytes);
  const auto* refusal = std::get_if<HeadRefusal>(&result);
  return refusal == nullptr ? 200 : refusal->status;
}

TEST(RequestHead, ReadsAUsualRequest) {
  const RequestHead head = accepted(
      "POST /v1/completions?x=1 HTTP/1.1\r\nHost: localhost:8000\r\nAUTHORIZATION:  Bearer k \r\n"
      "content-type: application/json\r\nContent-Length: 12\r\nX-Request-Id: abc-1\r\n"
      "Accept-Encoding: gzip\r\nRange: bytes=0-1\r\n\r\n");
  EXPECT_EQ(head.method, "POST");
  EXPECT_EQ(head.path, "/v1/completions");
  EXPECT_EQ(head.query, "x=1");
  EXPECT_EQ(head.host, "localhost:8000");
  EXPECT_EQ(head.authorization, "Bearer k");
  EXPECT_EQ(head.content_type, "application/json");
  EXPECT_EQ(head.request_id, "abc-1");
  EXPECT_EQ(head.content_length, 12);
  EXPECT_TRUE(head.keep_alive);
  EXPECT_TRUE(head.has_body());
  // The library sees the framing and nothing else.
  EXPECT_EQ(head.forwarded, "POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\n");
}

TEST(RequestHead, KnowsHowConnectionsGoOn) {
  const std::string get = "GET / HTTP/1.1\r\nHost: h\r\n";
  EXPECT_TRUE(accepted(get + "\r\n").keep_alive);
  EXPECT_FALSE(accepted(get + "Connection: Close\r\n\r\n").keep_alive);
  EXPECT_FALSE(accepted("GET / HTTP/1.0\r\n\r\n").keep_alive);
  EXPECT_TRUE(accepted("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keep_alive);
  EXPECT_FALSE(accepted(get + "\r\n").has_body());
  EXPECT_TRUE(accepted(get + "Transfer-Encoding: chunked\r\n\r\n").is_chunked);
}

TEST(RequestHead, RefusesWhatIsMalformedOrAmbiguous) {
  const std::string ok = "POST / HTTP/1.1\r\nHost: h\r\n";
  const struct {
    std::string bytes;
    int status;
  } kCases[] = {
      {"", 400},
      {"\r\n\r\n", 400},
      {"GET /\r\n\r\n", 400},
      {"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET / HTTP/1.1\nHost: h\n\n", 400},
      {"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505},
      {"GET / nonsense\r\nHost: h\r\n\r\n", 400},
      {"G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\n\r\n", 400},  // no Host
      {ok + "Host: other\r\n\r\n", 400},
      {ok + "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", 400},
      {ok + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
      {ok + "Content-Length: -1\r\n\r\n", 400},
      {ok + "Content-Length: +1\r\n\r\n", 400},
      {ok + "Content-Length: 0x10\r\n\r\n", 400},
      {ok + "Content-Length: 1, 1\r\n\r\n", 400},
      {ok + "Content-Length: \r\n\r\n", 400},
      {ok + "Content-Length: 99999999999999999999\r\n\r\n", 400},
      {ok + "Content-Length: 9223372036854775807\r\n\r\n", 413},
      {ok + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
      {ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
      {ok + "Content-Encoding: gzip\r\n\r\n", 415},
      {ok + "Expect: something\r\n\r\n", 417},
      {ok + " folded: x\r\n\r\n", 400},
      {ok + "A: b\r\n folded\r\n\r\n", 400},
      {ok + "no colon\r\n\r\n", 400},
      {ok + "Name : value\r\n\r\n", 400},
      {ok + ": value\r\n\r\n", 400},
      {ok + "A: b\rc\r\n\r\n", 400},
      {ok + std::string("A: b\0c\r\n\r\n", 10), 400},
      {ok + "Authorization: a\r\nauthorization: b\r\n\r\n", 400},
      {ok + "A: b", 400},
  };
  for (const auto& c : kCases) EXPECT_EQ(status(c.bytes), c.status) << c.bytes;
  EXPECT_EQ(status(ok + "\r\n"), 200);
}

TEST(RequestHead, LimitsTheNumberOfHeaders) {
  std::string head = "GET / HTTP/1.1\r\nHost: h\r\n";
  for (int i = 1; i < HttpLimits{}.max_headers; ++i) head += "A: b\r\n";
  EXPECT_EQ(status(head + "\r\n"), 200);
  EXPECT_EQ(status(head + "A: b\r\n\r\n"), 431);
}

TEST(RequestHead, TakesOverPlainRequestIdsOnly) {
  const std::string get = "GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: ";
  EXPECT_EQ(accepted(get + "a_b.c:1-2\r\n\r\n").request_id, "a_b.c:1-2");
  EXPECT_EQ(accepted(get + "a\" b\r\n\r\n").request_id, "");
  EXPECT_EQ(accepted(get + std::string(129, 'a') + "\r\n\r\n").request_id, "");
}

TEST(RequestHead, FindsItsEndHoweverItArrives) {
  const std::string bytes = "GET / HTTP/1.1\r\nHost: h\r\n\r\nrest";
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
    const auto first = find_head_end(bytes.substr(0, cut), 0);
    const auto end = first ? first : find_head_end(bytes, cut);
    ASSERT_TRUE(end.has_value()) << cut;
    EXPECT_EQ(bytes.substr(*end), "rest") << cut;
  }
}

}  // namespace
}  // namespace lathe
