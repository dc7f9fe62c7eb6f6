#include "engine/engine_options.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/attention/kv_codes.h"

namespace lathe {
namespace {

constexpr int64_t kMaxCacheTokens = int64_t{1} << 36;  // block ids have 32 bits

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

// With the draft's, which is live.
int64_t all_cache_bytes(const EngineOptions& options, const ModelConfig& config,
                        const CacheMemory& memory) {
  return cache_bytes(options, config) +
         cache_blocks(options.cache_tokens, options.max_sequence_tokens,
                      kv_keeps_sinks(kv_element(options.kv_format))) *
             kBlockSize * memory.draft_token_bytes;
}

// Of a cache whose size nothing says.
int64_t default_cache_bytes(const EngineOptions& options, const ModelConfig& config,
                            const CacheMemory& memory) {
  if (memory.free_bytes <= 0) return kDefaultCacheBytes;
  EngineOptions whole = options;
  whole.max_sequence_tokens = config.max_position_embeddings;
  whole.cache_tokens = config.max_position_embeddings;
  const double most = memory.default_share * static_cast<double>(memory.free_bytes);
  return std::min(std::max(kDefaultCacheBytes, all_cache_bytes(whole, config, memory)),
                  static_cast<int64_t>(most));
}

// How many tokens a cache of so many bytes holds.
int64_t tokens_within(int64_t bytes, const EngineOptions& options, const ModelConfig& config,
                      const CacheMemory& memory) {
  EngineOptions empty = options;
  empty.cache_tokens = kBlockSize;
  const int64_t fixed = options.kv_codec != nullptr ? cache_bytes(empty, config) : 0;
  const int64_t own_bytes =
      options.kv_codec != nullptr
          ? std::max<int64_t>(1, options.kv_codec->bytes_per_block() / kBlockSize)
          : kv_token_bytes(options.kv_format, config);
  const int64_t token_bytes = own_bytes + memory.draft_token_bytes;
  const int64_t tokens = std::max((bytes - fixed) / token_bytes, kBlockSize);
  if (options.kv_codec != nullptr || !kv_keeps_sinks(kv_element(options.kv_format))) return tokens;
  // What make_engine_cache() adds for the sinks.
  const int64_t sinks =
      cache_blocks(tokens, options.max_sequence_tokens, true) - blocks_for(tokens);
  return std::max(tokens - sinks * kBlockSize, kBlockSize);
}

}  // namespace

void validate(const EngineOptions& options) {
  check_at_least("max_num_seqs", options.max_num_seqs, 1);
  check_at_least("max_mixed_prefill_tokens", options.max_mixed_prefill_tokens, 1);
  check_at_least("max_sequence_tokens", options.max_sequence_tokens, 0);
  check_at_least("cache_tokens", options.cache_tokens, 0);
  if (options.cache_tokens > kMaxCacheTokens) {
    fail(ErrorCode::kInvalidArgument, "cache_tokens is ", options.cache_tokens,
         "; it must be at most ", kMaxCacheTokens);
  }
  if (options.max_batch_tokens < options.max_num_seqs) {
    fail(ErrorCode::kInvalidArgument, "max_batch_tokens is ", options.max_batch_tokens,
         "; it must be at least the number of sequences, ", options.max_num_seqs,
         ": each has a row in every step");
  }
}

int64_t cache_bytes(const EngineOptions& options, const ModelConfig& config) {
  const int64_t token_bytes = kv_token_bytes(options.kv_format, config);
  if (options.kv_codec != nullptr) {
    const CodedKvCacheOptions coded = coded_options(options);
    // Live blocks keep their keys before RoPE too: half as much again.
    return coded.live_tokens * token_bytes * 3 / 2 +
           blocks_for(coded.coded_tokens) * options.kv_codec->bytes_per_block();
  }
  return cache_blocks(options.cache_tokens, options.max_sequence_tokens,
                      kv_keeps_sinks(kv_element(options.kv_format))) *
         kBlockSize * token_bytes;
}

EngineOptions resolve(const EngineOptions& options, const ModelConfig& config,
                      const CacheMemory& memory) {
  validate(options);
  EngineOptions resolved = options;
  if (resolved.max_sequence_tokens == 0 ||
      resolved.max_sequence_tokens > config.max_position_embeddings) {
    resolved.max_sequence_tokens = config.max_position_embeddings;
  }
  if (resolved.cache_tokens == 0) {
    const int64_t affordable =
        tokens_within(default_cache_bytes(resolved, config, memory), resolved, config, memory);
    const int64_t useful = resolved.max_num_seqs > affordable / resolved.max_sequence_tokens
                               ? affordable
                               : resolved.max_num_seqs * resolved.max_sequence_tokens;
    const int64_t asked = options.max_sequence_tokens > 0 ? resolved.max_sequence_tokens : 0;
    resolved.cache_tokens = std::max({useful, asked, kBlockSize});
  }
  if (memory.free_bytes > 0 && (options.cache_tokens > 0 || options.max_sequence_tokens > 0)) {
    const int64_t bytes = all_cache_bytes(resolved, config, memory);
    if (bytes > memory.free_bytes) {
      fail(ErrorCode::kOutOfMemory, "a cache of ", resolved.cache_tokens, " tokens takes ",
           bytes >> 20, memory.draft_token_bytes > 0 ? " MiB with the draft model's" : " MiB",
           ", and ", memory.free_bytes >> 20,
           " MiB are free; take a smaller --context or --cache-tokens, or fewer bits with --kv");
    }
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
