// The routes on the tiny model: what a request asks for is what the answer says.
#include "server/api.h"

#include <gtest/gtest.h>

#include <chrono>
#include <set>
#include <thread>

#include "server/served_tiny.h"

namespace lathe {
namespace {

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kCompletions = "/v1/completions";

Json hello(int64_t max_tokens = 8) {
  return {{"messages", {{{"role", "user"}, {"content", "hello"}}}},
          {"max_tokens", max_tokens},
          {"temperature", 0}};
}

Json with(Json body, const std::string& key, const Json& value) {
  body[key] = value;
  return body;
}

TEST(Api, AnswersChatsAsTheEngineDoes) {
  TinyApi api;
  const Json answer = api.answer(kChat, hello());
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["model"], "tiny");
  EXPECT_EQ(answer["id"], "chatcmpl-test");
  ASSERT_EQ(answer["choices"].size(), 1u);
  const Json& choice = answer["choices"][0];
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_TRUE(choice["logprobs"].is_null());
  const std::string prompt = "user:hello;assistant:";
  const Record expected = alone({prompt.begin(), prompt.end()}, greedy(8));
  EXPECT_EQ(choice["message"]["content"], expected.text);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], prompt.size());
  EXPECT_EQ(answer["usage"]["completion_tokens"], 8);
  EXPECT_EQ(answer["usage"]["total_tokens"], prompt.size() + 8);
  EXPECT_TRUE(answer["usage"]["prompt_tokens_details"].contains("cached_tokens"));
}

TEST(Api, StreamsWhatItWouldAnswer) {
  TinyApi api;
  Json body = with(hello(20), "n", 3);
  body["temperature"] = 1;
  body["seed"] = 7;
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const Json whole = api.answer(kChat, body);
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const std::vector<Json> events = api.events(kChat, body);
  std::vector<std::string> texts(3);
  std::vector<Json> logprobs(3, Json::array());
  std::vector<Json> reasons(3);
  std::set<int> begun;
  for (std::size_t i = 0; i + 1 < events.size(); ++i) {
    const Json& event = events[i];
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_TRUE(event["usage"].is_null());
    ASSERT_EQ(event["choices"].size(), 1u);
    const Json& choice = event["choices"][0];
    const auto idx = choice["index"].get<std::size_t>();
    EXPECT_EQ(choice["delta"].contains("role"), begun.insert(static_cast<int>(idx)).second);
    texts[idx] += choice["delta"].value("content", "");
    for (const Json& token : choice["logprobs"]["content"]) logprobs[idx].push_back(token);
    if (!choice["finish_reason"].is_null()) reasons[idx] = choice["finish_reason"];
  }
  EXPECT_TRUE(events.back()["choices"].empty());
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], 60);
  for (std::size_t i = 0; i < 3; ++i) {
    const Json& choice = whole["choices"][i];
    EXPECT_EQ(texts[i], choice["message"]["content"]);
    EXPECT_EQ(logprobs[i], choice["logprobs"]["content"]);
    EXPECT_EQ(reasons[i], choice["finish_reason"]);
    EXPECT_EQ(logprobs[i].size(), 20u);
    EXPECT_EQ(logprobs[i][0]["top_logprobs"].size(), 2u);
    EXPECT_GE(logprobs[i][0]["top_logprobs"][0]["logprob"],
              logprobs[i][0]["top_logprobs"][1]["logprob"]);
  }
  EXPECT_NE(texts[0], texts[1]);  // another seed each
}

TEST(Api, ContinuousUsageGrows) {
  TinyApi api;
  Json body = with(hello(5), "stream", true);
  body["stream_options"] = {{"include_usage", true}, {"continuous_usage_stats", true}};
  int64_t last = 0;
  for (const Json& event : api.events(kChat, body)) {
    EXPECT_GE(event["usage"]["completion_tokens"].get<int64_t>(), last);
    last = event["usage"]["completion_tokens"].get<int64_t>();
  }
  EXPECT_EQ(last, 5);
}

