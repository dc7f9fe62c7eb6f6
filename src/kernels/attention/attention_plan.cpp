// Who computes what. A tile (some consecutive tokens x the query heads of one KV head) walks over
// its chunks in one thread, or, when it would keep one thread busy while the others are done, its
// chunks are spread over the threads and merged in a second loop. Neither choice changes a bit of
// the result (attention_partial.h).
#include <algorithm>

#include "kernels/attention/attention_partial.h"

namespace lathe {
namespace {

// The rows that share one pass over keys and values, a compromise: every row more saves reading and
// unpacking them, but the scratch of a tile (48 rows: 48 KiB of scores, 48 * head_dim * 12 bytes)
// should stay in L2, and there should be enough tiles for the threads.
constexpr int64_t kTileRows[] = {48, 24, 12};  // no lower: a verify window shares a pass anyway
constexpr int64_t kTilesPerThread = 3;

// Memory for the partials of spread tiles.
constexpr int64_t kMaxPartialFloats = int64_t{4} << 20;

struct TilePlan {
  const AttentionSegment* segment;
  int64_t kv_head;
  int64_t first_token;
  int64_t num_tokens;
  int64_t first_chunk;
  int64_t num_chunks;
  float* partials;  // [num_chunks][one state], when spread; else null
};

struct Item {
  int64_t tile;
  int64_t chunk;  // of the tile's chunks; -1: all of them
};

int64_t state_floats(int64_t num_rows, int64_t head_dim) {
  return (num_rows * (head_dim + 2) + 15) / 16 * 16;
}

AttentionState state_at(float* memory, int64_t num_rows, int64_t head_dim) {
  return {memory + num_rows * head_dim, memory + num_rows * (head_dim + 1), memory};
}

// To whole vectors of 64 bytes, of 16- or 32-bit numbers.
int64_t round_up(int64_t count) { return (count + 31) / 32 * 32; }

int64_t tokens_per_tile(int64_t rows, int64_t group) { return std::max<int64_t>(1, rows / group); }

int64_t count_tiles(const AttentionArgs& a, int64_t tile_tokens) {
  int64_t count = 0;
  for (const AttentionSegment& segment : a.segments) {
    count += (segment.num_rows + tile_tokens - 1) / tile_tokens * a.num_kv_heads;
  }
  return count;
}

int64_t choose_tile_tokens(const AttentionArgs& a, int num_threads) {
  const int64_t group = a.num_heads / a.num_kv_heads;
  int64_t tokens = 1;
  for (const int64_t rows : kTileRows) {
    tokens = tokens_per_tile(rows, group);
    if (count_tiles(a, tokens) >= kTilesPerThread * num_threads) break;
  }
  return tokens;
}

class Plan {
 public:
  Plan(const AttentionArgs& args, const AttentionSteps& steps, Exec& exec)
      : a_(args),
        plain_q_(args.q),
        plain_q_stride_(args.q_stride),
        steps_(steps),
        exec_(exec),
        group_(args.num_heads / args.num_kv_heads) {
    const int num_threads = exec.threads.num_threads();
    tile_tokens_ = choose_tile_tokens(a_, num_threads);
    make_tiles();
    make_items(num_threads);
    const int64_t rows = tile_tokens_ * group_;
    scratch_floats_ = rows * (a_.head_dim + kChunk) + 2 * state_floats(rows, a_.head_dim);
    scratch_ = exec.workspace.allocate_as<float>(num_threads * scratch_floats_);
    if (a_.key_offset.offset != nullptr) {
      offset_floats_ = round_up(rows * (2 * a_.key_offset.rotary_dim + 1));
      offset_scratch_ = exec.workspace.allocate_as<float>(num_threads * offset_floats_);
    }
    if (kv_is_plain(a_.element)) return;
    code_floats_ = round_up(rows) * 2;
    code_numbers_ = round_up(kBlockSize * a_.head_dim + kUnpackSlack) +
                    round_up(rows * a_.head_dim) + round_up(rows * kBlockSize);
    code_scratch_ = exec.workspace.allocate_as<float>(num_threads * code_floats_);
    code_numbers_scratch_ = exec.workspace.allocate_as<int16_t>(num_threads * code_numbers_);
    if (kv_is_rotated(a_.element)) {
      grid_ = &kv_grid(a_.element);
      rotate_q();
    }
  }

