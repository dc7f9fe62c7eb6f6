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

LiveBlockShape live_shape(const ModelConfig& config, KvFormat format) {
  return {.element = kv_element(format),
          .num_layers = config.num_layers,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim};
}

}  // namespace

CodedKvCache::CodedKvCache(const ModelConfig& config, const KvCodec& codec,
                           std::vector<KvRope> rope, const CodedKvCacheOptions& options,
                           std::vector<Buffer> rope_memory)
    : CodedCache(config, codec.policy(), options),
      codec_(codec),
      rope_(std::move(rope)),
      rope_memory_(std::move(rope_memory)),
      live_(live_shape(config, options.live_format), blocks_for(options.live_tokens)),
      raw_(blocks_for(options.live_tokens) * live_.shape().block_bytes() / 2),
      codes_(blocks_for(options.coded_tokens) * codec.bytes_per_block()) {
  if (static_cast<int64_t>(rope_.size()) != config.num_layers) {
    fail(ErrorCode::kInvalidArgument, "a coded cache: rope for ", rope_.size(), " of ",
         config.num_layers, " layers");
  }
}

int64_t CodedKvCache::bytes_per_block() const { return live_.shape().block_bytes() * 3 / 2; }

void CodedKvCache::copy_live_block(BlockId from, BlockId to) {
  live_.copy_block(from, to);
  for (int64_t layer = 0; layer < live_.shape().num_layers; ++layer) {
    std::memcpy(raw_keys(layer, to), raw_keys(layer, from),
                static_cast<std::size_t>(live_.shape().plane_bytes()));
  }
}

// --- memory -------------------------------------------------------------------------------------

std::byte* CodedKvCache::raw_keys(int64_t layer, BlockId block) {
  return raw_.data() + (layer * num_blocks() + block) * live_.shape().plane_bytes();
}

std::byte* CodedKvCache::view_memory(std::size_t slot) {
  return view_memory_.data() + static_cast<int64_t>(slot) * 2 * live_.shape().plane_bytes();
}

int64_t CodedKvCache::state_floats() const { return round_up(codec_.state_floats(kMaxRunBlocks)); }

int64_t CodedKvCache::scratch_floats() const {
  return round_up(codec_.scratch_floats(kMaxRunBlocks)) + round_up(block_floats());
}

// --- encoding -----------------------------------------------------------------------------------

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

void CodedKvCache::encode_blocks(std::span<const EncodeJob> jobs, Exec& exec) {
  encode_to(
      jobs, [&](int64_t i) { return codes(jobs[static_cast<std::size_t>(i)].coded); }, exec);
}

