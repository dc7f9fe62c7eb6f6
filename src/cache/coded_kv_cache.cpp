#include "cache/coded_kv_cache.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "cache/plain_rows.h"
#include "kernels/rope/rope.h"

namespace lathe {
namespace {

bool is_coded(BlockId id) { return id < 0; }

// Blocks that are encoded or rebuilt together: 128 rows reuse each weight of a prediction often
// enough, and their rows (of 1024 numbers, in three slots: 1.5 MiB) still fit into a core's L2
// cache.
constexpr int64_t kMaxRunBlocks = 4;

// How many, so that every thread has some.
int64_t blocks_in_a_run(int64_t num_blocks, int num_threads) {
  return std::clamp<int64_t>((num_blocks + num_threads - 1) / num_threads, 1, kMaxRunBlocks);
}

int64_t round_up(int64_t floats) { return (floats + 15) / 16 * 16; }

// The shape of live blocks, once everything that the cache is made of has been checked.
LiveBlockShape checked_shape(const ModelConfig& config, const KvCodecPolicy& policy,
                             std::size_t num_rope, const CodedKvCacheOptions& options) {
  if (config.head_dim % 8 != 0) {
    fail(ErrorCode::kUnsupported, "head_dim ", config.head_dim, " is not a multiple of 8");
  }
  if (policy.num_sinks < 0 || policy.window < 0 || policy.chunk_tokens < kBlockSize ||
      policy.chunk_tokens % kBlockSize != 0) {
    fail(ErrorCode::kInvalidArgument, "cache codec: ", policy.num_sinks, " sinks, window ",
         policy.window, ", chunks of ", policy.chunk_tokens, " (a multiple of ", kBlockSize, ")");
  }
  constexpr int64_t kMaxTokens = int64_t{1} << 31;  // block ids are 32 bits
  if (options.live_tokens < 1 || options.live_tokens > kMaxTokens || options.coded_tokens < 1 ||
      options.coded_tokens > kMaxTokens || options.max_sequence_tokens < 1 ||
      static_cast<int64_t>(num_rope) != config.num_layers) {
    fail(ErrorCode::kInvalidArgument, "a cache of ", options.live_tokens, " live and ",
         options.coded_tokens, " coded tokens, sequences of up to ", options.max_sequence_tokens,
         ", rope for ", num_rope, " of ", config.num_layers, " layers");
  }
  // Codes are made of the live values: those must be better than any code.
  if (!kv_is_plain(kv_element(options.live_format))) {
    fail(ErrorCode::kUnsupported, "live blocks of ", kv_format_name(options.live_format),
         " beside a codec; use bf16 or f32");
  }
  return {.element = kv_element(options.live_format),
          .num_layers = config.num_layers,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim};
}

}  // namespace

CodedKvCacheOptions coded_cache_options(const KvCodecPolicy& policy, KvFormat live_format,
                                        int64_t num_sequences, int64_t max_rows, int64_t num_tokens,
                                        int64_t max_sequence_tokens) {
  // As blocks_needed() has it; the rows of a step are shared among the sequences.
  const int64_t each =
      (policy.num_sinks / kBlockSize + 3) * kBlockSize + policy.window + policy.chunk_tokens;
  const int64_t longest = blocks_for(max_sequence_tokens) * kBlockSize + kBlockSize;
  return {.live_format = live_format,
          .live_tokens = num_sequences * std::min(each, longest) + 2 * max_rows + kBlockSize,
          .coded_tokens = num_tokens,
          .max_sequence_tokens = max_sequence_tokens,
          .encode_while_running = true};
}

CodedKvCache::CodedKvCache(const ModelConfig& config, const KvCodec& codec,
                           std::vector<KvRope> rope, const CodedKvCacheOptions& options,
                           std::vector<Buffer> rope_memory)
    : codec_(codec),
      policy_(codec.policy()),
      rope_(std::move(rope)),
      rope_memory_(std::move(rope_memory)),
      options_(options),
      live_(checked_shape(config, policy_, rope_.size(), options), blocks_for(options.live_tokens)),
      raw_(blocks_for(options.live_tokens) * live_.shape().block_bytes() / 2),
      codes_(blocks_for(options.coded_tokens) * codec.bytes_per_block()),
      live_pool_(blocks_for(options.live_tokens)),
      coded_pool_(blocks_for(options.coded_tokens)),
      coded_twin_(static_cast<std::size_t>(live_pool_.num_blocks()), -1),
      live_twin_(static_cast<std::size_t>(coded_pool_.num_blocks()), -1),
      keeps_twin_(static_cast<std::size_t>(live_pool_.num_blocks()), false),
      slot_of_coded_(static_cast<std::size_t>(coded_pool_.num_blocks()), -1) {}

int64_t CodedKvCache::bytes_per_block() const { return live_.shape().block_bytes() * 3 / 2; }

int64_t CodedKvCache::end_of_codes(const KvSequence& sequence) const {
  const auto num_blocks = static_cast<int64_t>(sequence.blocks.size());
  const auto begin = sequence.blocks.begin() + std::min(first_codable_block(), num_blocks);
  return std::partition_point(begin, sequence.blocks.end(), is_coded) - sequence.blocks.begin();
}

int64_t CodedKvCache::num_coded_tokens(const KvSequence& sequence) const {
  const int64_t end = end_of_codes(sequence);
  return std::max<int64_t>(0, std::min(end * kBlockSize, sequence.num_tokens) - policy_.num_sinks);
}

int64_t CodedKvCache::sinks_in_block(int64_t block_idx) const {
  return std::clamp<int64_t>(policy_.num_sinks - block_idx * kBlockSize, 0, kBlockSize);
}

// --- references ---------------------------------------------------------------------------------

void CodedKvCache::add_reference(BlockId id) {
  is_coded(id) ? coded_pool_.add_reference(~id) : live_pool_.add_reference(id);
}

void CodedKvCache::release_block(BlockId id) {
  if (is_coded(id)) {
    if (!coded_pool_.release(~id)) return;
    const BlockId live = live_twin_[static_cast<std::size_t>(~id)];
    if (live >= 0) forget_twin(live);
  } else if (live_pool_.release(id)) {
    forget_twin(id);
  }
}

void CodedKvCache::forget_twin(BlockId live) {
  BlockId& twin = coded_twin_[static_cast<std::size_t>(live)];
  if (twin >= 0) {
    live_twin_[static_cast<std::size_t>(twin)] = -1;
    if (keeps_twin_[static_cast<std::size_t>(live)]) coded_pool_.release(twin);
  }
  keeps_twin_[static_cast<std::size_t>(live)] = false;
  twin = -1;
}

KvBlocks CodedKvCache::blocks_needed(const KvSequence& sequence, int64_t num_tokens,
                                     int64_t max_rows) const {
  const auto held_coded = std::count_if(sequence.blocks.begin(), sequence.blocks.end(), is_coded);
  const int64_t held_live = static_cast<int64_t>(sequence.blocks.size()) - held_coded +
                            (sequence.sink_block >= 0 ? 1 : 0);
  const int64_t copies = sequence.num_tokens % kBlockSize != 0 ? 1 : 0;
  const int64_t all = blocks_for(num_tokens);
  if (!options_.encode_while_running) {
    return {.live = std::max<int64_t>(0, all - held_live + copies), .coded = 0};
  }
  // Rows are reserved before the step encodes: what the step before left, at most a row less than
  // would have been encoded and its own rows, and the new rows. The block that keeps the sinks and
  // what no codes may replace come on top.
  const int64_t exact = policy_.window + policy_.chunk_tokens + 2 * max_rows;
  const int64_t live = first_codable_block() + 1 + blocks_for(exact) + 1;
  const int64_t codable = num_tokens - first_codable_block() * kBlockSize - policy_.window;
  const int64_t coded =
      std::max<int64_t>(0, codable) / policy_.chunk_tokens * policy_.chunk_tokens / kBlockSize;
  return {.live = std::max<int64_t>(0, std::min(live, all) - held_live + copies),
          .coded = std::max<int64_t>(0, coded - held_coded)};
}

// Of a live block just rebuilt from `coded`, whose reference it takes over from a sequence.
void CodedKvCache::keep_twin(BlockId live, BlockId coded) {
  const BlockId before = live_twin_[static_cast<std::size_t>(coded)];
  if (before >= 0) forget_twin(before);  // the block with the exact sinks, or one that is shared
  coded_twin_[static_cast<std::size_t>(live)] = coded;
  live_twin_[static_cast<std::size_t>(coded)] = live;
  keeps_twin_[static_cast<std::size_t>(live)] = true;
}

// Codes that no sequence has: woken blocks keep them.
int64_t CodedKvCache::num_idle_twins() const {
  int64_t count = 0;
  for (std::size_t live = 0; live < keeps_twin_.size(); ++live) {
    if (keeps_twin_[live] && coded_pool_.num_references(coded_twin_[live]) == 1) ++count;
  }
  return count;
}

// Whether so many coded blocks can be allocated; gives up idle twins where it takes that.
bool CodedKvCache::make_coded_room(int64_t num_blocks) {
  if (num_blocks <= coded_pool_.num_free()) return true;
  if (num_blocks > num_free_coded_blocks()) return false;
  for (std::size_t live = 0; live < keeps_twin_.size(); ++live) {
    if (coded_pool_.num_free() >= num_blocks) break;
    if (keeps_twin_[live] && coded_pool_.num_references(coded_twin_[live]) == 1) {
      forget_twin(static_cast<BlockId>(live));
    }
  }
  return true;
}

bool CodedKvCache::reserve(KvSequence& sequence, int64_t num_rows) {
  LATHE_CHECK(num_rows >= 0);
  const int64_t wanted_tokens = sequence.num_tokens + num_rows;
  if (wanted_tokens > options_.max_sequence_tokens) {
    fail(ErrorCode::kInvalidArgument, "a sequence of ", wanted_tokens,
         " tokens; the cache was made for at most ", options_.max_sequence_tokens);
  }
  auto& blocks = sequence.blocks;
  const auto num_old = static_cast<int64_t>(blocks.size());
  const int64_t num_new = std::max<int64_t>(0, blocks_for(wanted_tokens) - num_old);
  const int64_t first_block = sequence.num_tokens / kBlockSize;
  bool wakes = false;
  bool copies = false;
  if (num_rows > 0 && first_block < num_old) {  // the first row goes into a block with tokens
    const BlockId id = blocks[static_cast<std::size_t>(first_block)];
    wakes = is_coded(id);
    copies = !wakes && live_pool_.num_references(id) > 1;
    if (!wakes && !copies) forget_twin(id);  // its content is about to change
  }
  if (num_new + (wakes || copies ? 1 : 0) > live_pool_.num_free()) return false;
  if (wakes) {
    Exec own{own_thread_, own_workspace_};
    LATHE_CHECK(wake_blocks(sequence, first_block, first_block + 1, own));
    forget_twin(blocks[static_cast<std::size_t>(first_block)]);  // it is about to be written into
  }
  if (copies) {
    BlockId& shared = blocks[static_cast<std::size_t>(first_block)];
    const BlockId own = *live_pool_.allocate();
    live_.copy_block(shared, own);
    for (int64_t layer = 0; layer < live_.shape().num_layers; ++layer) {
      std::memcpy(raw_keys(layer, own), raw_keys(layer, shared),
                  static_cast<std::size_t>(live_.shape().plane_bytes()));
    }
    release_block(shared);
    shared = own;
  }
  for (int64_t i = 0; i < num_new; ++i) blocks.push_back(*live_pool_.allocate());
  return true;
}

void CodedKvCache::truncate(KvSequence& sequence, int64_t num_tokens) {
  LATHE_CHECK(num_tokens >= 0 && num_tokens <= sequence.num_tokens);
  const auto kept = static_cast<std::size_t>(blocks_for(num_tokens));
  while (sequence.blocks.size() > kept) {
    release_block(sequence.blocks.back());
    sequence.blocks.pop_back();
  }
  sequence.num_tokens = num_tokens;
  if (sequence.sink_block >= 0 && end_of_codes(sequence) <= first_codable_block()) {
    release_block(sequence.sink_block);
    sequence.sink_block = -1;
  }
}

void CodedKvCache::release(KvSequence& sequence) { truncate(sequence, 0); }

void CodedKvCache::fork(const KvSequence& source, int64_t num_tokens, KvSequence& target) {
  LATHE_CHECK(num_tokens >= 0 && num_tokens <= source.num_tokens);
  LATHE_CHECK(target.blocks.empty() && target.num_tokens == 0);
  for (int64_t b = 0; b < blocks_for(num_tokens); ++b) {
    const BlockId id = source.blocks[static_cast<std::size_t>(b)];
    add_reference(id);
    target.blocks.push_back(id);
  }
  target.num_tokens = num_tokens;
  if (source.sink_block >= 0 && end_of_codes(target) > first_codable_block()) {
    add_reference(source.sink_block);
    target.sink_block = source.sink_block;
  }
}

// --- memory -------------------------------------------------------------------------------------

std::byte* CodedKvCache::raw_keys(int64_t layer, BlockId block) {
  return raw_.data() + (layer * live_pool_.num_blocks() + block) * live_.shape().plane_bytes();
}

std::byte* CodedKvCache::view_memory(std::size_t slot) {
  return view_memory_.data() + static_cast<int64_t>(slot) * 2 * live_.shape().plane_bytes();
}

int64_t CodedKvCache::state_floats() const { return round_up(codec_.state_floats(kMaxRunBlocks)); }

int64_t CodedKvCache::scratch_floats() const {
  return round_up(codec_.scratch_floats(kMaxRunBlocks)) + round_up(block_floats());
}

// --- encoding -----------------------------------------------------------------------------------

// Gives the next num_blocks live blocks coded ids and queues the encoding of those that have none
// yet. False when the codes have no room for all of them.
bool CodedKvCache::queue_chunk(KvSequence& sequence, int64_t num_blocks) {
  const int64_t begin = end_of_codes(sequence);
  const auto twin_of = [&](int64_t b) {
    return coded_twin_[static_cast<std::size_t>(sequence.blocks[static_cast<std::size_t>(b)])];
  };
  int64_t needed = 0;
  for (int64_t b = begin; b < begin + num_blocks; ++b) {
    const BlockId twin = twin_of(b);
    if (twin < 0) {
      ++needed;
    } else {
      coded_pool_.add_reference(twin);  // before room is made: it must not be given up for that
    }
  }
  if (!make_coded_room(needed)) {
    for (int64_t b = begin; b < begin + num_blocks; ++b) {
      if (twin_of(b) >= 0) coded_pool_.release(twin_of(b));
    }
    return false;
  }
  for (int64_t b = begin; b < begin + num_blocks; ++b) {
    BlockId& id = sequence.blocks[static_cast<std::size_t>(b)];
    const BlockId live = id;
    BlockId& twin = coded_twin_[static_cast<std::size_t>(live)];
    if (twin < 0) {
      twin = *coded_pool_.allocate();
      live_twin_[static_cast<std::size_t>(twin)] = live;
      jobs_.push_back({live, twin});
    }
    id = ~twin;
    if (sinks_in_block(b) > 0) {
      sequence.sink_block = live;  // keeps its reference, for the exact rows
    } else {
      // The job still reads it: nothing is written into a freed live block before reserve().
      release_block(live);
    }
  }
  return true;
}

// The exact rows of a run of jobs, from their live blocks.
class CodedKvCache::LiveRows final : public KvExactRows {
 public:
  LiveRows(CodedKvCache& cache, std::span<const EncodeJob> jobs) : cache_(cache), jobs_(jobs) {}
  void load(int64_t layer, KvLayerRows rows) const override {
    const LiveBlockShape& shape = cache_.live_.shape();
    for (const EncodeJob& job : jobs_) {
      load_plain_row(shape.element, cache_.raw_keys(layer, job.live), cache_.block_floats(),
                     rows.keys);
      for (int64_t t = 0; t < kBlockSize; ++t) {
        load_value(shape, cache_.live_.values(layer, job.live), t,
                   rows.values + t * shape.kv_size());
      }
      rows.keys += cache_.block_floats();
      rows.values += cache_.block_floats();
    }
  }