  void run() {
    exec_.threads.parallel_for(num_items_, 1, [&](int64_t begin, int64_t end, int thread_idx) {
      for (int64_t i = begin; i < end; ++i) run_item(items_[i], thread_idx);
    });
    if (num_items_ == num_tiles_ - num_spread_) return;
    exec_.threads.parallel_for(num_tiles_, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        if (tiles_[i].partials != nullptr) merge_partials(tiles_[i]);
      }
    });
  }

 private:
  void make_tiles() {
    num_tiles_ = count_tiles(a_, tile_tokens_);
    tiles_ = exec_.workspace.allocate_as<TilePlan>(num_tiles_);
    int64_t i = 0;
    for (const AttentionSegment& segment : a_.segments) {
      // The last tokens see most: their tiles first, so that the short ones fill the gaps.
      const int64_t segment_tiles = (segment.num_rows + tile_tokens_ - 1) / tile_tokens_;
      for (int64_t t = segment_tiles - 1; t >= 0; --t) {
        const int64_t first = t * tile_tokens_;
        const int64_t num = std::min(tile_tokens_, segment.num_rows - first);
        const int64_t first_position = segment.first_position + first;
        const int64_t lowest = a_.sliding_window > 0
                                   ? std::max<int64_t>(0, first_position - a_.sliding_window + 1)
                                   : 0;
        const int64_t first_chunk = lowest / kChunk;
        const int64_t end_chunk = (first_position + num - 1) / kChunk + 1;
        for (int64_t kv_head = 0; kv_head < a_.num_kv_heads; ++kv_head) {
          tiles_[i++] = {&segment, kv_head, first, num, first_chunk, end_chunk - first_chunk,
                         nullptr};
        }
      }
    }
  }

  // A tile is spread when it is more than a quarter of what a thread has to do.
  void make_items(int num_threads) {
    int64_t total_cost = 0;
    int64_t max_items = 0;
    for (int64_t i = 0; i < num_tiles_; ++i) {
      total_cost += cost(tiles_[i]);
      max_items += tiles_[i].num_chunks;
    }
    items_ = exec_.workspace.allocate_as<Item>(max_items);
    int64_t partial_floats = 0;
    for (int64_t i = 0; i < num_tiles_; ++i) {
      TilePlan& tile = tiles_[i];
      const int64_t floats = tile.num_chunks * state_floats(tile.num_tokens * group_, a_.head_dim);
      const bool spread = num_threads > 1 && tile.num_chunks > 1 &&
                          4 * num_threads * cost(tile) > total_cost &&
                          partial_floats + floats <= kMaxPartialFloats;
      if (!spread) {
        items_[num_items_++] = {i, -1};
        continue;
      }
      partial_floats += floats;
      tile.partials = exec_.workspace.allocate_as<float>(floats);
      ++num_spread_;
      for (int64_t c = 0; c < tile.num_chunks; ++c) items_[num_items_++] = {i, c};
    }
  }

  int64_t cost(const TilePlan& tile) const { return tile.num_chunks * tile.num_tokens; }

