#include "server/request_fields.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "server/api_error.h"

namespace lathe {
namespace {

template <typename Read>
void expect_bad(const std::string& param, const std::string& part, const Read& read) {
  try {
    read();
    ADD_FAILURE() << "accepted; expected " << part;
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status(), 400);
    EXPECT_EQ(error.param(), param);
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(RequestFields, ReadsTypesAndRanges) {
  const Json json = parse_json(
      R"({"i":3,"f":3.0,"x":0.5,"big":18446744073709551615,"huge":1e300,"s":"t","b":true,"n":null,
          "l":["a","b"],"bad":["a",1],"min":-9223372036854775808})",
      "test");
  const RequestFields fields(json);
  EXPECT_EQ(fields.integer("i", 0, 5), 3);
  EXPECT_EQ(fields.integer("f", 0, 5), 3);
  EXPECT_EQ(fields.integer("n", 0, 5), std::nullopt);
  EXPECT_EQ(fields.integer("absent", 0, 5), std::nullopt);
  EXPECT_EQ(fields.integer("min", INT64_MIN, 0), INT64_MIN);
  EXPECT_EQ(fields.number("x", 0, 1), 0.5);
  EXPECT_EQ(fields.string("s"), "t");
  EXPECT_EQ(fields.boolean("b"), true);
  EXPECT_EQ(fields.strings("s"), std::vector<std::string>{"t"});
  EXPECT_EQ(fields.strings("l"), (std::vector<std::string>{"a", "b"}));
  expect_bad("i", "must be in [4, 5]", [&] { fields.integer("i", 4, 5); });
  expect_bad("x", "whole number", [&] { fields.integer("x", 0, 5); });
  expect_bad("big", "18446744073709551615", [&] { fields.integer("big", 0, INT64_MAX); });
  expect_bad("huge", "whole number", [&] { fields.integer("huge", 0, INT64_MAX); });
  expect_bad("s", "a number, not a string", [&] { fields.number("s", 0, 1); });
  expect_bad("i", "true or false", [&] { fields.boolean("i"); });
  expect_bad("i", "must be a string", [&] { fields.string("i"); });
  expect_bad("bad", "must hold strings", [&] { fields.strings("bad"); });
  expect_bad("b", "array of strings", [&] { fields.strings("b"); });
  expect_bad("outer", "outer must be an object", [&] { RequestFields(json["i"], "outer."); });
  expect_bad("outer.i", "outer.i", [&] { RequestFields(json, "outer.").integer("i", 4, 5); });
}

TEST(RequestFields, ChecksTokenIds) {
  const auto read = [](const char* text) {
    return token_ids(parse_json(text, "test"), "tokens", 10);
  };
  EXPECT_EQ(read("[0, 9]"), (std::vector<int32_t>{0, 9}));
  for (const char* bad :
       {"[10]", "[-1]", "[1.5]", "[\"1\"]", "[18446744073709551615]", "{}", "3", "[4294967296]"}) {
    expect_bad("tokens", "tokens", [&] { read(bad); });
  }
}

}  // namespace
}  // namespace lathe