 private:
  CodedKvCache& cache_;
  std::span<const EncodeJob> jobs_;
};

void CodedKvCache::run_encode_jobs(Exec& exec) {
  if (jobs_.empty()) return;
  const Workspace::Scope scope(exec.workspace);
  const int64_t per_thread = state_floats() + scratch_floats();
  float* memory = exec.workspace.allocate_as<float>(exec.threads.num_threads() * per_thread);
  const auto num_jobs = static_cast<int64_t>(jobs_.size());
  exec.threads.parallel_for(num_jobs, blocks_in_a_run(num_jobs, exec.threads.num_threads()),
                            [&](int64_t begin, int64_t end, int thread_idx) {
                              const auto jobs = std::span<const EncodeJob>(jobs_).subspan(
                                  static_cast<std::size_t>(begin),
                                  static_cast<std::size_t>(end - begin));
                              std::byte* run_codes[kMaxRunBlocks];
                              for (std::size_t i = 0; i < jobs.size(); ++i)
                                run_codes[i] = codes(jobs[i].coded);
                              float* state = memory + thread_idx * per_thread;
                              codec_.encode(LiveRows(*this, jobs), end - begin, run_codes, state,
                                            state + state_floats(), exec);
                            });
  jobs_.clear();
}

bool CodedKvCache::park(KvSequence& sequence, Exec& exec) {
  LATHE_CHECK(!in_step_);
  const int64_t num_blocks = sequence.num_tokens / kBlockSize - end_of_codes(sequence);
  if (num_blocks <= 0) return true;
  if (!queue_chunk(sequence, num_blocks)) return false;
  run_encode_jobs(exec);
  return true;
}

// --- decoding -----------------------------------------------------------------------------------

KvLayerRows CodedKvCache::decode_run(int64_t layer, std::span<const Rebuilt> blocks, float* state,
                                     float* scratch, Exec& exec) {
  const std::byte* run_codes[kMaxRunBlocks];
  for (std::size_t i = 0; i < blocks.size(); ++i) run_codes[i] = codes(blocks[i].coded);
  return codec_.decode_layer(layer, run_codes, static_cast<int64_t>(blocks.size()), state, scratch,
                             exec);
}

// Rebuilt rows, rotated, and the exact sinks over them, in attention's layout.
void CodedKvCache::store_rows(int64_t layer, const Rebuilt& block, KvLayerRows rows,
                              std::byte* keys, std::byte* values, float* scratch, Exec& exec) {
  const LiveBlockShape& shape = live_.shape();
  const KvRope& tables = rope_[static_cast<std::size_t>(layer)];
  int64_t positions[kBlockSize];
  for (int64_t t = 0; t < kBlockSize; ++t) positions[t] = block.first_position + t;
  rope({.x = rows.keys,
        .y = scratch,
        .positions = positions,
        .cos = tables.cos,
        .sin = tables.sin,
        .num_positions = tables.num_positions,
        .num_rows = kBlockSize,
        .num_heads = shape.num_kv_heads,
        .head_dim = shape.head_dim,
        .rotary_dim = tables.rotary_dim},
       exec);
  const int64_t num_sinks =
      block.sink_block < 0 ? 0 : sinks_in_block(block.first_position / kBlockSize);
  for (int64_t t = 0; t < num_sinks; ++t) {
    float* key = scratch + t * shape.kv_size();
    load_key(shape, live_.keys(layer, block.sink_block), t, key);
    store_key(shape, key, t, keys);
    load_value(shape, live_.values(layer, block.sink_block), t, key);
    store_value(shape, key, t, values);
  }
  for (int64_t t = num_sinks; t < kBlockSize; ++t) {
    store_key(shape, scratch + t * shape.kv_size(), t, keys);
    store_value(shape, rows.values + t * shape.kv_size(), t, values);
  }
}

void CodedKvCache::rebuild_live(std::span<const Rebuilt> blocks, const BlockId* live, float* memory,
                                Exec& exec) {
  const LiveBlockShape& shape = live_.shape();
  float* codec_scratch = memory + state_floats();
  float* row_scratch = codec_scratch + round_up(codec_.scratch_floats(kMaxRunBlocks));
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    KvLayerRows rows = decode_run(layer, blocks, memory, codec_scratch, exec);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      store_rows(layer, blocks[i], rows, live_.keys(layer, live[i]), live_.values(layer, live[i]),
                 row_scratch, exec);
      store_plain_row(shape.element, rows.keys, block_floats(), raw_keys(layer, live[i]));
      rows.keys += block_floats();
      rows.values += block_floats();
    }
  }
}

