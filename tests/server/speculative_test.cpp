// `speculative` over HTTP: what it may change, what it must not, and what it says of itself.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/speculation_cases.h"
#include "server/served_tiny.h"
#include "server/speculative_fields.h"

namespace lathe {
namespace {

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kCompletions = "/v1/completions";

// Lets everything pass, and remembers at which threshold it was asked.
class YesJudge final : public Judge {
 public:
  explicit YesJudge(std::atomic<double>* threshold) : threshold_(threshold) {}
  std::string name() const override { return "yes"; }
  bool accepts(const JudgedToken&, double threshold) const override {
    if (threshold_ != nullptr) *threshold_ = threshold;
    return true;
  }
  double probability(const JudgedToken&) const override { return 0.25; }

 private:
  std::atomic<double>* threshold_;
};

// Random drafts, four a step, and a judge that takes them all.
TinySpeculation judged(double server_threshold = 0, std::atomic<double>* asked = nullptr) {
  return [=](TinyEngine& tiny) {
    tiny.engine.set_drafter(random_drafter(3), {.num_tokens = 4});
    tiny.engine.set_judge(std::make_unique<YesJudge>(asked), server_threshold);
    ServedSpeculation served;
    served.method = "ngram";
    served.judge = "yes";
    served.judge_threshold = server_threshold;
    served.named_threshold = 0.4;
    served.calibration = {{.threshold = 0.1, .recall = static_cast<double>(0.9f)},
                          {.threshold = 0.2, .recall = static_cast<double>(0.8f)}};
    return served;
  };
}

TinySpeculation own_drafts(int64_t num_tokens = 4) {
  return [=](TinyEngine& tiny) {
    tiny.engine.set_drafter(own_drafter(tiny), {.num_tokens = num_tokens});
    ServedSpeculation served;
    served.method = "model";
    return served;
  };
}

struct SpeculativeApi : TinyApi {
  explicit SpeculativeApi(const TinySpeculation& speculate, double shadow_share = 0)
      : TinyApi(small_options(), {}, 8, {}, speculate, shadow_share) {}
};

Json hello(int64_t max_tokens = 30) {
  return {{"messages", {{{"role", "user"}, {"content", "hello"}}}},
          {"max_tokens", max_tokens},
          {"temperature", 0},
          {"ignore_eos", true}};
}
Json with(Json body, const std::string& key, const Json& value) {
  body[key] = value;
  return body;
}
Json speculative(const Json& fields) { return with(hello(), "speculative", fields); }

std::string text_of(const Json& answer) {
  return answer["choices"][0]["message"]["content"].get<std::string>();
}
int64_t number(const Json& usage, const char* name) {
  return usage["speculative"][name].get<int64_t>();
}
// Tokens of steps with drafts.
int64_t emitted(const Json& usage) {
  return number(usage, "accepted_match") + number(usage, "accepted_judge") +
         number(usage, "corrected") + number(usage, "bonus");
}

TEST(Speculative, ExactDraftsChangeNoText) {
  TinyApi plain;
  for (const TinySpeculation& speculate : {own_drafts(), judged()}) {
    SpeculativeApi api(speculate);
    for (const Json& fields :
         {Json(nullptr), Json::object(), Json{{"num_tokens", 1}}, Json{{"num_tokens", 64}},
          Json{{"num_tokens", "auto"}}, Json{{"auto", true}}, Json{{"method", "none"}}}) {
      Json body = with(with(speculative(fields), "n", 2), "stop", {"zz"});
      const Json answer = api.answer(kChat, body);
      EXPECT_EQ(answer["choices"], plain.answer(kChat, with(hello(), "n", 2))["choices"]) << fields;
      EXPECT_EQ(answer["usage"]["speculative"]["lossy"], false);
      const bool wants_none = fields.is_object() && fields.contains("method");
      EXPECT_EQ(number(answer["usage"], "cycles") == 0, wants_none);
      body = {{"prompt", "hello"},
              {"temperature", 0},
              {"logprobs", 2},
              {"echo", true},
              {"speculative", fields}};
      const Json expected = plain.answer(kCompletions, with(body, "speculative", nullptr));
      EXPECT_EQ(api.answer(kCompletions, body)["choices"], expected["choices"]) << fields;
    }
  }
}

TEST(Speculative, ThresholdZeroIsExact) {
  TinyApi plain;
  const std::string exact = text_of(plain.answer(kChat, hello()));
  // A server whose default is lossy, and one whose default is exact.
  for (const double server_threshold : {0.5, 0.0}) {
    SpeculativeApi api(judged(server_threshold));
    for (const Json& fields : {Json{{"judge_threshold", 0}}, Json{{"judge", nullptr}},
                               Json{{"judge", "yes"}, {"judge_threshold", 0}},
                               Json{{"max_judge_accepts", 0}}, Json{{"max_logprob_deficit", 0}},
                               Json{{"num_tokens", 0}}, Json{{"deterministic", true}}}) {
      const Json answer = api.answer(kChat, speculative(fields));
      EXPECT_EQ(text_of(answer), exact) << fields;
      EXPECT_EQ(number(answer["usage"], "accepted_judge"), 0) << fields;
      EXPECT_EQ(answer["usage"]["speculative"]["lossy"], false) << fields;
    }
    const Json silent = api.answer(kChat, hello());
    EXPECT_EQ(text_of(silent) == exact, server_threshold == 0);
    EXPECT_EQ(silent["usage"]["speculative"]["lossy"], server_threshold > 0);
  }
}

TEST(Speculative, BudgetsAreRespected) {
  SpeculativeApi api(judged());
  TinyApi plain;
  const Json named = {{"judge", "yes"}};
  const Json all = api.answer(kChat, speculative(named));
  EXPECT_GT(number(all["usage"], "accepted_judge"), 10);
  EXPECT_EQ(all["usage"]["speculative"]["lossy"], true);
  EXPECT_GT(all["usage"]["speculative"]["logprob_deficit"].get<double>(), 0);
  EXPECT_NE(text_of(all), text_of(plain.answer(kChat, hello())));
  for (const int64_t most : {1, 3, 6}) {  // within a window, and beyond one
    const Json answer = api.answer(kChat, speculative(with(named, "max_judge_accepts", most)));
    EXPECT_EQ(number(answer["usage"], "accepted_judge"), most);
    // What the budget let pass is as in the answer without one; random drafts differ in each.
    EXPECT_EQ(answer["usage"]["completion_tokens"], 30);
  }
  const Json answer = api.answer(kChat, speculative(with(named, "max_logprob_deficit", 1e-6)));
  EXPECT_EQ(number(answer["usage"], "accepted_judge"), 1);  // the one that used it up
}

TEST(Speculative, UsageAddsUp) {
  for (const TinySpeculation& speculate : {own_drafts(), judged(0.5)}) {
    SpeculativeApi api(speculate);
    for (const int64_t max_tokens : {1, 2, 3, 6, 11, 12, 30}) {
      const Json usage = api.answer(kChat, hello(max_tokens))["usage"];
      // The prompt's step gives one token without drafts, and so does a step for the last token.
      const int64_t plain = usage["completion_tokens"].get<int64_t>() - emitted(usage);
      EXPECT_TRUE(plain == 1 || (plain == 2 && max_tokens > 1)) << plain;
      EXPECT_LE(number(usage, "accepted_match") + number(usage, "accepted_judge"),
                number(usage, "drafted"));
      EXPECT_EQ(number(usage, "cycles"), number(usage, "corrected") + number(usage, "bonus"));
    }
  }
  // A stop string in the middle of a window: what is behind it is not counted.
  SpeculativeApi api(own_drafts(16));
  TinyApi plain;
  const std::string text = text_of(plain.answer(kChat, hello()));
  for (std::size_t length = 2; length < 12; ++length) {
    const Json body = with(hello(), "stop", text.substr(length - 2, 2));
    const Json usage = api.answer(kChat, body)["usage"];
    EXPECT_EQ(usage["completion_tokens"], plain.answer(kChat, body)["usage"]["completion_tokens"]);
    EXPECT_EQ(usage["completion_tokens"], 1 + emitted(usage)) << usage;
  }
  // Several choices, whole and streamed.
  SpeculativeApi many(judged(0.5));
  Json body = with(with(hello(), "n", 3), "stream", true);
  body["stream_options"] = {{"include_usage", true}, {"continuous_usage_stats", true}};
  const std::vector<Json> events = many.events(kChat, body);
  int64_t last = 0;
  for (const Json& event : events) {
    EXPECT_LE(emitted(event["usage"]), event["usage"]["completion_tokens"].get<int64_t>());
    EXPECT_GE(number(event["usage"], "drafted"), last);
    last = number(event["usage"], "drafted");
  }
  const Json& usage = events.back()["usage"];
  EXPECT_EQ(usage["completion_tokens"], 90);
  EXPECT_GE(emitted(usage), 90 - 6);
  EXPECT_EQ(usage["speculative"]["lossy"], true);
}

TEST(Speculative, DeterministicAnswersDoNotDependOnDrafts) {
  TinyApi plain;
  SpeculativeApi api(own_drafts());
  DraftModel other;
  SpeculativeApi others([&](TinyEngine& tiny) {
    tiny.engine.set_drafter(other.drafter(tiny), {.num_tokens = 4});
    ServedSpeculation served;
    served.method = "model";
    return served;
  });
  for (int seed = 0; seed < 4; ++seed) {
    Json body = with(with(hello(), "temperature", 1.5), "seed", seed);
    body["speculative"] = {{"deterministic", true}};
    const std::string expected = text_of(plain.answer(kChat, body));
    EXPECT_EQ(text_of(api.answer(kChat, body)), expected);
    EXPECT_EQ(text_of(others.answer(kChat, body)), expected);
    body["speculative"]["num_tokens"] = 7;
    EXPECT_EQ(text_of(others.answer(kChat, body)), expected);
  }
}

TEST(Speculative, ThresholdsReachTheJudge) {
  std::atomic<double> asked = -1;
  SpeculativeApi api(judged(0, &asked));
  const double inf = std::numeric_limits<double>::infinity();
  const std::pair<Json, double> cases[] = {
      {{{"judge", "yes"}}, 0.4},  // its own
      {{{"judge_threshold", 0.7}}, 0.7}, {{{"judge", "yes"}, {"judge_threshold", "inf"}}, inf},
      {{{"judge_recall", 0.9}}, 0.1},    {{{"judge_recall", 0.85}}, 0.1},
      {{{"judge_recall", 0.8}}, 0.2},    {{{"judge_recall", 0.1}}, 0.2},
      {{{"judge_recall", 0.95}}, -1},  // no threshold stops so many: exact
      {{{"judge_recall", 1}}, -1},       {Json::object(), -1},
  };
  for (const auto& [fields, threshold] : cases) {
    asked = -1;
    api.answer(kChat, speculative(fields));
    EXPECT_EQ(asked, threshold) << fields;
  }
}

TEST(Speculative, WrongFieldsAreRefused) {
  struct Case {
    Json fields;
    const char* param;
  };
  const auto check = [](TinyApi& api, const Case& c) {
    for (const char* path : {kChat, kCompletions}) {
      Json body = speculative(c.fields);
      if (path == kCompletions) body["prompt"] = "hello";
      const HttpResponse response = api.post(path, dump_json(body));
      EXPECT_EQ(response.status, 400) << c.fields;
      const Json error = parse_json(response.body, "error")["error"];
      EXPECT_EQ(error["param"], c.param) << c.fields << response.body;
    }
  };
  SpeculativeApi api(judged(0.5));
  const Case wrong[] = {
      {"yes", "speculative"},
      {Json::array(), "speculative"},
      {{{"judge_treshold", 0}}, "speculative.judge_treshold"},
      {{{"method", 3}}, "speculative.method"},
      {{{"method", "eagle"}}, "speculative.method"},
      {{{"method", "model"}}, "speculative.method"},  // another is served
      {{{"method", "none"}, {"num_tokens", 2}}, "speculative.num_tokens"},
      {{{"num_tokens", -1}}, "speculative.num_tokens"},
      {{{"num_tokens", 65}}, "speculative.num_tokens"},
      {{{"num_tokens", 1.5}}, "speculative.num_tokens"},
      {{{"num_tokens", "many"}}, "speculative.num_tokens"},
      {{{"num_tokens", true}}, "speculative.num_tokens"},
      {{{"auto", 1}}, "speculative.auto"},
      {{{"auto", true}, {"num_tokens", 3}}, "speculative.auto"},
      {{{"judge", "other"}}, "speculative.judge"},
      {{{"judge", true}}, "speculative.judge"},
      {{{"judge", nullptr}, {"judge_threshold", 0.1}}, "speculative.judge"},
      {{{"judge", nullptr}, {"judge_recall", 0.9}}, "speculative.judge"},
      {{{"judge", "yes"}, {"num_tokens", 0}}, "speculative.judge"},
      {{{"judge_threshold", 0.2}, {"method", "none"}}, "speculative.judge"},
      {{{"judge_threshold", -0.1}}, "speculative.judge_threshold"},
      {{{"judge_threshold", "Infinity"}}, "speculative.judge_threshold"},
      {{{"judge_threshold", Json::array()}}, "speculative.judge_threshold"},
      {{{"judge_recall", 0}}, "speculative.judge_recall"},
      {{{"judge_recall", 1.01}}, "speculative.judge_recall"},
      {{{"judge_recall", "0.9"}}, "speculative.judge_recall"},
      {{{"judge_recall", 0.9}, {"judge_threshold", 0.1}}, "speculative.judge_recall"},
      {{{"max_judge_accepts", -1}}, "speculative.max_judge_accepts"},
      {{{"max_judge_accepts", 0.5}}, "speculative.max_judge_accepts"},
      {{{"max_logprob_deficit", -0.5}}, "speculative.max_logprob_deficit"},
      {{{"deterministic", "yes"}}, "speculative.deterministic"},
      {{{"deterministic", true}, {"judge", "yes"}}, "speculative.deterministic"},
  };
  for (const Case& c : wrong) check(api, c);
  // What this server does not have.
  TinyApi plain;
  const Case missing[] = {
      {{{"method", "model"}}, "speculative.method"},
      {{{"num_tokens", 1}}, "speculative.num_tokens"},
      {{{"judge", "yes"}}, "speculative.judge"},
      {{{"judge_threshold", 0.1}}, "speculative.judge_threshold"},
      {{{"judge_recall", 0.9}}, "speculative.judge_recall"},
  };
  for (const Case& c : missing) check(plain, c);
  SpeculativeApi draft_only(own_drafts());
  for (const Case& c : {missing[2], missing[3], missing[4]}) check(draft_only, c);
  SpeculativeApi bare([](TinyEngine& tiny) {
    ServedSpeculation served = judged()(tiny);
    served.named_threshold = 0;
    served.calibration.clear();
    served.is_deterministic = false;
    return served;
  });
  check(bare, {{{"judge", "yes"}}, "speculative.judge_threshold"});
  check(bare, {{{"judge_recall", 0.9}}, "speculative.judge_recall"});
  check(bare, {{{"deterministic", true}}, "speculative.deterministic"});
  // Nothing that asks for something: allowed everywhere.
  for (const Json& fields :
       {Json{{"num_tokens", 0}}, Json{{"num_tokens", "auto"}}, Json{{"method", "none"}},
        Json{{"judge_threshold", 0}}, Json{{"judge", nullptr}}, Json{{"max_judge_accepts", 3}}}) {
    const Json answer = plain.answer(kChat, speculative(fields));
    EXPECT_FALSE(answer["usage"].contains("speculative"));
  }
}

// Whoever leaves the threshold to the server gets the lowered one, with the judge's name or
// without.
TEST(Speculative, AnAlarmIsForRequestsThatNameTheJudgeToo) {
  ServedSpeculation served;
  served.method = "ngram";
  served.judge = "yes";
  served.judge_threshold = served.named_threshold = 0.5;
  const auto threshold = [&](const Json& fields, double current) {
    const Json body = {{"speculative", fields}};
    SamplingParams sampling;
    return speculative_params(RequestFields(body), served, current, sampling).judge_threshold;
  };
  for (const double current : {0.5, 0.1, 0.0}) {
    EXPECT_EQ(threshold(Json::object(), current), current);
    EXPECT_EQ(threshold({{"judge", "yes"}}, current), current);
    // A client's own is the client's business.
    EXPECT_EQ(threshold({{"judge", "yes"}, {"judge_threshold", 0.7}}, current), 0.7);
  }
  // A server that is exact unless asked has its judge's own threshold for those who name it.
  served.judge_threshold = 0;
  EXPECT_EQ(threshold({{"judge", "yes"}}, 0), 0.5);
}

double metric(TinyApi& api, const std::string& start) {
  const std::string text = api.get("/metrics").body;
  const std::size_t begin = text.find("\n" + start);
  if (begin == std::string::npos) return std::nan("");
  const std::size_t end = text.find('\n', begin + 1);
  const std::string line = text.substr(begin + 1, end - begin - 1);
  return std::stod(line.substr(line.rfind(' ')));
}

TEST(Speculative, MetricsAgreeWithUsage) {
  SpeculativeApi api(judged());
  const Json usage =
      api.answer(kChat, speculative({{"judge", "yes"}, {"max_judge_accepts", 5}}))["usage"];
  ASSERT_TRUE(eventually([&] { return metric(api, "vllm:num_requests_running") == 0; }));
  const std::string vllm = "{engine=\"0\",model_name=\"tiny\"";
  const std::string ours = vllm + ",draft=\"ngram\",judge=\"yes\"";
  const auto count = [&](const char* name) { return static_cast<double>(number(usage, name)); };
  EXPECT_EQ(metric(api, "vllm:spec_decode_num_drafts_total" + vllm), count("cycles"));
  EXPECT_EQ(metric(api, "vllm:spec_decode_num_draft_tokens_total" + vllm), count("drafted"));
  const double accepted = count("accepted_match") + 5;
  EXPECT_EQ(metric(api, "vllm:spec_decode_num_accepted_tokens_total" + vllm), accepted);
  double by_position = 0;
  for (int i = 0; i < 4; ++i) {
    const double here = metric(api, "vllm:spec_decode_num_accepted_tokens_per_pos_total" + vllm +
                                        ",position=\"" + std::to_string(i) + "\"}");
    EXPECT_EQ(here, metric(api, "lathe_spec_accepted_by_position_total" + ours + ",pos=\"" +
                                    std::to_string(i) + "\"}"));
    if (!std::isnan(here)) by_position += here;
  }
  EXPECT_EQ(by_position, accepted);
  EXPECT_EQ(metric(api, "lathe_spec_accepted_tokens_total" + ours + ",by=\"judge\"}"), 5);
  EXPECT_EQ(metric(api, "lathe_spec_emitted_tokens_total" + ours + ",kind=\"corrected\"}"),
            count("corrected"));
  EXPECT_EQ(metric(api, "lathe_spec_emitted_tokens_total" + ours + ",kind=\"bonus\"}"),
            count("bonus"));
  EXPECT_EQ(metric(api, "lathe_spec_k_count" + ours), count("cycles"));
  EXPECT_EQ(metric(api, "lathe_spec_k_sum" + ours), count("drafted"));
  EXPECT_GT(metric(api, "lathe_spec_verify_seconds_total" + ours), 0);
  EXPECT_EQ(metric(api, "lathe_judge_accept_total" + ours), 5);
  EXPECT_EQ(metric(api, "lathe_judge_evaluations_total" + ours), 5);
  EXPECT_EQ(metric(api, "lathe_judge_score_sum" + ours), 5 * 0.25);
  EXPECT_EQ(metric(api, "lathe_judge_score_bucket" + ours + ",le=\"0.2\"}"), 0);
  EXPECT_EQ(metric(api, "lathe_judge_score_bucket" + ours + ",le=\"0.3\"}"), 5);
  EXPECT_EQ(metric(api, "lathe_judge_threshold_effective" + ours), 0);
  // Only what is there is told.
  TinyApi plain;
  EXPECT_TRUE(std::isnan(metric(plain, "vllm:spec_decode_num_drafts_total")));
  EXPECT_TRUE(std::isnan(metric(plain, "lathe_parked_bytes")));
  EXPECT_TRUE(std::isnan(metric(api, "lathe_shadow_requests_total")));
}

}  // namespace
}  // namespace lathe
