#include "grammar/output_grammar.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "formats/expect_error.h"
#include "grammar/grammar_cases.h"

namespace lathe {
namespace {

const char* const kTools = R"("tools":[
  {"type":"function","function":{"name":"get_weather","description":"d","parameters":{"type":"object",
     "properties":{"city":{"type":"string"},"unit":{"enum":["C","F"]}},"required":["city"],"additionalProperties":false}}},
  {"type":"function","function":{"name":"now"}},
  {"type":"function","function":{"name":"odd","parameters":{"type":"object","properties":{"l":{"type":"array","uniqueItems":true}}}}}])";

bool allows(const std::string& fields, ToolFamily family, const std::string& text) {
  const Json request = parse_json("{" + fields + "}", "request");
  const auto grammar = output_grammar(output_form(request), family);
  return grammar == nullptr || has_text(grammar, text);
}

std::string hermes(const std::string& name, const std::string& arguments) {
  return "<tool_call>\n{\"name\": \"" + name + "\", \"arguments\": " + arguments +
         "}\n</tool_call>";
}

TEST(OutputGrammar, NoFormNoGrammar) {
  for (const char* fields : {"", R"("response_format":{"type":"text"})", R"("tools":[])",
                             R"("tools":null,"tool_choice":"auto")"}) {
    EXPECT_EQ(
        output_grammar(output_form(parse_json("{" + std::string(fields) + "}", "r")), std::nullopt),
        nullptr);
  }
  EXPECT_EQ(output_grammar(output_form(parse_json(
                               "{" + std::string(kTools) + R"(,"tool_choice":"none"})", "r")),
                           std::nullopt),
            nullptr);
}

TEST(OutputGrammar, Formats) {
  const std::string object = R"("response_format":{"type":"json_object"})";
  EXPECT_TRUE(allows(object, ToolFamily::kHermes, R"({"a": [1]})"));
  EXPECT_FALSE(allows(object, ToolFamily::kHermes, "[1]"));
  const std::string schema =
      R"("response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"integer"}}})";
  EXPECT_TRUE(allows(schema, ToolFamily::kHermes, "12"));
  EXPECT_FALSE(allows(schema, ToolFamily::kHermes, "x"));
}

TEST(OutputGrammar, HermesCalls) {
  const std::string weather = hermes("get_weather", R"({"city": "Rome"})");
  const std::string now = hermes("now", "{}");
  const std::string automatic = kTools;
  const auto is = [&](const std::string& fields, const std::string& text) {
    return allows(fields, ToolFamily::kHermes, text);
  };
  for (const std::string& text :
       {std::string(), std::string("Just text < 3 <tool_cal> \xff"), weather, "I look.\n" + weather,
        weather + "\n" + now, hermes("odd", R"({"l": [1,1]})"),
        hermes("now", R"({"any": "thing"})")}) {
    EXPECT_TRUE(is(automatic, text)) << text;
  }
  for (const std::string& text :
       {std::string("<tool_call>"), weather.substr(0, 40), hermes("get_weather", "{}"),
        hermes("nothing", "{}"), hermes("get_weather", R"({"city": "R", "unit": "K"})"),
        std::string("x <tool_call> y")}) {
    EXPECT_FALSE(is(automatic, text)) << text;
  }
  const std::string single = automatic + R"(,"parallel_tool_calls":false)";
  EXPECT_TRUE(is(single, "x" + weather));
  EXPECT_FALSE(is(single, weather + "\n" + now));
  const std::string required = automatic + R"(,"tool_choice":"required")";
  EXPECT_TRUE(is(required, weather) && is(required, weather + "\n" + now));
  EXPECT_FALSE(is(required, "") || is(required, "text") || is(required, "text" + weather));
  const std::string named =
      automatic + R"(,"tool_choice":{"type":"function","function":{"name":"now"}})";
  EXPECT_TRUE(is(named, now));
  EXPECT_FALSE(is(named, weather) || is(named, now + "\n" + now) || is(named, ""));
}

TEST(OutputGrammar, Llama3Calls) {
  const std::string weather =
      R"({"name": "get_weather", "parameters": {"city": "Rome", "unit": "C"}})";
  const std::string automatic = kTools;
  const auto is = [&](const std::string& fields, const std::string& text) {
    return allows(fields, ToolFamily::kLlama3, text);
  };
  EXPECT_TRUE(is(automatic, weather) && is(automatic, "text {") && is(automatic, R"({"x": 1})"));
  EXPECT_FALSE(is(automatic, R"({"name": "get_weather", "parameters": {}})") ||
               is(automatic, R"({"name": "x"})"));
  const std::string required = automatic + R"(,"tool_choice":"required")";
  EXPECT_TRUE(is(required, weather));
  EXPECT_FALSE(is(required, "text"));
}

TEST(OutputGrammar, FormatsTogetherWithTools) {
  const std::string both =
      std::string(kTools) +
      R"(,"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object","properties":{"a":{"type":"null"}},"required":["a"],"additionalProperties":false}}})";
  const std::string call = hermes("now", "{}");
  EXPECT_TRUE(allows(both, ToolFamily::kHermes, R"({"a":null})"));
  EXPECT_TRUE(allows(both, ToolFamily::kHermes, call));
  EXPECT_FALSE(allows(both, ToolFamily::kHermes, "text"));
  EXPECT_FALSE(allows(both + R"(,"tool_choice":"required")", ToolFamily::kHermes, R"({"a":null})"));
  EXPECT_FALSE(allows(both + R"(,"tool_choice":"none")", ToolFamily::kHermes, call));
  EXPECT_TRUE(allows(both + R"(,"tool_choice":"none")", ToolFamily::kHermes, R"({"a":null})"));
}

