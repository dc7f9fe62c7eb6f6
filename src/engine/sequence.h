// One request while it runs.
#pragma once
#include <cstdint>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/output_text.h"
#include "engine/request.h"

namespace lathe {

struct Sequence {
  RequestId id = 0;
  Request request;
  std::vector<int32_t> tokens;  // prompt, then output; reserved to its largest size
  int64_t prompt_size = 0;
  int64_t max_new_tokens = 0;
  int64_t num_shared = 0;  // tokens of the prompt that were not computed
  KvSequence kv;           // kv.num_tokens of `tokens` are in the cache
  TokenCounts counts;
  OutputText text;
  std::vector<TokenLogprob> top;  // [logprobs]: of the newest token

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_output() const { return size() - prompt_size; }
  // Tokens that forward() has not seen: one while decoding; the prompt, or after preemption all
  // that there is, while prefilling.
  int64_t num_pending() const { return size() - kv.num_tokens; }
  bool is_decoding() const { return num_pending() == 1 && num_output() > 0; }
  Usage usage() const { return {prompt_size, num_output(), num_shared}; }
};

}  // namespace lathe
