#include "base/json.h"

#include <gtest/gtest.h>

#include "base/error.h"

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

}  // namespace
}  // namespace lathe
