// Prompts that only run through the model (engine/prompt_pass.h), waited for.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/prompt_pass.h"
#include "server/api_context.h"

namespace lathe {

// Results in the order of the prompts. The caller holds an Admission::Ticket. Throws ApiError: 499
// when the client leaves, 504 when time is over, and what a prompt fails with.
std::vector<PromptPassResult> run_prompts(const ApiContext& context, const ClientWatch& client,
                                          const std::vector<std::vector<int32_t>>& prompts,
                                          PromptPassJob::Wants wants, int64_t num_top);

}  // namespace lathe
