#include "engine/engine_options.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/attention/kv_codes.h"

namespace lathe {
namespace {

void check_at_least(const char* field, int64_t value, int64_t low) {
  if (value >= low) return;
  fail(ErrorCode::kInvalidArgument, field, " is ", value, "; it must be at least ", low);
}

CodedKvCacheOptions coded_options(const EngineOptions& options) {
  CodedKvCacheOptions coded = coded_cache_options(
      options.kv_codec->policy(), options.kv_format, options.max_num_seqs, options.max_batch_tokens,
      options.cache_tokens, options.max_sequence_tokens);
  coded.file = options.kv_codec_file;
  return coded;
}

}  // namespace

void validate(const EngineOptions& options) {
  check_at_least("max_num_seqs", options.max_num_seqs, 1);
  check_at_least("max_mixed_prefill_tokens", options.max_mixed_prefill_tokens, 1);
  check_at_least("max_sequence_tokens", options.max_sequence_tokens, 0);
  check_at_least("cache_tokens", options.cache_tokens, 0);
  if (options.max_batch_tokens < options.max_num_seqs) {
    fail(ErrorCode::kInvalidArgument, "max_batch_tokens is ", options.max_batch_tokens,
         "; it must be at least the number of sequences, ", options.max_num_seqs,
         ": each has a row in every step");
  }
}

EngineOptions resolve(const EngineOptions& options, const ModelConfig& config) {
  validate(options);
  EngineOptions resolved = options;
  if (resolved.max_sequence_tokens == 0 ||
      resolved.max_sequence_tokens > config.max_position_embeddings) {
    resolved.max_sequence_tokens = config.max_position_embeddings;
  }
  if (resolved.cache_tokens == 0) {
    int64_t bytes = kDefaultCacheBytes;
    int64_t token_bytes = kv_token_bytes(options.kv_format, config);
    if (options.kv_codec != nullptr) {
      // Live blocks keep their keys before RoPE too: half as much again.
      const CodedKvCacheOptions coded = coded_options(resolved);
      bytes -= coded.live_tokens * token_bytes * 3 / 2;
      token_bytes = std::max<int64_t>(1, options.kv_codec->bytes_per_block() / kBlockSize);
    }
    int64_t affordable = std::max(bytes / token_bytes, kBlockSize);
    if (options.kv_codec == nullptr && kv_keeps_sinks(kv_element(options.kv_format))) {
      // What make_engine_cache() adds.
      const int64_t sinks =
          cache_blocks(affordable, resolved.max_sequence_tokens, true) - blocks_for(affordable);
      affordable = std::max(affordable - sinks * kBlockSize, kBlockSize);
    }
    const int64_t useful = resolved.max_num_seqs > affordable / resolved.max_sequence_tokens
                               ? affordable
                               : resolved.max_num_seqs * resolved.max_sequence_tokens;
    resolved.cache_tokens = std::max(useful, kBlockSize);
  }
  resolved.max_sequence_tokens = std::min(resolved.max_sequence_tokens, resolved.cache_tokens);
  return resolved;
}

std::unique_ptr<KvCache> make_engine_cache(const Model& model, const EngineOptions& options) {
  if (options.kv_codec != nullptr) {
    return model.make_coded_cache(*options.kv_codec, coded_options(options));
  }
  return model.make_cache(options.kv_format, options.cache_tokens, options.max_sequence_tokens);
}

}  // namespace lathe