TEST(Api, SamplingFieldsReachTheEngine) {
  TinyApi api;
  const Json base = with(with(hello(12), "temperature", 1), "seed", 3);
  const auto text = [&](const Json& body) {
    return api.answer(kChat, body)["choices"][0]["message"]["content"].get<std::string>();
  };
  EXPECT_EQ(text(base), text(base));
  EXPECT_NE(text(base), text(with(base, "seed", 4)));
  // A token that is biased up comes every time, whatever the seed.
  const std::string biased = text(with(base, "logit_bias", {{"65", 100}}));
  EXPECT_EQ(biased, std::string(12, 'A'));
  EXPECT_EQ(text(with(with(base, "logit_bias", {{"65", 100}}), "stop", "AAA")), "");
  EXPECT_EQ(text(with(with(base, "logit_bias", {{"65", 100}}), "stop", {"zz", "AAAA"})), "");
  EXPECT_EQ(text(with(base, "top_k", 1)), text(hello(12)));
  EXPECT_EQ(text(with(base, "min_p", 1)), text(hello(12)));
  EXPECT_EQ(text(with(base, "top_p", 0)), text(hello(12)));
  const Json stopped =
      api.answer(kChat, with(with(base, "logit_bias", {{"65", 100}}), "stop_token_ids", {65}));
  EXPECT_EQ(stopped["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(stopped["usage"]["completion_tokens"], 1);
  // A strong penalty forbids the second A.
  const std::string penalized =
      text(with(with(base, "logit_bias", {{"65", 20}}), "repetition_penalty", 100));
  EXPECT_NE(penalized, text(with(base, "logit_bias", {{"65", 20}})));
  EXPECT_EQ(
      api.answer(kChat, with(hello(), "max_completion_tokens", 3))["usage"]["completion_tokens"],
      3);
}

TEST(Api, ContinuesTexts) {
  TinyApi api;
  const Json one = api.answer(kCompletions, {{"prompt", "hello"}, {"temperature", 0}});
  EXPECT_EQ(one["object"], "text_completion");
  EXPECT_EQ(one["usage"]["completion_tokens"], 16);  // OpenAI's default
  const std::string text = one["choices"][0]["text"].get<std::string>();
  const Json ids =
      api.answer(kCompletions, {{"prompt", {104, 101, 108, 108, 111}}, {"temperature", 0}});
  EXPECT_EQ(ids["choices"][0]["text"], text);
  const Json many =
      api.answer(kCompletions,
                 {{"prompt", {"hello", "bye"}}, {"temperature", 0}, {"n", 2}, {"max_tokens", 4}});
  ASSERT_EQ(many["choices"].size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(many["choices"][i]["index"], i);
  EXPECT_EQ(many["choices"][0]["text"], many["choices"][1]["text"]);
  EXPECT_EQ(many["usage"]["prompt_tokens"], 8);  // each prompt once
  EXPECT_EQ(many["usage"]["completion_tokens"], 16);
  const Json lists = api.answer(
      kCompletions, {{"prompt", {{104, 105}, {98}}}, {"temperature", 0}, {"max_tokens", 1}});
  EXPECT_EQ(lists["choices"].size(), 2u);
}

TEST(Api, EchoesPromptsWithTheirLogprobs) {
  TinyApi api;
  const Json body = {
      {"prompt", "hello"}, {"temperature", 0}, {"max_tokens", 3}, {"echo", true}, {"logprobs", 2}};
  const Json choice = api.answer(kCompletions, body)["choices"][0];
  EXPECT_EQ(choice["text"].get<std::string>().rfind("hello", 0), 0u);
  const Json& logprobs = choice["logprobs"];
  ASSERT_EQ(logprobs["tokens"].size(), 8u);
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
  EXPECT_EQ(logprobs["text_offset"], Json({0, 1, 2, 3, 4, 5, 6, 7}));
  // As the engine would have chosen: the second token of the prompt, forced after the first.
  const Json second = api.answer(kCompletions, {{"prompt", "h"},
                                                {"temperature", 0},
                                                {"max_tokens", 1},
                                                {"logprobs", 0},
                                                {"logit_bias", {{"101", 100}}}});
  EXPECT_EQ(second["choices"][0]["text"], "e");
  EXPECT_NEAR(second["choices"][0]["logprobs"]["token_logprobs"][0].get<double>(),
              logprobs["token_logprobs"][1].get<double>(), 1e-5);
  // max_tokens 0: the prompt alone, as lm-eval asks for.
  const Json alone = api.answer(kCompletions, with(body, "max_tokens", 0));
  EXPECT_EQ(alone["choices"][0]["text"], "hello");
  EXPECT_EQ(alone["choices"][0]["logprobs"]["token_logprobs"].size(), 5u);
  EXPECT_EQ(alone["usage"]["completion_tokens"], 0);
  EXPECT_EQ(alone["usage"]["prompt_tokens"], 5);
  // Streamed, the echo comes first.
  const auto events = api.events(kCompletions, with(body, "stream", true));
  EXPECT_EQ(events[0]["choices"][0]["text"].get<std::string>().rfind("hello", 0), 0u);
}

TEST(Api, MakesEmbeddings) {
  TinyApi api;
  const Json answer = api.answer("/v1/embeddings", {{"input", {"hello", "bye", "hello"}}});
  ASSERT_EQ(answer["data"].size(), 3u);
  const auto vector = [&](std::size_t i) {
    return answer["data"][i]["embedding"].get<std::vector<double>>();
  };
  EXPECT_EQ(vector(0), vector(2));
  EXPECT_NE(vector(0), vector(1));
  double length = 0;
  for (const double x : vector(0)) length += x * x;
  EXPECT_NEAR(length, 1, 1e-5);
  EXPECT_EQ(vector(0).size(), static_cast<std::size_t>(api.tiny.loaded.config().hidden_size));
  const Json short_one = api.answer("/v1/embeddings", {{"input", "hello"}, {"dimensions", 4}});
  EXPECT_EQ(short_one["data"][0]["embedding"].size(), 4u);
  // base64 of the same numbers: 4 bytes each.
  const Json base64 = api.answer(
      "/v1/embeddings", {{"input", "hello"}, {"dimensions", 4}, {"encoding_format", "base64"}});
  EXPECT_EQ(base64["data"][0]["embedding"].get<std::string>().size(), 24u);
  EXPECT_TRUE(base64["data"][0]["embedding"].get<std::string>().ends_with("=="));
}

TEST(Api, TokenizesAndBack) {
  TinyApi api;
  const Json ids = api.answer("/tokenize", {{"prompt", "hi"}, {"return_token_strs", true}});
  EXPECT_EQ(ids["tokens"], Json({104, 105}));
  EXPECT_EQ(ids["count"], 2);
  EXPECT_EQ(ids["token_strs"], Json({"h", "i"}));
  EXPECT_EQ(api.answer("/detokenize", {{"tokens", {104, 105}}})["prompt"], "hi");
  const Json chat = api.answer("/tokenize", {{"messages", {{{"role", "user"}, {"content", "x"}}}}});
  const Json tools = Json::parse(R"([{"type":"function","function":{"name":"f"}}])");
  EXPECT_GT(api.answer("/tokenize", {{"messages", {{{"role", "user"}, {"content", "x"}}}},
                                     {"tools", tools}})["count"],
            chat["count"]);
  EXPECT_EQ(chat["count"], std::string("user:x;assistant:").size());
}

TEST(Api, ReadsMessagesAsOpenAiSendsThem) {
  TinyApi api;
  const auto prompt = [&](const Json& messages, Json extra = Json::object()) {
    extra["messages"] = messages;
    return api.answer("/detokenize",
                      {{"tokens", api.answer("/tokenize", extra)["tokens"]}})["prompt"];
  };
  EXPECT_EQ(prompt({{{"role", "developer"}, {"content", "a"}}}), "system:a;assistant:");
  EXPECT_EQ(prompt({{{"role", "user"},
                     {"content",
                      {{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}}}}}),
            "user:a\nb;assistant:");
  EXPECT_EQ(prompt({{{"role", "assistant"}, {"content", nullptr}}}), "assistant:;assistant:");
  EXPECT_EQ(prompt({{{"role", "user"}, {"content", "a"}}}, {{"add_generation_prompt", false}}),
            "user:a;");
  EXPECT_EQ(
      prompt({{{"role", "user"}, {"content", "a"}}, {{"role", "assistant"}, {"content", "so"}}},
             {{"continue_final_message", true}}),
      "user:a;assistant:so");
}

TEST(Api, ListsItsModel) {
  TinyApi api;
  const Json list = parse_json(api.get("/v1/models").body, "models");
  EXPECT_EQ(list["data"][0]["id"], "tiny");
  EXPECT_EQ(list["data"][0]["max_model_len"], api.context.model.max_tokens);
  EXPECT_EQ(api.get("/v1/models/tiny").status, 200);
  EXPECT_EQ(api.get("/v1/models/t%69ny").status, 200);
  EXPECT_EQ(api.get("/v1/models/other").status, 404);
}

struct BadRequest {
  const char* path;
  std::string body;
  int status;
  const char* part;  // of the message
};

TEST(Api, RefusesBadRequestsWithAReason) {
  TinyApi api;
  const auto chat = [](const std::string& fields) {
    return R"({"messages":[{"role":"user","content":"x"}],"max_tokens":4)" + fields + "}";
  };
  const auto text = [](const std::string& fields) {
    return R"({"prompt":"x","max_tokens":4)" + fields + "}";
  };
  const std::vector<BadRequest> cases = {
      {kChat, "", 400, "empty"},
      {kChat, "{", 400, "not valid JSON"},
      {kChat, "[]", 400, "must be an object"},
      {kChat, "\"\xff\"", 400, "not valid JSON"},
      {kChat, std::string(3000, '['), 400, "deeper than 64"},
      {kChat, R"({"messages":)" + std::string(3000, '[') + std::string(3000, ']') + "}", 400,
       "deeper"},
      {kChat, "{}", 400, "messages is missing"},
      {kChat, R"({"messages":{}})", 400, "must be an array"},
      {kChat, R"({"messages":[]})", 400, "messages is empty"},
      {kChat, R"({"messages":[1]})", 400, "messages[0] must be an object"},
      {kChat, R"({"messages":[{"content":"x"}]})", 400, "has no role"},
      {kChat, R"({"messages":[{"role":1,"content":"x"}]})", 400, "messages[0].role"},
      {kChat, R"({"messages":[{"role":"user"}]})", 400, "has no content"},
      {kChat, R"({"messages":[{"role":"user","content":5}]})", 400, "must be a string"},
      {kChat, R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})", 400,
       "text only"},
      {kChat, R"({"messages":[{"role":"nobody","content":"x"}]})", 400, "no such role"},
      {kChat,
       R"({"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{"}}]}]})",
       400, "arguments"},
      {kChat, chat(R"(,"model":"other")"), 404, "not served"},
      {kChat, chat(R"(,"model":1)"), 400, "model must be a string"},
      {kChat, chat(R"(,"temperature":-1)"), 400, "temperature is -1"},
      {kChat, chat(R"(,"temperature":1e308)"), 400, "temperature"},
      {kChat, chat(R"(,"temperature":"hot")"), 400, "must be a number"},
      {kChat, chat(R"(,"temperature":1e999)"), 400, "not valid JSON"},
      {kChat, chat(R"(,"top_p":1.5)"), 400, "top_p"},
      {kChat, chat(R"(,"top_k":-2)"), 400, "top_k"},
      {kChat, chat(R"(,"min_p":-0.1)"), 400, "min_p"},
      {kChat, chat(R"(,"presence_penalty":3)"), 400, "presence_penalty"},
      {kChat, chat(R"(,"repetition_penalty":0)"), 400, "repetition_penalty"},
      {kChat, chat(R"(,"n":0)"), 400, "n is 0"},
      {kChat, chat(R"(,"n":-1)"), 400, "n is -1"},
      {kChat, chat(R"(,"n":1000000000)"), 400, "n is 1000000000"},
      {kChat, chat(R"(,"n":1.5)"), 400, "whole number"},
      {kChat, chat(R"(,"n":100)"), 400, "fit into the queue"},
      {kChat, chat(R"(,"max_tokens":0)"), 400, "max_tokens is 0"},
      {kChat, chat(R"(,"max_tokens":1000000)"), 400, "context has"},
      {kChat, chat(R"(,"seed":99999999999999999999)"), 400, "seed"},
      {kChat, chat(R"(,"logprobs":true,"top_logprobs":21)"), 400, "top_logprobs"},
      {kChat, chat(R"(,"top_logprobs":2)"), 400, "needs logprobs"},
      {kChat, chat(R"(,"logit_bias":{"x":1})"), 400, "has the key 'x'"},
      {kChat, chat(R"(,"logit_bias":{"99999999":1})"), 400, "token ids below"},
      {kChat, chat(R"(,"logit_bias":{"1":101})"), 400, "[-100, 100]"},
      {kChat, chat(R"(,"logit_bias":[1])"), 400, "must be an object"},
      {kChat, chat(R"(,"stop":[""])"), 400, "stop has a string of 0 bytes"},
      {kChat, chat(R"(,"stop":5)"), 400, "stop must be"},
      {kChat, chat(R"(,"stop_token_ids":[-1])"), 400, "stop_token_ids"},
      {kChat, chat(R"(,"stream":1)"), 400, "true or false"},
      {kChat, chat(R"(,"stream_options":{"include_usage":true})"), 400, "needs stream"},
      {kChat, chat(R"(,"use_beam_search":true)"), 400, "not supported"},
      {kChat, chat(R"(,"chat_template_kwargs":3)"), 400, "must be an object"},
      {kCompletions, "{}", 400, "prompt is missing"},
      {kCompletions, R"({"prompt":""})", 400, "prompt is empty"},
      {kCompletions, R"({"prompt":[]})", 400, "prompt is empty"},
      {kCompletions, R"({"prompt":[[]]})", 400, "prompt is empty"},
      {kCompletions, R"({"prompt":["a",1]})", 400, "prompt[1]"},
      {kCompletions, R"({"prompt":[1,"a"]})", 400, "token ids"},
      {kCompletions, R"({"prompt":[100000]})", 400, "vocabulary"},
      {kCompletions, R"({"prompt":{}})", 400, "string or an array"},
      {kCompletions, text(R"(,"best_of":3)"), 400, "best_of"},
      {kCompletions, text(R"(,"suffix":"x")"), 400, "suffix"},
      {kCompletions, text(R"(,"logprobs":true)"), 400, "logprobs"},
      {kCompletions, text(R"(,"logprobs":21)"), 400, "logprobs"},
      {kCompletions, text(R"(,"max_tokens":0)"), 400, "max_tokens is 0"},
      {kCompletions, text(R"(,"n":128)"), 400, "fit into the queue"},
      {"/v1/embeddings", "{}", 400, "input is missing"},
      {"/v1/embeddings", R"({"input":""})", 400, "empty text"},
      {"/v1/embeddings", R"({"input":"x","encoding_format":"int8"})", 400, "encoding_format"},
      {"/v1/embeddings", R"({"input":"x","dimensions":100000})", 400, "dimensions"},
      {"/v1/embeddings", R"({"input":")" + std::string(65, 'x') + "\"}", 400, "at most 64"},
      {"/tokenize", "{}", 400, "give prompt or messages"},
      {"/tokenize", R"({"messages":[{"role":"user","content":"x"}],"tools":5})", 400,
       "tools must be an array"},
      {"/tokenize", R"({"messages":[{"role":"user","content":"x"}],"tools":[5]})", 400, "tools[0]"},
      {"/tokenize", R"({"prompt":"x","tools":[5]})", 400, "tools[0]"},
      {"/detokenize", R"({"tokens":[300000]})", 400, "vocabulary"},
      {"/detokenize", R"({"tokens":"x"})", 400, "must be an array"},
  };
  for (const BadRequest& c : cases) {
    const HttpResponse response = api.post(c.path, c.body);
    EXPECT_EQ(response.status, c.status) << c.path << ' ' << c.body.substr(0, 200) << response.body;
    const Json error = parse_json(response.body, "error")["error"];
    EXPECT_NE(error["message"].get<std::string>().find(c.part), std::string::npos)
        << c.body.substr(0, 200) << '\n'
        << error["message"];
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_TRUE(error.contains("param") && error.contains("code"));
  }
  EXPECT_EQ(api.admission.num_open(), 0);
  EXPECT_EQ(api.post(kChat, chat(R"(,"some_new_field":{"a":[1]},"user":"me","tools":null)")).status,
            200);
}

TEST(Api, LimitsKeysAndValues) {
  ApiLimits limits;
  limits.json = {.max_depth = 8, .max_keys = 10, .max_values = 50};
  TinyApi api(small_options(), limits);
  std::string many = "{\"prompt\":\"x\"";
  for (int i = 0; i < 10; ++i) many += ",\"k" + std::to_string(i) + "\":0";
  EXPECT_NE(api.post(kCompletions, many + "}").body.find("more than 10 keys"), std::string::npos);
  std::string values = "{\"prompt\":[0";
  for (int i = 0; i < 60; ++i) values += ",0";
  EXPECT_NE(api.post(kCompletions, values + "]}").body.find("more than 50 values"),
            std::string::npos);
}

TEST(Api, ChecksRoutesMethodsKeysAndTypes) {
  TinyApi api(small_options(), {}, 8, {"secret"});
  HttpRequest request = TinyApi::head("GET", "/v1/models");
  const auto status = [&] {
    const auto early = api.api.check_head(request);
    return early ? early->status : 200;
  };
  EXPECT_EQ(status(), 401);
  request.authorization = "Bearer wrong";
  EXPECT_EQ(status(), 401);
  request.authorization = "Bearer secret";
  EXPECT_EQ(status(), 200);
  request.method = "HEAD";
  EXPECT_EQ(status(), 200);
  for (const char* method : {"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"}) {
    request.method = method;
    const auto early = api.api.check_head(request);
    ASSERT_TRUE(early.has_value());
    EXPECT_EQ(early->status, 405) << method;
    EXPECT_NE(std::find(early->headers.begin(), early->headers.end(),
                        std::pair<std::string, std::string>("Allow", "GET, HEAD")),
              early->headers.end());
  }
  request = TinyApi::head("POST", kChat);
  request.authorization = "Bearer secret";
  request.has_body = true;
  for (const char* type : {"", "text/plain", "application/x-www-form-urlencoded",
                           "multipart/form-data", "application/jsonx"}) {
    request.content_type = type;
    EXPECT_EQ(status(), 415) << type;
  }
  request.content_type = "Application/JSON ; charset=utf-8";
  EXPECT_EQ(status(), 200);
  request.path = "/v1/chat/completions/";
  EXPECT_EQ(status(), 404);
  // The key guards everything but /health.
  for (const char* path : {"/", "/metrics", "/openapi.json", "/v1/models", "/nothing", "/app.js"}) {
    request = TinyApi::head("GET", path);
    EXPECT_EQ(status(), 401) << path;
  }
  request = TinyApi::head("GET", "/health");
  EXPECT_EQ(status(), 200);
}

TEST(Api, WithoutAKeyOnlyThisMachineIsServed) {
  TinyApi api;
  HttpRequest request = TinyApi::head("GET", "/v1/models");
  request.host = "attacker.example";
  const auto early = api.api.check_head(request);
  ASSERT_TRUE(early.has_value());
  EXPECT_EQ(early->status, 403);
}

TEST(Api, TellsItsHealthAndDrains) {
  TinyApi api;
  EXPECT_EQ(api.get("/health").body, R"({"status":"ok"})");
  api.api.start_draining();
  EXPECT_EQ(api.get("/health").status, 503);
  EXPECT_EQ(api.get("/health").body, R"({"status":"draining"})");
  EXPECT_EQ(api.post(kChat, dump_json(hello())).status, 503);
  EXPECT_EQ(api.get("/metrics").status, 200);
}

TEST(Api, SaysWhatItServes) {
  TinyApi api;
  const Json document = parse_json(api.get("/openapi.json").body, "openapi.json");
  EXPECT_EQ(document["openapi"], "3.1.0");
  for (const auto& [path, methods] : document["paths"].items()) {
    for (const auto& [method, operation] : methods.items()) {
      std::string upper = method;
      for (char& c : upper) c = static_cast<char>(c - 'a' + 'A');
      HttpRequest request =
          TinyApi::head(upper, path == "/v1/models/{model}" ? "/v1/models/x" : path);
      request.content_type = "application/json";
      EXPECT_FALSE(api.api.check_head(request).has_value()) << method << ' ' << path;
    }
  }
  // And nothing but the page's files is missing from it.
  for (const char* path :
       {"/health", "/metrics", "/openapi.json", "/v1/models", "/v1/models/{model}",
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"}) {
    EXPECT_TRUE(document["paths"].contains(path)) << path;
  }
}

TEST(Api, CountsWhatItDoes) {
  TinyApi api;
  api.answer(kChat, with(hello(5), "n", 2));
  EXPECT_EQ(api.post(kChat, "{}").status, 400);
  // An answer leaves before the step that ended it is counted.
  std::string text = api.get("/metrics").body;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (text.find("\nvllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 0\n") ==
             std::string::npos &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    text = api.get("/metrics").body;
  }
  const auto value = [&](const std::string& name) {
    const std::size_t begin = text.find("\n" + name);
    if (begin == std::string::npos) return std::string("missing");
    const std::size_t end = text.find('\n', begin + 1);
    return text.substr(begin, end - begin).substr(text.substr(begin, end - begin).rfind(' ') + 1);
  };
  const std::string labels = "{engine=\"0\",model_name=\"tiny\"";
  EXPECT_EQ(value("lathe_choices_started_total"), "2");
  EXPECT_EQ(value("lathe_choices_open"), "0");
  EXPECT_EQ(value("vllm:request_success_total" + labels + ",finished_reason=\"length\"}"), "2");
  EXPECT_EQ(value("vllm:generation_tokens_total"), "10");
  EXPECT_EQ(value("vllm:time_to_first_token_seconds_count"), "2");
  EXPECT_EQ(value("vllm:inter_token_latency_seconds_count"), "8");
  EXPECT_EQ(value("vllm:request_generation_tokens_sum"), "10");
  // The longest of the two, once.
  EXPECT_EQ(value("vllm:request_max_num_generation_tokens_count"), "1");
  EXPECT_EQ(value("vllm:request_max_num_generation_tokens_sum"), "5");
  EXPECT_EQ(value("vllm:num_requests_running"), "0");
}

TEST(Api, LogsLinesOfJsonWithoutTexts) {
  TinyApi api;
  HttpRequest request = TinyApi::head("POST", "/v1/\"\n\xff");
  request.authorization = "Bearer secret";
  request.body = "private";
  api.api.finished(request, {.status = 404, .body_bytes = 3, .seconds = 0.5, .client_gone = false});
  ASSERT_EQ(api.log_lines.size(), 1u);
  const Json line = parse_json(api.log_lines[0], "log");
  EXPECT_EQ(line["event"], "request");
  EXPECT_EQ(line["status"], 404);
  EXPECT_EQ(std::count(api.log_lines[0].begin(), api.log_lines[0].end(), '\n'), 1);
  EXPECT_EQ(api.log_lines[0].find("secret"), std::string::npos);
  EXPECT_EQ(api.log_lines[0].find("private"), std::string::npos);
}

TEST(Api, RefusesWhenTheQueueIsFull) {
  TinyApi api(small_options(), {}, /*max_queue=*/0);
  const Admission::Ticket all = api.admission.admit(16);
  const HttpResponse response = api.post(kChat, dump_json(hello()));
  EXPECT_EQ(response.status, 429);
  EXPECT_NE(response.body.find("rate_limit_error"), std::string::npos);
  EXPECT_EQ(response.headers[0], (std::pair<std::string, std::string>("Retry-After", "1")));
}

TEST(Api, EndsRequestsThatTakeTooLong) {
  EngineOptions options = small_options();
  options.cache_tokens = 16 * 1024;
  ApiLimits limits;
  limits.max_seconds = 1;
  TinyApi api(options, limits);
  // Every piece holds the reader up: a hundred would take ten seconds.
  Json body = hello(100);
  body["ignore_eos"] = true;
  body["stream"] = true;
  api.on_piece = [] { std::this_thread::sleep_for(std::chrono::milliseconds(100)); };
  api.post(kChat, dump_json(body));
  ASSERT_GE(api.streamed.size(), 2u);
  EXPECT_LT(api.streamed.size(), 50u);
  EXPECT_NE(api.streamed[api.streamed.size() - 2].find("--request-timeout"), std::string::npos)
      << api.streamed[api.streamed.size() - 2];
  EXPECT_EQ(api.streamed.back(), "data: [DONE]\n\n");
}

TEST(Api, AClientThatLeavesFreesItsPlace) {
  EngineOptions options = small_options();
  options.cache_tokens = 16 * 1024;
  TinyApi api(options);
  Json body = hello(400);
  body["ignore_eos"] = true;
  body["stream"] = true;
  int pieces = 0;
  api.on_piece = [&] { api.client.gone = ++pieces == 3; };
  api.post(kChat, dump_json(body));
  EXPECT_TRUE(eventually([&] { return api.tiny.engine.stats().num_running == 0; }));
  EXPECT_LT(api.tiny.engine.stats().generated_tokens, 400);
  EXPECT_EQ(api.admission.num_open(), 0);
  EXPECT_TRUE(eventually([&] { return !api.tiny.engine.has_work(); }));
  EXPECT_TRUE(api.tiny.cache_is_empty());
}

// Every error of a request is an answer; the server goes on.
TEST(Api, MutatedBodiesNeverFailTheServer) {
  TinyApi api;
  const std::string seed = dump_json(
      {{"messages",
        {{{"role", "user"}, {"content", "hi"}}, {{"role", "assistant"}, {"content", "x"}}}},
       {"max_tokens", 2},
       {"temperature", 0.5},
       {"top_p", 0.9},
       {"top_k", 3},
       {"n", 1},
       {"stop", {"a", "b"}},
       {"logit_bias", {{"5", 1}}},
       {"logprobs", true},
       {"top_logprobs", 1},
       {"seed", 1},
       {"stream", false},
       {"response_format", {{"type", "text"}}}});
  Rng rng(1);
  for (int i = 0; i < 1500; ++i) {
    std::string body = seed;
    for (uint64_t edits = 1 + rng.below(3); edits > 0; --edits) {
      const std::size_t place = rng.below(body.size());
      switch (rng.below(4)) {
        case 0:
          body[place] = static_cast<char>(rng.below(256));
          break;
        case 1:
          body.erase(place, 1 + rng.below(10));
          break;
        case 2:
          body.insert(place, body.substr(rng.below(body.size()), rng.below(20)));
          break;
        default:
          body.insert(
              place,
              std::string_view("-1e9 null [] {} \"\" 99999999999 true,").substr(rng.below(30), 4));
      }
    }
    const HttpResponse response = api.post(kChat, body);
    EXPECT_TRUE(response.status == 200 || response.status == 400 || response.status == 404)
        << response.status << ' ' << body << response.body;
  }
  EXPECT_EQ(api.admission.num_open(), 0);
  EXPECT_EQ(api.answer(kChat, hello())["usage"]["completion_tokens"], 8);
}

}  // namespace
}  // namespace lathe
