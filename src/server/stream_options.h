// How the choices of an answer reach its client: as events while they come, or at the end.
#pragma once
#include <cstdint>
#include <functional>

#include "server/choices.h"
#include "server/http.h"
#include "server/request_fields.h"

namespace lathe {

inline constexpr int64_t kMaxTokens = int64_t{1} << 31;  // of a request's max_tokens

struct StreamOptions {
  bool enabled = false;
  bool include_usage = false;     // a last event with it; "usage": null in the others
  bool continuous_usage = false;  // vLLM's continuous_usage_stats: in all events
};

// `stream` and `stream_options`. Throws ApiError 400.
StreamOptions stream_options(const RequestFields& fields);

// Hands all news to on_news, which returns false when the client is gone. True: all choices have
// ended well. Otherwise the client was told why by an event with an error, if it is still there.
bool stream_news(Choices& choices, const StreamWrite& write,
                 const std::function<bool(const ChoiceNews&)>& on_news);

// The same without a stream: throws ApiError when a choice fails, 504 when time is over. When the
// client is gone nobody reads the answer: status 499, as nginx logs it.
void collect_news(Choices& choices, const std::function<void(const ChoiceNews&)>& on_news);

}  // namespace lathe
