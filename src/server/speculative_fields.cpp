#include "server/speculative_fields.h"

#include <algorithm>
#include <limits>

#include "base/json.h"
#include "engine/draft_window.h"
#include "server/api_error.h"

namespace lathe {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMaxDouble = std::numeric_limits<double>::max();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

constexpr const char* kKnown[] = {"method",
                                  "num_tokens",
                                  "auto",
                                  "judge",
                                  "judge_threshold",
                                  "judge_recall",
                                  "max_judge_accepts",
                                  "max_logprob_deficit",
                                  "deterministic"};

// A misspelled field would make a request silently exact, or silently lossy.
void refuse_unknown(const RequestFields& fields) {
  for (const auto& [name, value] : fields.json().items()) {
    if (std::find(std::begin(kKnown), std::end(kKnown), name) != std::end(kKnown)) continue;
    const std::string path = fields.path(name.substr(0, 60));
    bad_field(path, path, " is not known; /openapi.json has the fields of 'speculative'");
  }
}

std::string draft_of(const ServedSpeculation& served) {
  return served.method.empty() ? "this server has no draft (--draft)"
                               : "this server drafts with '" + served.method + "'";
}

// -1: the server's choice.
int64_t num_tokens(const RequestFields& fields, const ServedSpeculation& served) {
  const bool is_auto = fields.boolean("auto").value_or(false);
  const Json* value = fields.find("num_tokens");
  int64_t wanted = -1;
  if (value != nullptr && !(value->is_string() && *value == "auto")) {
    if (value->is_string()) {
      bad_field("speculative.num_tokens",
                "speculative.num_tokens must be a whole number or \"auto\", not another string");
    }
    wanted = fields.integer("num_tokens", 0, kMaxDraftTokens).value_or(-1);
  }
  if (is_auto && wanted >= 0) {
    bad_field("speculative.auto", "speculative.auto contradicts speculative.num_tokens ", wanted);
  }
  if (wanted > 0 && served.method.empty()) {
    bad_field("speculative.num_tokens", "speculative.num_tokens is ", wanted, ", but ",
              draft_of(served));
  }
  const std::optional<std::string> method = fields.string("method");
  if (!method) return wanted;
  if (*method == "none") {
    if (wanted > 0) {
      bad_field("speculative.num_tokens", "speculative.num_tokens is ", wanted,
                ", which contradicts the method 'none'");
    }
    return 0;
  }
  if (served.method.empty() || *method != served.method) {
    bad_field("speculative.method", "speculative.method is '", method->substr(0, 60), "', but ",
              draft_of(served), "; take that, 'none', or leave it out");
  }
  return wanted;
}

// The largest threshold of the table that stops this share of important tokens; 0 stops all. The
// table is one of floats: 0.9 in it is a little less.
double threshold_of_recall(double recall, const ServedSpeculation& served) {
  double best = 0;
  for (const ServedSpeculation::RecallRow& row : served.calibration) {
    if (static_cast<float>(row.recall) >= static_cast<float>(recall))
      best = std::max(best, row.threshold);
  }
  return best;
}

std::optional<double> wanted_threshold(const RequestFields& fields) {
  const Json* value = fields.find("judge_threshold");
  if (value == nullptr) return std::nullopt;
  if (value->is_string() && *value == "inf") return kInfinity;
  if (value->is_string()) {
    bad_field("speculative.judge_threshold",
              "speculative.judge_threshold must be a number or \"inf\", not another string");
  }
  return fields.number("judge_threshold", 0, kMaxDouble);
}

// The threshold that the request asks for; nothing when it leaves that to the server, whose own is
// `current` by now.
std::optional<double> judge_threshold(const RequestFields& fields, const ServedSpeculation& served,
                                      double current) {
  const std::optional<std::string> judge = fields.string("judge");
  if (judge && *judge != served.judge) {
    bad_field("speculative.judge", "the judge '", judge->substr(0, 60), "' is not served here; ",
              served.judge.empty() ? "there is none (--judge)" : "'" + served.judge + "' is");
  }
  const std::optional<double> threshold = wanted_threshold(fields);
  const std::optional<double> recall = fields.number("judge_recall", 0, 1);
  if (recall && *recall == 0) {
    bad_field("speculative.judge_recall", "speculative.judge_recall is 0; it must be above");
  }
  if (threshold && recall) {
    bad_field("speculative.judge_recall",
              "speculative.judge_recall and judge_threshold say the same; give one");
  }
  // "judge": null asks for none.
  if (!judge && fields.json().contains("judge")) {
    if (threshold.value_or(0) > 0 || recall) {
      bad_field("speculative.judge", "speculative.judge is null, which contradicts ",
                recall ? "judge_recall" : "judge_threshold");
    }
    return 0;
  }
  if (threshold.value_or(0) > 0 && served.judge.empty()) {
    bad_field("speculative.judge_threshold",
              "speculative.judge_threshold is above 0, but there is no judge here (--judge)");
  }
  if (recall && served.calibration.empty()) {
    bad_field("speculative.judge_recall", "speculative.judge_recall needs a judge with a ",
              "calibration table; ",
              served.judge.empty() ? "there is no judge here (--judge)"
                                   : "'" + served.judge + "' has none: give judge_threshold");
  }
  if (threshold) return threshold;
  if (recall) return threshold_of_recall(*recall, served);
  if (!judge) return std::nullopt;
  // Lowered by an alarm (judge_shadow.h): for requests that name the judge no less.
  if (current < served.judge_threshold) return current;
  if (served.named_threshold > 0) return served.named_threshold;
  bad_field("speculative.judge_threshold", "the judge '", served.judge,
            "' has no threshold of its own; give speculative.judge_threshold");
}

}  // namespace

SpeculativeParams speculative_params(const RequestFields& fields, const ServedSpeculation& served,
                                     double threshold, SamplingParams& sampling) {
  SpeculativeParams params;
  params.judge_threshold = threshold;
  const Json* value = fields.find("speculative");
  if (value == nullptr) return params;
  const RequestFields inner(*value, "speculative.");
  refuse_unknown(inner);
  params.num_tokens = num_tokens(inner, served);
  const std::optional<double> wanted = judge_threshold(inner, served, threshold);
  const bool wants_judge = wanted.value_or(0) > 0;
  if (wanted) params.judge_threshold = *wanted;
  if (params.num_tokens == 0) {
    if (wants_judge) {
      bad_field("speculative.judge",
                "a judge decides about draft tokens, and the request wants none");
    }
    params.judge_threshold = 0;
  }
  params.max_judge_accepts = inner.integer("max_judge_accepts", 0, kMaxInt64).value_or(-1);
  params.max_logprob_deficit = inner.number("max_logprob_deficit", 0, kMaxDouble).value_or(-1);
  if (inner.boolean("deterministic").value_or(false)) {
    if (!served.is_deterministic) {
      bad_field("speculative.deterministic",
                "speculative.deterministic: on this device an answer may depend on its batch");
    }
    if (wants_judge) {
      bad_field("speculative.deterministic",
                "speculative.deterministic contradicts a judge: what it lets pass depends on the "
                "lengths of the windows");
    }
    params.judge_threshold = 0;
    sampling.coupled = true;
  }
  return params;
}

}  // namespace lathe