bool CodedKvCache::wake_blocks(KvSequence& sequence, int64_t begin, int64_t end, Exec& exec) {
  if (end - begin > live_pool_.num_free()) return false;
  if (begin >= end) return true;
  const Workspace::Scope scope(exec.workspace);
  const int64_t per_thread = state_floats() + scratch_floats();
  float* memory = exec.workspace.allocate_as<float>(exec.threads.num_threads() * per_thread);
  auto* live = exec.workspace.allocate_as<BlockId>(end - begin);
  for (int64_t i = 0; i < end - begin; ++i) live[i] = *live_pool_.allocate();
  exec.threads.parallel_for(end - begin, blocks_in_a_run(end - begin, exec.threads.num_threads()),
                            [&](int64_t from, int64_t to, int thread_idx) {
                              Rebuilt blocks[kMaxRunBlocks];
                              for (int64_t i = from; i < to; ++i) {
                                const int64_t b = begin + i;
                                blocks[i - from] = {
                                    ~sequence.blocks[static_cast<std::size_t>(b)], b * kBlockSize,
                                    sinks_in_block(b) > 0 ? sequence.sink_block : BlockId{-1}};
                              }
                              rebuild_live({blocks, static_cast<std::size_t>(to - from)},
                                           live + from, memory + thread_idx * per_thread, exec);
                            });
  for (int64_t i = 0; i < end - begin; ++i) {
    BlockId& id = sequence.blocks[static_cast<std::size_t>(begin + i)];
    keep_twin(live[i], ~id);
    id = live[i];
    if (sinks_in_block(begin + i) > 0 && sequence.sink_block >= 0) {
      release_block(sequence.sink_block);
      sequence.sink_block = -1;
    }
  }
  return true;
}

