// POST /v1/completions: one or many prompts continued, whole or streamed; with `echo` the prompt
// and its log-probabilities too.
#pragma once
#include "server/api_context.h"

namespace lathe {

// Throws ApiError and Error.
HttpResponse completions(const ApiContext& context, const HttpRequest& request,
                         const ClientWatch& client);

}  // namespace lathe
