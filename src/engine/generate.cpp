#include "engine/generate.h"

#include <exception>
#include <optional>
#include <utility>

#include "base/error.h"

namespace lathe {

Generation generate(Engine& engine, std::vector<int32_t> prompt, const SamplingParams& params,
                    const std::function<bool(std::string_view)>& on_text,
                    std::unique_ptr<TokenConstraint> constraint) {
  Generation result;
  std::optional<Error> error;
  std::exception_ptr text_error;  // what on_text threw: the request is aborted, then it goes on up
  bool done = false;
  Request request;
  request.prompt = std::move(prompt);
  request.params = params;
  request.constraint = std::move(constraint);
  request.on_output = [&](const RequestOutput& output) {
    result.token_ids.insert(result.token_ids.end(), output.token_ids.begin(),
                            output.token_ids.end());
    for (const SampledToken& token : output.logprobs) result.logprobs.push_back(token.logprob);
    result.text += output.text;
    result.usage = output.usage;
    if (output.error != nullptr) error = *output.error;
    if (output.finish_reason) {
      result.finish_reason = *output.finish_reason;
      done = true;
    }
    if (!on_text || output.text.empty() || text_error) return;
    bool go_on = false;
    try {
      go_on = on_text(output.text);
    } catch (...) {
      text_error = std::current_exception();
    }
    if (!go_on && !done) engine.abort(output.id);
  };
  engine.add_request(std::move(request));
  while (!done) {
    if (!engine.step() && !done)
      fail(ErrorCode::kInternal, "a request ended without a last output");
  }
  if (text_error) std::rethrow_exception(text_error);
  if (error) throw *error;
  return result;
}

}  // namespace lathe
