#include "text/chat_template.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/json.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

// One side of a golden case: {text, ids} or {error}.
void expect_rendered(const ChatTemplate& chat, const Json& item, bool add_generation_prompt) {
  const Json& expected =
      item[add_generation_prompt ? "rendered_with_generation_prompt" : "rendered"];
  try {
    const std::string text =
        chat.render(item["messages"], item["tools"], add_generation_prompt, nullptr);
    ASSERT_TRUE(expected.contains("text")) << "accepted: " << text;
    EXPECT_EQ(text, expected["text"].get<std::string>());
  } catch (const Error& error) {
    ASSERT_TRUE(expected.contains("error")) << error.what();
    EXPECT_EQ(error.what(), expected["error"].get<std::string>());
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
  }
}

void expect_golden(const std::string& path) {
  const Json golden = read_json_file(path);
  const ChatTemplate chat(golden["template"].get<std::string>(),
                          golden["bos_token"].get<std::string>(),
                          golden["eos_token"].get<std::string>());
  ASSERT_FALSE(golden["cases"].empty());
  for (const Json& item : golden["cases"]) {
    SCOPED_TRACE(path + ": " + item["id"].get<std::string>());
    expect_rendered(chat, item, false);
    expect_rendered(chat, item, true);
  }
}

TEST(ChatTemplate, RendersAsTransformersDoes) {
  expect_golden(golden_path("text/chat-qwen2.5.json"));
  expect_golden(golden_path("text/chat-gemma3.json"));
}

TEST(ChatTemplate, RendersAllReferenceConversations) {
  int found = 0;
  for (const char* model : {"smollm2", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "gemma3-270m"}) {
    const auto path = shared_path("golden/chat/" + std::string(model) + ".json");
    if (!path) continue;
    expect_golden(*path);
    ++found;
  }
  if (found == 0) GTEST_SKIP() << "the full reference data is not on this machine";
}

TEST(ChatTemplate, GivesTheVariablesThatTransformersGives) {
  const ChatTemplate chat(
      "{{ bos_token }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}"
      "{{ enable_thinking }}{{ pad_token is defined }}{{ eos_token }}",
      "<s>", "</s>");
  EXPECT_EQ(chat.render(Json::array(), nullptr, true, Json{{"enable_thinking", false}}),
            "<s>TrueTrueTrueFalseFalse</s>");
  EXPECT_FALSE(ChatTemplate("{{ messages }}", "", "").supports_tools());
  EXPECT_TRUE(chat.supports_tools());
}

TEST(ChatTemplate, ReasoningGoesByEveryName) {
  const ChatTemplate chat(
      "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.thinking }}]{% endfor %}", "", "");
  const Json messages = Json::parse(R"([{"role":"assistant","reasoning":"r"},
      {"role":"assistant","thinking":"t"},{"role":"assistant","reasoning_content":"c"},{"role":"user"}])");
  EXPECT_EQ(chat.render(messages, nullptr, false, nullptr), "[r|r][t|t][c|c][|]");
}

TEST(ChatTemplate, RefusesWhatIsNoConversation) {
  const ChatTemplate chat("x", "", "");
  for (const Json& messages : {Json("x"), Json::object(), Json(nullptr), Json::parse("[1]")}) {
    try {
      chat.render(messages, nullptr, false, nullptr);
      ADD_FAILURE() << messages;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    }
  }
  EXPECT_THROW(chat.render(Json::array(), nullptr, false, "x"), Error);
}

}  // namespace
}  // namespace lathe
