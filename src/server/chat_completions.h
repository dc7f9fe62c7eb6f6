// POST /v1/chat/completions, whole or streamed.
#pragma once
#include "server/api_context.h"

namespace lathe {

// Throws ApiError and Error.
HttpResponse chat_completions(const ApiContext& context, const HttpRequest& request,
                              const ClientWatch& client);

}  // namespace lathe