  void run_item(const Item& item, int thread_idx) {
    const TilePlan& plan = tiles_[item.tile];
    const int64_t num_rows = plan.num_tokens * group_;
    float* q = scratch_ + thread_idx * scratch_floats_;
    float* scores = q + tile_tokens_ * group_ * a_.head_dim;
    float* total_memory = scores + tile_tokens_ * group_ * kChunk;
    float* part_memory = total_memory + state_floats(tile_tokens_ * group_, a_.head_dim);
    gather_q(plan, q);
    AttentionTile tile{.q = q,
                       .num_tokens = plan.num_tokens,
                       .first_position = plan.segment->first_position + plan.first_token,
                       .group = group_,
                       .head_dim = a_.head_dim,
                       .element = a_.element,
                       .blocks = plan.segment->blocks,
                       .sinks = plan.segment->sinks,
                       .kv_head = plan.kv_head,
                       .sliding_window = a_.sliding_window,
                       .softcap = a_.softcap,
                       .scores = scores,
                       .unpacked = nullptr,
                       .q16 = nullptr,
                       .p16 = nullptr,
                       .q_factor = nullptr,
                       .p_factor = nullptr,
                       .grid = grid_,
                       .key_offset = nullptr,
                       .offset_q = nullptr,
                       .offset_constant = nullptr,
                       .offset_turned = nullptr};
    if (offset_scratch_ != nullptr) {
      set_key_offset(plan, offset_scratch_ + thread_idx * offset_floats_, tile);
    }
    if (!kv_is_plain(a_.element)) {
      const int64_t rows = tile_tokens_ * group_;
      tile.unpacked = code_numbers_scratch_ + thread_idx * code_numbers_;
      tile.q16 = tile.unpacked + round_up(kBlockSize * a_.head_dim + kUnpackSlack);
      tile.p16 = tile.q16 + round_up(rows * a_.head_dim);
      tile.q_factor = code_scratch_ + thread_idx * code_floats_;
      tile.p_factor = tile.q_factor + round_up(rows);
    }
    if (item.chunk >= 0) {
      float* slot = plan.partials + item.chunk * state_floats(num_rows, a_.head_dim);
      steps_.partial(tile, plan.first_chunk + item.chunk, state_at(slot, num_rows, a_.head_dim));
      return;
    }
    const AttentionState total = state_at(total_memory, num_rows, a_.head_dim);
    const AttentionState part = state_at(part_memory, num_rows, a_.head_dim);
    steps_.partial(tile, plan.first_chunk, total);
    for (int64_t c = 1; c < plan.num_chunks; ++c) {
      steps_.partial(tile, plan.first_chunk + c, part);
      steps_.merge(total, part, num_rows, a_.head_dim);
    }
    finish(plan, total);
  }

  void merge_partials(const TilePlan& plan) {
    const int64_t num_rows = plan.num_tokens * group_;
    const int64_t stride = state_floats(num_rows, a_.head_dim);
    const AttentionState total = state_at(plan.partials, num_rows, a_.head_dim);
    for (int64_t c = 1; c < plan.num_chunks; ++c) {
      steps_.merge(total, state_at(plan.partials + c * stride, num_rows, a_.head_dim), num_rows,
                   a_.head_dim);
    }
    finish(plan, total);
  }

