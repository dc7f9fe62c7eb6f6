#include "engine/engine_options.h"

#include <algorithm>

#include "base/error.h"

namespace lathe {
namespace {

void check_at_least(const char* field, int64_t value, int64_t low) {
  if (value >= low) return;
  fail(ErrorCode::kInvalidArgument, field, " is ", value, "; it must be at least ", low);
}

}  // namespace

void validate(const EngineOptions& options) {
  check_at_least("max_num_seqs", options.max_num_seqs, 1);
  check_at_least("max_mixed_prefill_tokens", options.max_mixed_prefill_tokens, 1);
  check_at_least("max_sequence_tokens", options.max_sequence_tokens, 0);
  check_at_least("cache_tokens", options.cache_tokens, 0);
  // Every running sequence has a row in every step.
  check_at_least("max_batch_tokens", options.max_batch_tokens, options.max_num_seqs);
}

EngineOptions resolve(const EngineOptions& options, const ModelConfig& config) {
  validate(options);
  EngineOptions resolved = options;
  if (resolved.max_sequence_tokens == 0 ||
      resolved.max_sequence_tokens > config.max_position_embeddings) {
    resolved.max_sequence_tokens = config.max_position_embeddings;
  }
  if (resolved.cache_tokens == 0) {
    const int64_t token_bytes = kv_token_bytes(options.kv_format, config);
    const int64_t affordable = std::max(kDefaultCacheBytes / token_bytes, kBlockSize);
    const int64_t useful = resolved.max_num_seqs > affordable / resolved.max_sequence_tokens
                               ? affordable
                               : resolved.max_num_seqs * resolved.max_sequence_tokens;
    resolved.cache_tokens = std::max(useful, kBlockSize);
  }
  resolved.max_sequence_tokens = std::min(resolved.max_sequence_tokens, resolved.cache_tokens);
  return resolved;
}

std::unique_ptr<KvCache> make_engine_cache(const Model& model, const EngineOptions& options) {
  return model.make_cache(options.kv_format, options.cache_tokens, options.max_sequence_tokens);
}

}  // namespace lathe
