#include "server/sampling_fields.h"

#include <charconv>
#include <limits>
#include <random>

#include "base/json.h"
#include "server/api_error.h"

namespace lathe {
namespace {

constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr int64_t kMinInt64 = std::numeric_limits<int64_t>::min();
constexpr std::size_t kMaxBiases = 1024;
constexpr std::size_t kMaxStopTokens = 1024;

std::vector<LogitBias> logit_bias(const Json& value, int64_t vocab_size) {
  if (!value.is_object()) {
    bad_field("logit_bias", "logit_bias must be an object of token ids to numbers, not ",
              kind_of(value));
  }
  if (value.size() > kMaxBiases) {
    bad_field("logit_bias", "logit_bias has ", value.size(), " entries; at most ", kMaxBiases);
  }
  std::vector<LogitBias> biases;
  for (const auto& [key, bias] : value.items()) {
    int32_t token = -1;
    const auto [end, code] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (code != std::errc{} || end != key.data() + key.size() || token < 0 || token >= vocab_size) {
      bad_field("logit_bias", "logit_bias has the key '", key.substr(0, 40),
                "'; keys are token ids below ", vocab_size);
    }
    const bool fits = bias.is_number() && bias.get<double>() >= -100 && bias.get<double>() <= 100;
    if (!fits) {
      bad_field("logit_bias", "logit_bias of token ", token,
                " must be a number in [-100, 100], not ", kind_of(bias));
    }
    biases.push_back({token, bias.get<float>()});
  }
  return biases;
}

uint64_t random_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

SamplingParams sampling_params(const RequestFields& fields, const ServedModel& model) {
  SamplingParams params = model.defaults;
  const auto set = [](auto& target, const auto& value) {
    if (value) target = *value;
  };
  set(params.temperature, fields.number("temperature", 0, 100));
  set(params.top_p, fields.number("top_p", 0, 1));
  set(params.top_k, fields.integer("top_k", -1, kMaxInt64));
  set(params.min_p, fields.number("min_p", 0, 1));
  set(params.presence_penalty, fields.number("presence_penalty", -2, 2));
  set(params.frequency_penalty, fields.number("frequency_penalty", -2, 2));
  set(params.repetition_penalty, fields.number("repetition_penalty", 0.01, 100));
  set(params.ignore_eos, fields.boolean("ignore_eos"));
  const std::optional<int64_t> seed = fields.integer("seed", kMinInt64, kMaxInt64);
  params.seed = seed ? static_cast<uint64_t>(*seed) : random_seed();
  params.stop = fields.strings("stop");
  if (static_cast<int64_t>(params.stop.size()) > kMaxStopStrings) {
    bad_field("stop", "stop has ", params.stop.size(), " strings; at most ", kMaxStopStrings);
  }
  for (const std::string& stop : params.stop) {
    if (stop.empty() || static_cast<int64_t>(stop.size()) > kMaxStopBytes) {
      bad_field("stop", "stop has a string of ", stop.size(), " bytes; it must be in [1, ",
                kMaxStopBytes, "]");
    }
  }
  if (const Json* tokens = fields.find("stop_token_ids")) {
    params.stop_token_ids = token_ids(*tokens, "stop_token_ids", model.vocab_size);
    if (params.stop_token_ids.size() > kMaxStopTokens) {
      bad_field("stop_token_ids", "stop_token_ids has ", params.stop_token_ids.size(),
                " tokens; at most ", kMaxStopTokens);
    }
  }
  if (const Json* biases = fields.find("logit_bias")) {
    params.logit_bias = logit_bias(*biases, model.vocab_size);
  }
  return params;
}

void refuse_unsupported(const RequestFields& fields) {
  // Name, and what asks for nothing.
  static const std::pair<const char*, Json> kUnsupported[] = {
      {"audio", nullptr},
      {"prediction", nullptr},
      {"web_search_options", nullptr},
      {"function_call", "none"},
      {"functions", Json::array()},
      {"suffix", ""},
      {"use_beam_search", false},
      {"min_tokens", 0},
      {"prompt_logprobs", nullptr},
      {"include_stop_str_in_output", false},
      {"skip_special_tokens", true},
      {"allowed_token_ids", nullptr},
      {"bad_words", Json::array()},
      {"truncate_prompt_tokens", nullptr},
      {"logits_processors", Json::array()},
      {"prompt_embeds", nullptr},
      {"guided_regex", nullptr},
      {"guided_choice", nullptr},
      {"guided_grammar", nullptr},
      {"structured_outputs", nullptr},
  };
  for (const auto& [name, harmless] : kUnsupported) {
    const Json* value = fields.find(name);
    if (value == nullptr || *value == harmless) continue;
    bad_field(name, name, " is not supported by this server; leave it out");
  }
  if (const Json* modalities = fields.find("modalities");
      modalities != nullptr && *modalities != Json::array({"text"})) {
    bad_field("modalities", "modalities: this server answers with text only");
  }
}

SamplingParams sampling_defaults(const std::optional<std::string>& generation_config,
                                 SamplingParams base) {
  SamplingParams params = std::move(base);
  if (!generation_config) return params;
  const Json json = parse_json(*generation_config, "generation_config.json");
  const RequestFields fields(json);
  const auto set = [](auto& target, const auto& value) {
    if (value) target = *value;
  };
  with_context("generation_config.json", [&] {
    set(params.temperature, fields.number("temperature", 0, 100));
    set(params.top_p, fields.number("top_p", 0, 1));
    set(params.top_k, fields.integer("top_k", -1, kMaxInt64));
    set(params.min_p, fields.number("min_p", 0, 1));
    set(params.repetition_penalty, fields.number("repetition_penalty", 0.01, 100));
  });
  return params;
}

}  // namespace lathe