  // The keys' rotation moved to q; from here on a_.q is the rotated copy.
  void rotate_q() {
    const int64_t row_size = a_.num_heads * a_.head_dim;
    int64_t num_rows = 0;
    for (const AttentionSegment& segment : a_.segments) {
      num_rows = std::max(num_rows, segment.row_begin + segment.num_rows);
    }
    auto* rotated = exec_.workspace.allocate_as<float>(num_rows * row_size);
    for (const AttentionSegment& segment : a_.segments) {
      exec_.threads.parallel_for(segment.num_rows, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = segment.row_begin + i;
          float* to = rotated + row * row_size;
          std::copy_n(a_.q + row * a_.q_stride, row_size, to);
          for (int64_t h = 0; h < a_.num_heads; ++h) kv_rotate(to + h * a_.head_dim, a_.head_dim);
        }
      });
    }
    a_.q = rotated;
    a_.q_stride = row_size;
  }

  void gather_q(const TilePlan& plan, float* q) const {
    for (int64_t token = 0; token < plan.num_tokens; ++token) {
      const int64_t row = plan.segment->row_begin + plan.first_token + token;
      const float* from = a_.q + row * a_.q_stride + plan.kv_head * group_ * a_.head_dim;
      float* to = q + token * group_ * a_.head_dim;
      for (int64_t j = 0; j < group_ * a_.head_dim; ++j) to[j] = from[j] * a_.scale;
    }
  }

  // What a tile's queries make of the keys' offset: C and S of each (attention.h).
  void set_key_offset(const TilePlan& plan, float* memory, AttentionTile& tile) const {
    const KeyOffset& key = a_.key_offset;
    const int64_t half = key.rotary_dim / 2, num_rows = plan.num_tokens * group_;
    const float* offset = key.offset + plan.kv_head * a_.head_dim;
    float* constants = memory + num_rows * 2 * key.rotary_dim;
    for (int64_t i = 0; i < num_rows; ++i) {
      const int64_t row = plan.segment->row_begin + plan.first_token + i / group_;
      const float* q =
          plain_q_ + row * plain_q_stride_ + (plan.kv_head * group_ + i % group_) * a_.head_dim;
      float* c = memory + i * key.rotary_dim;
      for (int64_t j = 0; j < half; ++j) {
        c[j] = (q[j] * offset[j] + q[j + half] * offset[j + half]) * a_.scale;
        c[half + j] = (q[j + half] * offset[j] - q[j] * offset[j + half]) * a_.scale;
      }
      float constant = 0;
      for (int64_t j = key.rotary_dim; j < a_.head_dim; ++j) constant += q[j] * offset[j];
      constants[i] = constant * a_.scale;
    }
    tile.key_offset = &key;
    tile.offset_q = memory;
    tile.offset_turned = memory + num_rows * key.rotary_dim;
    tile.offset_constant = constants;
  }

  void finish(const TilePlan& plan, const AttentionState& total) const {
    for (int64_t token = 0; token < plan.num_tokens; ++token) {
      const int64_t row = plan.segment->row_begin + plan.first_token + token;
      float* out = a_.out + (row * a_.num_heads + plan.kv_head * group_) * a_.head_dim;
      for (int64_t g = 0; g < group_; ++g) {
        const float inverse = 1 / total.l[token * group_ + g];
        const float* acc = total.acc + (token * group_ + g) * a_.head_dim;
        for (int64_t j = 0; j < a_.head_dim; ++j) out[g * a_.head_dim + j] = acc[j] * inverse;
        if (grid_ != nullptr) kv_rotate(out + g * a_.head_dim, a_.head_dim);
      }
    }
  }

  AttentionArgs a_;
  const float* plain_q_;  // before rotate_q()
  const int64_t plain_q_stride_;
  const AttentionSteps& steps_;
  Exec& exec_;
  int64_t group_;
  int64_t tile_tokens_ = 1;
  TilePlan* tiles_ = nullptr;
  int64_t num_tiles_ = 0;
  int64_t num_spread_ = 0;
  Item* items_ = nullptr;
  int64_t num_items_ = 0;
  float* scratch_ = nullptr;  // per thread: q, scores, two states
  int64_t scratch_floats_ = 0;
  float* offset_scratch_ = nullptr;  // per thread: what set_key_offset() fills, and as much to turn
  int64_t offset_floats_ = 0;
  // Formats that are codes: what AttentionTile asks for, per thread.
  float* code_scratch_ = nullptr;
  int64_t code_floats_ = 0;
  int16_t* code_numbers_scratch_ = nullptr;
  int64_t code_numbers_ = 0;
  const KvGrid* grid_ = nullptr;  // of a rotated format
};

}  // namespace

void run_attention_plan(const AttentionArgs& args, const AttentionSteps& steps, Exec& exec) {
  const Workspace::Scope scope(exec.workspace);
  Plan(args, steps, exec).run();
}

}  // namespace lathe
