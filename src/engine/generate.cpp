#include "engine/generate.h"

#include <optional>

namespace lathe {

Generation generate(Engine& engine, std::vector<int32_t> prompt, const SamplingParams& params,
                    const std::function<bool(std::string_view)>& on_text) {
  Generation result;
  std::optional<Error> error;
  bool done = false;
  Request request;
  request.prompt = std::move(prompt);
  request.params = params;
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
    if (on_text && !output.text.empty() && !on_text(output.text) && !done) engine.abort(output.id);
  };
  engine.add_request(std::move(request));
  while (!done) engine.step();
  if (error) throw *error;
  return result;
}

}  // namespace lathe
