// The two steps that the fast versions of attention are made of; attention_plan.cpp decides who
// runs them on what.
//
// The positions of a sequence are cut into chunks [0, kChunk), [kChunk, 2 kChunk), ... A *partial*
// is the attention of a row restricted to one chunk: the largest score m, the sum l of exp(s - m),
// and the sum acc of exp(s - m) v. Partials are merged in the order of the chunks,
//   m = max(m1, m2),  l = l1 exp(m1 - m) + l2 exp(m2 - m),  acc likewise,
// and acc / l is the result. Where the chunks begin and the order of merging depend on positions
// alone, and every sum inside a chunk runs in the order of positions, so a row has the same bits
// whoever computes its partials, and in whichever company.
#pragma once
#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/attention/kv_codes.h"

namespace lathe {

// Decode is cut into pieces this long to occupy the threads: at head_dim 128 and bf16, 128 KiB of
// keys and values, about 10 microseconds at the bandwidth of one core. Prefill keeps the scores of
// a tile of rows for one chunk: 48 rows are 48 KiB, in L2.
inline constexpr int64_t kChunk = 256;

// One row is one query head of one token; the rows of a tile are its tokens' query heads of one KV
// head, token-major.
struct AttentionState {
  float* m;    // [num_rows]
  float* l;    // [num_rows]; below 0: the row has seen no position yet
  float* acc;  // [num_rows, head_dim]
};

struct AttentionTile {
  const float* q;          // [num_tokens * group, head_dim], times the scale
  int64_t num_tokens;      // consecutive positions
  int64_t first_position;  // of the first token
  int64_t group;           // query heads per KV head
  int64_t head_dim;
  KvElement element;
  const KvBlockView* blocks;
  KvBlockView sinks;  // of AttentionSegment
  int64_t kv_head;
  int64_t sliding_window;  // 0: none
  float softcap;           // 0: none
  float* scores;           // scratch, [num_tokens * group, kChunk]
  // Scratch of the formats that are codes (attention_codes_simd.h); null for the others.
  int16_t* unpacked;   // [kBlockSize * head_dim + kUnpackSlack], a block's keys or values
  int16_t* q16;        // [num_tokens * group, head_dim]
  int16_t* p16;        // [num_tokens * group, kBlockSize]
  float* q_factor;     // [num_tokens * group]
  float* p_factor;     // [num_tokens * group]
  const KvGrid* grid;  // of a HIGGS format
  // Of args.key_offset; null: none.
  const KeyOffset* key_offset;
  const float* offset_q;         // [num_tokens * group, rotary_dim]: C, then S (attention.h)
  const float* offset_constant;  // [num_tokens * group]: what RoPE leaves alone
  float* offset_turned;          // scratch, as offset_q
};
inline constexpr int64_t kUnpackSlack = 64;  // numbers, that a last vector may reach

struct AttentionSteps {
  // The partials of all rows of the tile over positions [chunk * kChunk, (chunk + 1) * kChunk).
  void (*partial)(const AttentionTile& tile, int64_t chunk, const AttentionState& result);
  // total = total merged with part, which belongs to a later chunk.
  void (*merge)(const AttentionState& total, const AttentionState& part, int64_t num_rows,
                int64_t head_dim);
};

// Cuts args into tiles and chunks, shares them among the threads, writes args.out.
void run_attention_plan(const AttentionArgs& args, const AttentionSteps& steps, Exec& exec);

AttentionSteps attention_steps_avx2();
AttentionSteps attention_steps_avx512();
AttentionSteps attention_steps_amx();

}  // namespace lathe
