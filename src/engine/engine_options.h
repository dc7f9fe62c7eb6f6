// How an engine runs. Filled from flags, checked once.
#pragma once
#include <cstdint>

#include "cache/kv_cache.h"
#include "model/model.h"

namespace lathe {

struct EngineOptions {
  int64_t max_num_seqs = 64;       // sequences that run at the same time; others wait
  int64_t max_batch_tokens = 512;  // rows of one step
  // Rows of prompts in a step while some sequence is decoding: bounds how long a long prompt delays
  // the tokens of the others.
  int64_t max_mixed_prefill_tokens = 128;
  int64_t max_sequence_tokens = 0;  // prompt and output; 0: what the model and the cache allow
  int64_t cache_tokens = 0;         // 0: see resolve()
  KvFormat kv_format = KvFormat::kBF16;
  // Older tokens of running sequences as codes (--kv aquaN), the latest in kv_format; cache_tokens
  // then counts those. Null: every block is live. Must outlive the cache.
  const KvCodec* kv_codec = nullptr;
  const KvCodecFile* kv_codec_file = nullptr;  // the same; may be null on a CPU
  bool prefix_cache = true;  // share what a prompt has in common with earlier sequences
};

inline constexpr int64_t kDefaultCacheBytes = int64_t{1} << 30;

// What there is for the cache, where it will lie.
struct CacheMemory {
  int64_t free_bytes = 0;       // 0: not known
  double default_share = 0.25;  // of it, the most for a cache whose size nothing says
  // What a draft model's cache takes for each of cache_tokens, out of the same memory; 0: no such
  // model.
  int64_t draft_token_bytes = 0;
};

// Throws kInvalidArgument, naming the field, the value and the range.
void validate(const EngineOptions& options);

// The options with every 0 replaced by what it stands for. A cache whose size nothing says, with a
// draft model's, holds kDefaultCacheBytes, or one sequence of the model's whole context where that
// is more, but at most its share of free memory and no more than can be used; and one sequence of
// max_sequence_tokens at the least where that is given. Throws kOutOfMemory for a cache that was
// asked for and that memory does not hold.
EngineOptions resolve(const EngineOptions& options, const ModelConfig& config,
                      const CacheMemory& memory = {});

// What the cache of resolved options takes.
int64_t cache_bytes(const EngineOptions& options, const ModelConfig& config);

// The cache that resolved options ask for.
std::unique_ptr<KvCache> make_engine_cache(const Model& model, const EngineOptions& options);

}  // namespace lathe
