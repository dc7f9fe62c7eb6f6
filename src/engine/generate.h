// One prompt to the end, for command lines and tests. Runs the engine's steps itself, so no other
// thread may; other requests in the engine go on meanwhile.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"

namespace lathe {

struct Generation {
  std::vector<int32_t> token_ids;
  std::string text;
  std::vector<float> logprobs;  // one per token, when asked for
  FinishReason finish_reason = FinishReason::kStop;
  Usage usage;
};

// on_text (optional) gets the text as it comes; false from it stops the generation. constraint:
// null for none. Throws the request's Error.
Generation generate(Engine& engine, std::vector<int32_t> prompt, const SamplingParams& params,
                    const std::function<bool(std::string_view)>& on_text = nullptr,
                    std::unique_ptr<TokenConstraint> constraint = nullptr);

}  // namespace lathe
