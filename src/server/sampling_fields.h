// The fields of a request that choose tokens, as OpenAI's API and vLLM's extras name them.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "engine/sampling_params.h"
#include "server/request_fields.h"
#include "server/served_model.h"

namespace lathe {

// temperature, top_p, top_k, min_p, seed, stop, stop_token_ids, ignore_eos, penalties, logit_bias;
// without `seed` a random one. max_tokens and logprobs are the callers': their names differ. Throws
// ApiError 400.
SamplingParams sampling_params(const RequestFields& fields, const ServedModel& model);

// Fields that other servers act upon and this one does not: refused when they ask for something,
// instead of answering as if they had not been there. Unknown fields are ignored, as vLLM does.
// Throws ApiError 400.
void refuse_unsupported(const RequestFields& fields);

// temperature, top_p, top_k, min_p and repetition_penalty of a model's generation_config.json; the
// API's defaults where it has none. Values that cannot be are an Error.
SamplingParams sampling_defaults(const std::optional<std::string>& generation_config,
                                 SamplingParams base = {});

}  // namespace lathe
