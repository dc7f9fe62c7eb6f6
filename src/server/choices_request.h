// What chats and completions ask for alike.
#pragma once
#include "server/api_context.h"
#include "server/choices.h"

namespace lathe {

// Model, sampling and speculation of a request; prompts, n, max_tokens, logprobs and the answer's
// form are the callers'. Throws ApiError 400 and 404.
ChoicesRequest choices_request(const ApiContext& context, const RequestFields& fields);

}  // namespace lathe
