#include "engine/sampling_params.h"

#include <cmath>

#include "base/error.h"
#include "text/unicode.h"

namespace lathe {
namespace {

// Written so that NaN fails.
void check_range(const char* field, double value, double low, double high) {
  if (value >= low && value <= high) return;
  fail(ErrorCode::kInvalidArgument, field, " is ", value, "; it must be in [", low, ", ", high,
       "]");
}

void check_token(const char* field, int64_t token, int64_t vocab_size) {
  if (token >= 0 && token < vocab_size) return;
  fail(ErrorCode::kInvalidArgument, field, " names token ", token, "; the vocabulary has ",
       vocab_size, " tokens");
}

}  // namespace

void validate(const SamplingParams& params, int64_t vocab_size) {
  check_range("temperature", params.temperature, 0, 100);
  check_range("top_p", params.top_p, 0, 1);
  check_range("min_p", params.min_p, 0, 1);
  check_range("presence_penalty", params.presence_penalty, -2, 2);
  check_range("frequency_penalty", params.frequency_penalty, -2, 2);
  check_range("repetition_penalty", params.repetition_penalty, 0.01, 100);
  if (params.top_k < -1) {
    fail(ErrorCode::kInvalidArgument, "top_k is ", params.top_k,
         "; it must be at least 1, or 0 or -1 for all tokens");
  }
  if (params.max_tokens != -1 && params.max_tokens < 1) {
    fail(ErrorCode::kInvalidArgument, "max_tokens is ", params.max_tokens,
         "; it must be at least 1, or -1 to run until the context is full");
  }
  if (params.logprobs < -1 || params.logprobs > kMaxLogprobs) {
    fail(ErrorCode::kInvalidArgument, "logprobs is ", params.logprobs, "; it must be in [0, ",
         kMaxLogprobs, "], or -1 for none");
  }
  for (const LogitBias& entry : params.logit_bias) {
    check_token("logit_bias", entry.token, vocab_size);
    check_range("logit_bias", static_cast<double>(entry.bias), -100, 100);
  }
  for (const int32_t token : params.stop_token_ids)
    check_token("stop_token_ids", token, vocab_size);
  if (static_cast<int64_t>(params.stop.size()) > kMaxStopStrings) {
    fail(ErrorCode::kInvalidArgument, "stop has ", params.stop.size(), " strings; at most ",
         kMaxStopStrings);
  }
  for (const std::string& stop : params.stop) {
    if (stop.empty()) fail(ErrorCode::kInvalidArgument, "stop has an empty string");
    if (static_cast<int64_t>(stop.size()) > kMaxStopBytes) {
      fail(ErrorCode::kInvalidArgument, "stop has a string of ", stop.size(), " bytes; at most ",
           kMaxStopBytes);
    }
    if (!is_valid_utf8(stop)) {
      fail(ErrorCode::kInvalidArgument, "stop has a string that is not valid UTF-8");
    }
  }
}

}  // namespace lathe
