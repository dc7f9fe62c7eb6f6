#include "server/stream_options.h"

#include "base/json.h"
#include "server/api_context.h"
#include "server/api_error.h"

namespace lathe {
namespace {

// Why waiting ended without news; kNews and kDone are no reason.
ApiError reason_of(Choices::Wait wait) {
  switch (wait) {
    case Choices::Wait::kClientGone:
      return {499, "the client left"};
    case Choices::Wait::kTimeout:
      return {504, "the request took longer than this server allows (--request-timeout)", "",
              "timeout"};
    case Choices::Wait::kNews:
    case Choices::Wait::kDone:
    case Choices::Wait::kEngineLost:
      break;
  }
  return {500, "the engine failed; see the server's log"};
}

ApiError failure_of(const ChoiceNews& news) {
  if (news.finish_reason == FinishReason::kAbort) return {499, "the request was aborted"};
  return to_api_error(Error(news.error_code, news.error));
}

bool failed(const ChoiceNews& news) {
  return news.finish_reason == FinishReason::kError || news.finish_reason == FinishReason::kAbort;
}

}  // namespace

StreamOptions stream_options(const RequestFields& fields) {
  StreamOptions result;
  result.enabled = fields.boolean("stream").value_or(false);
  const Json* options = fields.find("stream_options");
  if (options == nullptr) return result;
  const RequestFields inner(*options, "stream_options.");
  if (!result.enabled) bad_field("stream_options", "stream_options needs stream: true");
  result.include_usage = inner.boolean("include_usage").value_or(false);
  result.continuous_usage =
      result.include_usage && inner.boolean("continuous_usage_stats").value_or(false);
  return result;
}

bool stream_news(Choices& choices, const StreamWrite& write,
                 const std::function<bool(const ChoiceNews&)>& on_news) {
  const auto tell = [&](const ApiError& error) {
    write("data: " + error_body(error) + "\n\n");
    write("data: [DONE]\n\n");
    return false;
  };
  ChoiceNews news;
  for (;;) {
    const Choices::Wait wait = choices.next(news);
    if (wait == Choices::Wait::kDone) return true;
    if (wait == Choices::Wait::kClientGone) return false;
    if (wait != Choices::Wait::kNews) return tell(reason_of(wait));
    if (failed(news)) return tell(failure_of(news));
    if (!on_news(news)) return false;
  }
}

void collect_news(Choices& choices, const std::function<void(const ChoiceNews&)>& on_news) {
  ChoiceNews news;
  for (;;) {
    const Choices::Wait wait = choices.next(news);
    if (wait == Choices::Wait::kDone) return;
    if (wait != Choices::Wait::kNews) throw reason_of(wait);
    if (failed(news)) throw failure_of(news);
    on_news(news);
  }
}

}  // namespace lathe
