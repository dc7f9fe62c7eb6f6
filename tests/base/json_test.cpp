#include "base/json.h"

#include <gtest/gtest.h>

#include <chrono>

#include "base/error.h"
#include "base/json_member.h"

namespace lathe {
namespace {

TEST(Json, KeepsTheOrderOfKeys) {
  EXPECT_EQ(dump_json(parse_json(R"({"b":1,"a":[true,null]})", "text")),
            R"({"b":1,"a":[true,null]})");
}

TEST(Json, RefusesBadDocuments) {
  const std::string deep(5000, '[');
  for (const std::string& text : {std::string("{"), std::string("[1] 2"), std::string("\"\xff\""),
                                  deep, std::string(65, '[') + std::string(65, ']')}) {
    try {
      parse_json(text, "config.json");
      FAIL() << "accepted " << text.substr(0, 20);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruptData);
      EXPECT_EQ(std::string(error.what()).rfind("config.json: ", 0), 0u) << error.what();
      EXPECT_LT(std::string(error.what()).size(), 400u);
    }
  }
  EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), "text"));
}

// As nlohmann's own tree, with and without the index that large objects have.
TEST(Json, SaysThePlaceAndWhatIsWrongThere) {
  try {
    parse_json("{\n \"a\": b}", "config.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).rfind("config.json: not valid JSON: line 2, column 7: ", 0),
              0u)
        << error.what();
  }
}

TEST(Json, AMemberThatIsNullIsNotThere) {
  const Json object = parse_json(R"({"a":1,"b":null})", "text");
  ASSERT_NE(member(object, "a"), nullptr);
  EXPECT_EQ(*member(object, "a"), 1);
  EXPECT_EQ(member(object, "b"), nullptr);
  EXPECT_EQ(member(object, "c"), nullptr);
}

TEST(Json, ReadsWhatNlohmannReads) {
  std::string large = "{";
  for (int i = 0; i < 100; ++i)
    large += "\"k" + std::to_string(i) + "\":" + std::to_string(i) + ",";
  for (const std::string& text : {
           std::string(
               R"([1,-2,3.5,1e300,18446744073709551615,"a\u00e9\ud83d\ude00",true,null,{},[]])"),
           std::string(R"({"a":{"b":[{"c":[[],{}]}]},"":0,"d":"x"})"),
           std::string(R"({"a":1,"b":2,"a":[3],"c":4})"),  // a again: its place, the later value
           std::string(" 7 "),
           std::string(R"("text")"),
           large + R"("k3":"again","k70":"again","new":[0]})",
       }) {
    EXPECT_EQ(dump_json(parse_json(text, "text")), dump_json(Json::parse(text))) << text;
  }
}

// Comparing every key with every other would take minutes here; a linear reader, half a second.
TEST(Json, ReadsManyKeysInLinearTime) {
  constexpr int kKeys = 300000;
  std::string text = "{";
  for (int i = 0; i < kKeys; ++i) text += "\"key" + std::to_string(1000000 + i) + "\":0,";
  text += "\"last\":1}";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(parse_json(text, "text").size(), kKeys + 1u);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace lathe
