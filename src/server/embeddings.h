// POST /v1/embeddings. What a causal model's embedding of a text is: the hidden state behind its
// last norm at the last token (pooling "last": what vLLM takes for such models, and what
// decoder-only embedding models are trained for), or the mean over all tokens ("mean"); scaled to
// length 1.
#pragma once
#include "server/api_context.h"

namespace lathe {

// Throws ApiError and Error.
HttpResponse embeddings(const ApiContext& context, const HttpRequest& request,
                        const ClientWatch& client);

}  // namespace lathe