void CodedKvCache::encode_to(std::span<const EncodeJob> all,
                             const std::function<std::byte*(int64_t)>& to, Exec& exec) {
  const Workspace::Scope scope(exec.workspace);
  const int64_t per_thread = state_floats() + scratch_floats();
  float* memory = exec.workspace.allocate_as<float>(exec.threads.num_threads() * per_thread);
  const auto num_jobs = static_cast<int64_t>(all.size());
  exec.threads.parallel_for(num_jobs, blocks_in_a_run(num_jobs, exec.threads.num_threads()),
                            [&](int64_t begin, int64_t end, int thread_idx) {
                              const auto jobs = all.subspan(static_cast<std::size_t>(begin),
                                                            static_cast<std::size_t>(end - begin));
                              std::byte* run_codes[kMaxRunBlocks];
                              for (int64_t i = begin; i < end; ++i) run_codes[i - begin] = to(i);
                              float* state = memory + thread_idx * per_thread;
                              codec_.encode(LiveRows(*this, jobs), end - begin, run_codes, state,
                                            state + state_floats(), exec);
                            });
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

void CodedKvCache::wake_blocks(std::span<const Rebuilt> blocks, const BlockId* live, Exec& exec) {
  const Workspace::Scope scope(exec.workspace);
  const int64_t per_thread = state_floats() + scratch_floats();
  float* memory = exec.workspace.allocate_as<float>(exec.threads.num_threads() * per_thread);
  const auto num_blocks = static_cast<int64_t>(blocks.size());
  exec.threads.parallel_for(num_blocks, blocks_in_a_run(num_blocks, exec.threads.num_threads()),
                            [&](int64_t begin, int64_t end, int thread_idx) {
                              rebuild_live(blocks.subspan(static_cast<std::size_t>(begin),
                                                          static_cast<std::size_t>(end - begin)),
                                           live + begin, memory + thread_idx * per_thread, exec);
                            });
}

// --- a step -------------------------------------------------------------------------------------

// Where every run's views begin, and memory for what append() rebuilds.
void CodedKvCache::start_step(Exec& exec) {
  view_begin_.clear();
  std::size_t num_views = 0;
  for (const KvRows& run : rows()) {
    view_begin_.push_back(num_views);
    num_views += static_cast<std::size_t>(blocks_for(run.sequence->num_tokens + run.num_rows));
  }
  view_begin_.push_back(num_views);
  views_.resize(num_views);
  const auto slots = static_cast<int64_t>(rebuilt().size());
  run_blocks_ = blocks_in_a_run(slots, exec.threads.num_threads());
  // A quarter more, so that a growing sequence does not ask for memory at every chunk.
  const int64_t num_runs = (slots + run_blocks_ - 1) / run_blocks_;
  const int64_t state_bytes = num_runs * round_up(codec_.state_floats(run_blocks_)) * 4;
  const int64_t view_bytes = slots * 2 * live_.shape().plane_bytes();
  if (state_bytes > state_memory_.size()) state_memory_.reserve(state_bytes + state_bytes / 4);
  if (view_bytes > view_memory_.size()) view_memory_.reserve(view_bytes + view_bytes / 4);
}

void CodedKvCache::append(int64_t layer, const float* k_raw, const float* k, const float* v,
                          int64_t stride, Exec& exec) {
  LATHE_CHECK(in_step());
  const LiveBlockShape& shape = live_.shape();
  const int64_t row_bytes = shape.plane_bytes() / kBlockSize;
  for (std::size_t i = 0; i < rows().size(); ++i) {
    const KvRows& run = rows()[i];
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
  const auto num_rebuilt = static_cast<int64_t>(rebuilt().size());
  const int64_t run_state = round_up(codec_.state_floats(run_blocks_));
  exec.threads.parallel_for(
      num_rebuilt, run_blocks_, [&](int64_t begin, int64_t end, int thread_idx) {
        float* own = scratch + thread_idx * scratch_floats();
        const auto run = rebuilt().subspan(static_cast<std::size_t>(begin),
                                           static_cast<std::size_t>(end - begin));
        KvLayerRows decoded =
            decode_run(layer, run, state_memory_.as<float>() + begin / run_blocks_ * run_state,
                       own + round_up(block_floats()), exec);
        for (int64_t i = begin; i < end; ++i) {
          std::byte* keys = view_memory(static_cast<std::size_t>(i));
          store_rows(layer, rebuilt()[static_cast<std::size_t>(i)], decoded, keys,
                     keys + shape.plane_bytes(), own, exec);
          decoded.keys += block_floats();
          decoded.values += block_floats();
        }
      });

  for (std::size_t i = 0; i < rows().size(); ++i) {
    const auto& blocks = rows()[i].sequence->blocks;
    for (std::size_t b = 0; view_begin_[i] + b < view_begin_[i + 1]; ++b) {
      KvBlockView& view = views_[view_begin_[i] + b];
      if (!is_coded(blocks[b])) {
        view = live_.view(layer, blocks[b]);
        continue;
      }
      const auto slot = static_cast<std::size_t>(slot_of_coded(~blocks[b]));
      const std::byte* keys = view_memory(slot);
      view = {keys, keys + shape.plane_bytes()};
    }
  }
}

std::span<const KvBlockView> CodedKvCache::views(int64_t, int64_t rows_idx) {
  LATHE_CHECK(in_step());
  const auto i = static_cast<std::size_t>(rows_idx);
  return {views_.data() + view_begin_[i], view_begin_[i + 1] - view_begin_[i]};
}

}  // namespace lathe