bool CodedKvCache::wake(KvSequence& sequence, Exec& exec) {
  LATHE_CHECK(!in_step_);
  const auto num_blocks = static_cast<int64_t>(sequence.blocks.size());
  return wake_blocks(sequence, std::min(first_codable_block(), num_blocks), end_of_codes(sequence),
                     exec);
}

// --- a step -------------------------------------------------------------------------------------

void CodedKvCache::begin_step(std::span<const KvRows> rows, Exec& exec) {
  LATHE_CHECK(!in_step_);
  if (options_.encode_while_running) {
    for (const KvRows& run : rows) {
      KvSequence& sequence = *run.sequence;
      for (;;) {
        const int64_t exact = sequence.num_tokens - end_of_codes(sequence) * kBlockSize;
        if (exact < std::max<int64_t>(1, policy_.window + policy_.chunk_tokens)) break;
        if (!queue_chunk(sequence, policy_.chunk_tokens / kBlockSize)) break;  // stays exact
      }
    }
    run_encode_jobs(exec);
  }
  in_step_ = true;
  rows_ = rows;
  list_coded_blocks(exec.threads.num_threads());
}

// Which coded blocks this step reads, each once, and where every run's views begin.
void CodedKvCache::list_coded_blocks(int num_threads) {
  for (const Rebuilt& block : rebuilt_) slot_of_coded_[static_cast<std::size_t>(block.coded)] = -1;
  rebuilt_.clear();
  view_begin_.clear();
  std::size_t num_views = 0;
  for (const KvRows& run : rows_) {
    const KvSequence& sequence = *run.sequence;
    const int64_t num_blocks = blocks_for(sequence.num_tokens + run.num_rows);
    LATHE_CHECK(static_cast<int64_t>(sequence.blocks.size()) >= num_blocks);
    view_begin_.push_back(num_views);
    num_views += static_cast<std::size_t>(num_blocks);
    for (int64_t b = 0; b < num_blocks; ++b) {
      const BlockId id = sequence.blocks[static_cast<std::size_t>(b)];
      if (!is_coded(id) || slot_of_coded_[static_cast<std::size_t>(~id)] >= 0) continue;
      slot_of_coded_[static_cast<std::size_t>(~id)] = static_cast<int32_t>(rebuilt_.size());
      rebuilt_.push_back(
          {~id, b * kBlockSize, sinks_in_block(b) > 0 ? sequence.sink_block : BlockId{-1}});
    }
  }
  view_begin_.push_back(num_views);
  views_.resize(num_views);
  const auto slots = static_cast<int64_t>(rebuilt_.size());
  run_blocks_ = blocks_in_a_run(slots, num_threads);
  // A quarter more, so that a growing sequence does not ask for memory at every chunk.
  const int64_t num_runs = (slots + run_blocks_ - 1) / run_blocks_;
  const int64_t state_bytes = num_runs * round_up(codec_.state_floats(run_blocks_)) * 4;
  const int64_t view_bytes = slots * 2 * live_.shape().plane_bytes();
  if (state_bytes > state_memory_.size()) state_memory_.reserve(state_bytes + state_bytes / 4);
  if (view_bytes > view_memory_.size()) view_memory_.reserve(view_bytes + view_bytes / 4);
}