TEST(OutputGrammar, OneClearError) {
  const std::vector<std::tuple<std::string, ErrorCode, const char*>> cases = {
      {R"("response_format":5)", ErrorCode::kInvalidArgument, "response_format.type"},
      {R"("response_format":{"type":"xml"})", ErrorCode::kInvalidArgument, "'xml'"},
      {R"("response_format":{"type":"json_schema"})", ErrorCode::kInvalidArgument,
       "json_schema.schema is missing"},
      {R"("response_format":{"type":"json_schema","json_schema":{"schema":{"not":{}}}})",
       ErrorCode::kUnsupported, "response_format: schema at #"},
      // What is there must be right, even where the type makes nothing of it.
      {R"("response_format":{"type":"text","json_schema":{"schema":{},"strict":{}}})",
       ErrorCode::kInvalidArgument, "json_schema.strict"},
      {R"("response_format":{"type":"json_schema","json_schema":{"schema":true}})",
       ErrorCode::kInvalidArgument, "json_schema.schema must be"},
      {R"("response_format":{"type":"json_schema","json_schema":{"schema":{},"name":5}})",
       ErrorCode::kInvalidArgument, "json_schema.name"},
      {R"("tools":{})", ErrorCode::kInvalidArgument, "tools must be a list"},
      {R"("tools":[{"type":"function","function":{"name":"a","description":{}}}])",
       ErrorCode::kInvalidArgument, "description"},
      {std::string(kTools) + R"(,"tool_choice":{"type":"x","function":{"name":"now"}})",
       ErrorCode::kInvalidArgument, "tool_choice.type"},
      {R"("tools":[5])", ErrorCode::kInvalidArgument, "tools[0].type"},
      {R"("tools":[{"type":"function"}])", ErrorCode::kInvalidArgument, "tools[0].function.name"},
      {R"("tools":[{"type":"function","function":{"name":"a b"}}])", ErrorCode::kInvalidArgument,
       "'a b'"},
      {R"("tools":[{"type":"function","function":{"name":"a","parameters":[]}}])",
       ErrorCode::kInvalidArgument, "parameters"},
      {R"("tools":[{"type":"function","function":{"name":"a"}},{"type":"function","function":{"name":"a"}}])",
       ErrorCode::kInvalidArgument, "comes twice"},
      {R"("tools":[{"type":"function","function":{"name":"a","strict":true,"parameters":{"not":{}}}}])",
       ErrorCode::kUnsupported, "tool 'a': schema at #"},
      {R"("tools":[{"type":"function","function":{"name":"a","parameters":{"type":"x"}}}])",
       ErrorCode::kInvalidArgument, "tool 'a'"},
      {std::string(kTools) + R"(,"tool_choice":"maybe")", ErrorCode::kInvalidArgument,
       "tool_choice must be"},
      {std::string(kTools) + R"(,"tool_choice":{"type":"function","function":{"name":"zzz"}})",
       ErrorCode::kInvalidArgument, "'zzz'"},
      {std::string(kTools) + R"(,"parallel_tool_calls":1)", ErrorCode::kInvalidArgument,
       "parallel_tool_calls"},
      {R"("tool_choice":"required")", ErrorCode::kInvalidArgument, "there are no tools"},
  };
  for (const auto& [fields, code, text] : cases) {
    SCOPED_TRACE(fields);
    expect_error(code, text, [&, f = fields] {
      const Json request = parse_json("{" + f + "}", "request");
      output_grammar(output_form(request), ToolFamily::kHermes);
    });
  }
  const Json request = parse_json("{" + std::string(kTools) + "}", "request");
  expect_error(ErrorCode::kUnsupported, "chat template",
               [&] { output_grammar(output_form(request), std::nullopt); });
}

// Free text in front of calls costs no more than one look at its mask.
TEST(OutputGrammar, MasksAreWhatTheBytesSay) {
  const Json request = parse_json("{" + std::string(kTools) + "}", "request");
  const auto trie = large_vocabulary(6000, 4);
  for (const ToolFamily family : {ToolFamily::kHermes, ToolFamily::kLlama3}) {
    const auto grammar =
        std::make_shared<TokenGrammar>(output_grammar(output_form(request), family), trie);
    Matcher matcher(grammar);
    const std::string text =
        family == ToolFamily::kHermes
            ? "a <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"
            : "{\"name\": \"now\", \"parameters\": {}}";
    for (const char c : text) {
      const auto mask = mask_of(matcher, *trie);
      for (int32_t t = 0; t + 1 < trie->vocab_size(); ++t)
        ASSERT_EQ(is_set(mask, t), matcher.allows(t)) << trie->bytes(t);
      ASSERT_EQ(is_set(mask, trie->vocab_size() - 1), matcher.is_complete());
      ASSERT_TRUE(matcher.accept(static_cast<uint8_t>(c)));
    }
    EXPECT_TRUE(matcher.is_complete());
  }
}

}  // namespace
}  // namespace lathe
