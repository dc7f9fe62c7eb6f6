// response_format and tools through the API, on a random model: whatever the form is, the model did
// not learn it.
#include "server/output_format.h"

#include <gtest/gtest.h>

#include "server/served_tiny.h"

namespace lathe {
namespace {

constexpr const char* kChat = "/v1/chat/completions";

// Without blanks, which a random model writes until the context is full.
Json request(const std::string& fields, int seed = 1) {
  return parse_json(
      R"({"messages":[{"role":"user","content":"hi"}],"max_tokens":88,"temperature":1.3,)"
      R"("stop_token_ids":[300],"logit_bias":{"9":-100,"10":-100,"32":-100},"seed":)" +
          std::to_string(seed) + "," + fields + "}",
      "request");
}

const char* const kSchema =
    R"("response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{
      "a":{"type":"integer","minimum":5,"maximum":77},"b":{"type":"array","items":{"enum":["x","y"]},"maxItems":2}},
      "required":["a","b"],"additionalProperties":false}}})";
// Short names: the model has 128 positions, and a token for each byte.
const char* const kTools =
    R"("tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{
      "x":{"type":"integer","minimum":0,"maximum":9}},"required":["x"],"additionalProperties":false}}},
      {"type":"function","function":{"name":"g","parameters":{"type":"object","additionalProperties":false}}}])";

TEST(OutputFormat, AnswersSatisfyTheSchema) {
  TinyApi api;
  for (int seed = 1; seed <= 5; ++seed) {
    const Json answer = api.answer(kChat, request(kSchema, seed));
    const Json& choice = answer["choices"][0];
    EXPECT_EQ(choice["finish_reason"], "stop");
    const Json json = parse_json(choice["message"]["content"].get<std::string>(), "content");
    EXPECT_GE(json["a"].get<int>(), 5);
    EXPECT_LE(json["a"].get<int>(), 77);
    EXPECT_LE(json["b"].size(), 2u);
  }
  Json body = request(kSchema);
  body["n"] = 3;
  body["logprobs"] = true;
  const Json several = api.answer(kChat, body);
  for (const Json& choice : several["choices"]) {
    EXPECT_TRUE(
        parse_json(choice["message"]["content"].get<std::string>(), "content").contains("b"));
  }
  Json text = request(kSchema);
  text.erase("messages");
  text["prompt"] = "x";
  const Json completion = api.answer("/v1/completions", text);
  EXPECT_TRUE(
      parse_json(completion["choices"][0]["text"].get<std::string>(), "text").contains("a"));
}

TEST(OutputFormat, ToolCalls) {
  TinyApi api;
  bool added = false;
  for (int seed = 1; seed <= 6; ++seed) {
    Json body = request(
        std::string(kTools) + R"(,"tool_choice":"required","parallel_tool_calls":false)", seed);
    const Json answer = api.answer(kChat, body);
    const Json& choice = answer["choices"][0];
    EXPECT_EQ(choice["finish_reason"], "tool_calls");
    EXPECT_TRUE(choice["message"]["content"].is_null());
    const Json& calls = choice["message"]["tool_calls"];
    ASSERT_EQ(calls.size(), 1u) << answer;
    const Json& function = calls[0]["function"];
    const Json arguments = parse_json(function["arguments"].get<std::string>(), "arguments");
    EXPECT_TRUE(function["name"] == "f" || function["name"] == "g");
    if (function["name"] == "f") {
      EXPECT_LE(arguments["x"].get<int>(), 9);
      added = true;
    }
    EXPECT_EQ(calls[0]["type"], "function");
    EXPECT_EQ(calls[0]["id"].get<std::string>().rfind("call_", 0), 0u);

    // Streamed: the same calls in pieces.
    body["stream"] = true;
    std::string name, text, id;
    std::string reason;
    for (const Json& event : api.events(kChat, body)) {
      for (const Json& c : event["choices"]) {
        if (c["finish_reason"].is_string()) reason = c["finish_reason"];
        if (!c["delta"].contains("tool_calls")) continue;
        const Json& call = c["delta"]["tool_calls"][0];
        EXPECT_EQ(call["index"], 0);
        name += call["function"].value("name", "");
        id += call.value("id", "");
        text += call["function"]["arguments"].get<std::string>();
      }
    }
    EXPECT_EQ(reason, "tool_calls");
    EXPECT_EQ(name, function["name"].get<std::string>());
    EXPECT_EQ(text, function["arguments"].get<std::string>());
    EXPECT_EQ(id.size(), std::string("call_").size() + 24);
  }
  EXPECT_TRUE(added);
  // One that is named; and its format with tools that are switched off.
  const Json named =
      api.answer(kChat, request(std::string(kTools) +
                                R"(,"tool_choice":{"type":"function","function":{"name":"g"}})"));
  EXPECT_EQ(named["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "g");
  const Json none =
      api.answer(kChat, request(std::string(kTools) + R"(,"tool_choice":"none",)" + kSchema));
  EXPECT_TRUE(
      parse_json(none["choices"][0]["message"]["content"].get<std::string>(), "c").contains("a"));
  // Both: content by the schema, or a call.
  const Json both = api.answer(kChat, request(std::string(kTools) + "," + kSchema))["choices"][0];
  EXPECT_TRUE(both["message"].contains("tool_calls") ||
              parse_json(both["message"]["content"].get<std::string>(), "c").contains("a"));
}

TEST(OutputFormat, RefusesWithTheField) {
  TinyApi api;
  const std::vector<std::tuple<std::string, const char*, const char*>> cases = {
      {R"("response_format":{"type":"xml"})", "response_format", "'xml'"},
      {R"("response_format":{"type":"json_schema","json_schema":{"schema":{"not":{}}}})",
       "response_format", "'not' is not supported"},
      {R"("tools":[{"type":"function"}])", "tools", "tools[0].function.name"},
      {R"("tool_choice":"required")", "tool_choice", "there are no tools"},
      {R"("tools":[{"type":"function","function":{"name":"f","strict":true,"parameters":{"type":"array","uniqueItems":true}}}])",
       "tools", "uniqueItems"},
  };
  for (const auto& [fields, param, text] : cases) {
    const HttpResponse response = api.post(kChat, dump_json(request(fields)));
    EXPECT_EQ(response.status, 400) << fields;
    const Json error = parse_json(response.body, "error")["error"];
    EXPECT_EQ(error["param"], param) << response.body;
    EXPECT_NE(error["message"].get<std::string>().find(text), std::string::npos) << response.body;
  }
  EXPECT_EQ(api.admission.num_open(), 0);
}

}  // namespace
}  // namespace lathe