void CodedKvCache::append(int64_t layer, const float* k_raw, const float* k, const float* v,
                          int64_t stride, Exec& exec) {
  LATHE_CHECK(in_step_);
  const LiveBlockShape& shape = live_.shape();
  const int64_t row_bytes = shape.plane_bytes() / kBlockSize;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const KvRows& run = rows_[i];
    const auto& blocks = run.sequence->blocks;
    exec.threads.parallel_for(run.num_rows, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t position = run.sequence->num_tokens + row;
        const BlockId block = blocks[static_cast<std::size_t>(position / kBlockSize)];
        const int64_t token = position % kBlockSize;
        const int64_t from = (run.row_begin + row) * stride;
        store_key(shape, k + from, token, live_.keys(layer, block));
        store_value(shape, v + from, token, live_.values(layer, block));
        store_plain_row(shape.element, k_raw + from, shape.kv_size(),
                        raw_keys(layer, block) + token * row_bytes);
      }
    });
  }

  const Workspace::Scope scope(exec.workspace);
  float* scratch = exec.workspace.allocate_as<float>(exec.threads.num_threads() * scratch_floats());
  const auto num_rebuilt = static_cast<int64_t>(rebuilt_.size());
  const int64_t run_state = round_up(codec_.state_floats(run_blocks_));
  exec.threads.parallel_for(
      num_rebuilt, run_blocks_, [&](int64_t begin, int64_t end, int thread_idx) {
        float* own = scratch + thread_idx * scratch_floats();
        const auto run = std::span<const Rebuilt>(rebuilt_).subspan(
            static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
        KvLayerRows decoded =
            decode_run(layer, run, state_memory_.as<float>() + begin / run_blocks_ * run_state,
                       own + round_up(block_floats()), exec);
        for (int64_t i = begin; i < end; ++i) {
          std::byte* keys = view_memory(static_cast<std::size_t>(i));
          store_rows(layer, rebuilt_[static_cast<std::size_t>(i)], decoded, keys,
                     keys + shape.plane_bytes(), own, exec);
          decoded.keys += block_floats();
          decoded.values += block_floats();
        }
      });

  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const auto& blocks = rows_[i].sequence->blocks;
    for (std::size_t b = 0; view_begin_[i] + b < view_begin_[i + 1]; ++b) {
      KvBlockView& view = views_[view_begin_[i] + b];
      if (!is_coded(blocks[b])) {
        view = live_.view(layer, blocks[b]);
        continue;
      }
      const auto slot =
          static_cast<std::size_t>(slot_of_coded_[static_cast<std::size_t>(~blocks[b])]);
      const std::byte* keys = view_memory(slot);
      view = {keys, keys + shape.plane_bytes()};
    }
  }
}

std::span<const KvBlockView> CodedKvCache::views(int64_t, int64_t rows_idx) {
  LATHE_CHECK(in_step_);
  const auto i = static_cast<std::size_t>(rows_idx);
  return {views_.data() + view_begin_[i], view_begin_[i + 1] - view_begin_[i]};
}

void CodedKvCache::commit() {
  LATHE_CHECK(in_step_);
  for (const KvRows& run : rows_) run.sequence->num_tokens += run.num_rows;
  in_step_ = false;
}

}  // namespace lathe
