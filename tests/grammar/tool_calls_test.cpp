#include "grammar/tool_calls.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace lathe {
namespace {

struct Answer {
  std::string content;
  std::vector<std::pair<std::string, std::string>> calls;  // name, arguments
  bool operator==(const Answer&) const = default;
};

void PrintTo(const Answer& answer, std::ostream* out) {
  *out << "'" << answer.content << "'";
  for (const auto& [name, arguments] : answer.calls) *out << " " << name << "(" << arguments << ")";
}

// `pieces`: where the text is cut.
Answer read(ToolFamily family, const std::string& text, const std::vector<std::size_t>& sizes) {
  ToolCallReader reader(family, {"f", "get_weather"});
  Answer answer;
  const auto take = [&](const ToolCallReader::News& news) {
    answer.content += news.content;
    for (const ToolCallPiece& piece : news.calls) {
      if (piece.index == std::ssize(answer.calls)) {
        EXPECT_FALSE(piece.name.empty());
        answer.calls.emplace_back(piece.name, "");
      } else {
        EXPECT_EQ(piece.index, std::ssize(answer.calls) - 1);
        EXPECT_EQ(piece.name, "");
      }
      answer.calls.back().second += piece.arguments;
    }
  };
  std::size_t pos = 0;
  for (const std::size_t size : sizes) {
    take(reader.push(std::string_view(text).substr(pos, size), false));
    pos += std::min(size, text.size() - pos);
  }
  take(reader.push(std::string_view(text).substr(pos), true));
  EXPECT_EQ(reader.has_calls(), !answer.calls.empty());
  return answer;
}

struct Case {
  ToolFamily family;
  const char* text;
  Answer answer;
};

constexpr auto kHermes = ToolFamily::kHermes;
constexpr auto kLlama = ToolFamily::kLlama3;

const std::vector<Case> kCases = {
    {kHermes, "", {"", {}}},
    {kHermes, "plain text < 3 <tool", {"plain text < 3 <tool", {}}},
    {kHermes, "  blanks stay \n", {"  blanks stay \n", {}}},
    {kHermes,
     "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
     {"", {{"f", "{\"a\": 1}"}}}},
    {kHermes,
     "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": "
     "{}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"c\": "
     "\"}\\\"{\"}}\n</tool_call>\n",
     {"Let me see.", {{"f", "{}"}, {"get_weather", "{\"c\": \"}\\\"{\"}"}}}},
    {kHermes,
     "<tool_call>{\"arguments\":[1,{\"x\":[]}],\"name\":\"f\"}</tool_call> done",
     {"done", {{"f", "[1,{\"x\":[]}]"}}}},
    {kHermes,
     "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, 2",
     {"", {{"f", "{\"a\": [1, 2"}}}},  // cut off
    {kHermes, "<tool_call>\n{\"name\": \"f\"", {"<tool_call>\n{\"name\": \"f\"", {}}},
    {kHermes, "<tool_call> is how one calls", {"<tool_call> is how one calls", {}}},
    {kHermes,
     "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>",
     {"<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>", {}}},
    {kHermes,
     "<tool_call>{\"name\": \"f\", \"arguments\": \"te}xt\"}</tool_call>",
     {"", {{"f", "\"te}xt\""}}}},
    {kHermes,
     "<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>x",
     {"x", {{"f", "null"}}}},
    {kHermes, "<<tool_call>{\"name\": \"f\\u0031\", \"arguments\": {}}", {"<", {{"f1", "{}"}}}},
    {kLlama, "", {"", {}}},
    {kLlama, "Hello {\"name\": \"f\"}", {"Hello {\"name\": \"f\"}", {}}},
    {kLlama, "{\"name\": \"f\", \"parameters\": {\"a\": \"b\"}}", {"", {{"f", "{\"a\": \"b\"}"}}}},
    {kLlama,
     "\n{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"get_weather\", \"parameters\": {\"x\": "
     "1}}",
     {"", {{"f", "{}"}, {"get_weather", "{\"x\": 1}"}}}},
    {kLlama, "{\"name\": \"Ann\", \"age\": 3}", {"{\"name\": \"Ann\", \"age\": 3}", {}}},
    {kLlama,
     "{\"name\": \"Ann\", \"parameters\": {}}",
     {"{\"name\": \"Ann\", \"parameters\": {}}", {}}},
    {kLlama, "{\"x\": 1} and more", {"{\"x\": 1} and more", {}}},
    {kLlama, " {", {" {", {}}},
};

TEST(ToolCalls, AreReadFromWholeTexts) {
  for (const Case& c : kCases) EXPECT_EQ(read(c.family, c.text, {}), c.answer) << c.text;
}

// What comes out does not depend on how the text was cut.
TEST(ToolCalls, AreReadFromPieces) {
  std::mt19937 rng(3);
  for (const Case& c : kCases) {
    const std::string text = c.text;
    EXPECT_EQ(read(c.family, text, std::vector<std::size_t>(text.size(), 1)), c.answer) << text;
    for (int round = 0; round < 50; ++round) {
      std::vector<std::size_t> sizes;
      for (int i = 0; i < 12; ++i) sizes.push_back(rng() % 9);
      EXPECT_EQ(read(c.family, text, sizes), c.answer) << text;
    }
  }
}

TEST(ToolCalls, ArgumentsComeBeforeTheCallEnds) {
  ToolCallReader reader(kHermes, {"f"});
  const auto first =
      reader.push("Hi <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": ", false);
  EXPECT_EQ(first.content, "Hi");
  ASSERT_EQ(first.calls.size(), 1u);
  EXPECT_EQ(first.calls[0].name, "f");
  EXPECT_EQ(first.calls[0].arguments, "{\"a\": ");
  const auto second = reader.push("\"bc", false);
  ASSERT_EQ(second.calls.size(), 1u);
  EXPECT_EQ(second.calls[0].arguments, "\"bc");
}

// Nothing that a model writes breaks it or makes it slow.
TEST(ToolCalls, HostileTexts) {
  std::string repeated,
      deep = "<tool_call>{\"name\":\"f\",\"arguments\":", name = "<tool_call>{\"name\":\"";
  for (int i = 0; i < 20000; ++i) {
    repeated += "<tool_call>{";
    deep += "[";
    name += "x";
  }
  for (const ToolFamily family : {kHermes, kLlama}) {
    for (const std::string& text : {repeated, deep, name, repeated.substr(11),
                                    std::string("{\"name\":\"\xff\",\"parameters\":{}}")}) {
      read(family, text, std::vector<std::size_t>(200, 997));
    }
    std::mt19937 rng(9);
    const std::vector<std::string> pieces = {"<tool_call>",
                                             "</tool_call>",
                                             "{",
                                             "}",
                                             "\"name\"",
                                             ":",
                                             "\"f\"",
                                             ",",
                                             "\"arguments\"",
                                             "\"parameters\"",
                                             "[",
                                             "]",
                                             "\\",
                                             "\"",
                                             " ",
                                             "\n",
                                             "x",
                                             "1",
                                             ";"};
    for (int round = 0; round < 3000; ++round) {
      std::string text;
      for (int i = 0; i < 14; ++i) text += pieces[rng() % pieces.size()];
      EXPECT_EQ(read(family, text, std::vector<std::size_t>(text.size(), 1)),
                read(family, text, {}))
          << text;
    }
  }
}

TEST(ToolCalls, FamilyByTemplate) {
  EXPECT_EQ(tool_family(
                "{% if tools %}<tool_call>{\"name\": n, \"arguments\": a}</tool_call>{% endif %}"),
            kHermes);
  EXPECT_EQ(tool_family(
                "<|start_header_id|>{% if tools %}{\"name\": function name, \"parameters\": ...}"),
            kLlama);
  EXPECT_EQ(tool_family("{{ messages }}"), std::nullopt);
  EXPECT_EQ(tool_family("{% if tools %}[TOOL_CALLS]{% endif %}"), std::nullopt);
}

}  // namespace
}  // namespace lathe
