// The small routes: what is served, and its tokenizer.
#pragma once
#include "server/api_context.h"

namespace lathe {

// GET /v1/models
HttpResponse list_models(const ApiContext& context);
// GET /v1/models/ID. Throws ApiError 404.
HttpResponse show_model(const ApiContext& context, const std::string& id);
// POST /tokenize: {"prompt"} or {"messages"} to {"count", "max_model_len", "tokens", "token_strs"}
HttpResponse tokenize(const ApiContext& context, const HttpRequest& request);
// POST /detokenize: {"tokens"} to {"prompt"}
HttpResponse detokenize(const ApiContext& context, const HttpRequest& request);

}  // namespace lathe
