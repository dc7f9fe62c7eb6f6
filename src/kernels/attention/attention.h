// Causal grouped-query attention of flat rows over a paged cache:
//   s[t] = scale * dot(q, k[t]), soft-capped: cap * tanh(s / cap)
//   out  = sum_t softmax(s)[t] * v[t]   over the positions t that the row sees
// A row at position p sees (p - sliding_window, p], or [0, p] without a window.
// Sources: Ainslie et al., "GQA" (2023); Kwon et al., "PagedAttention" (2023); Dao,
// "FlashAttention" (2022) for the partial softmax that the fast versions merge.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/attention/kv_layout.h"
#include "kernels/registry.h"

namespace lathe {

// The keys (after RoPE) and values of one layer of one block of kBlockSize tokens, for all KV
// heads, laid out as kv_layout.h and kv_codes.h say: [num_kv_heads][one head]. 64-byte aligned.
struct KvBlockView {
  const void* keys = nullptr;
  const void* values = nullptr;
};

// One run of query rows that belong to one sequence and have consecutive positions.
struct AttentionSegment {
  int64_t row_begin = 0;  // in q and out
  int64_t num_rows = 0;
  int64_t first_position = 0;           // of row_begin
  const KvBlockView* blocks = nullptr;  // block b holds positions [b * kBlockSize, ...); blocks
                                        // that no row sees are not touched and may be null
  // Exact rows of the first kLiveSinks positions, read instead of their codes (kv_codes.h):
  // [num_kv_heads][kv_sink_bytes()]. Null: there are codes alone.
  KvBlockView sinks = {};
};

// What the keys of a cache are without: RoPE_p(offset) at position p, added where scores are taken.
// Codes of keys whose biases are much larger than what tells them apart would be useless (Qwen2).
// RoPE turns with the position, so the scores of an offset with one query are
//   sum_j C_j cos(p f_j) + S_j sin(p f_j),  p = middle of the block + x,  x = -15.5, -14.5,
//   ... 15.5.
// With C, S turned to the middle, the sum over cosines is the same for x and -x, and the sum over
// sines changes its sign: two small products give a block's scores, each for half of its tokens.
struct KeyOffset {
  const float* offset = nullptr;   // [num_kv_heads, head_dim], before RoPE; null: none
  const float* middles = nullptr;  // [num_blocks, rotary_dim]: cos, then sin, of blocks' middles
  const float* from_middle = nullptr;  // [rotary_dim, kBlockSize / 2]: cos, then sin, of 0.5,
                                       // 1.5, ... times RoPE's attention factor
  int64_t num_blocks = 0;
  int64_t rotary_dim = 0;
};

struct AttentionArgs {
  const float* q = nullptr;  // [num_rows, num_heads, head_dim], row stride q_stride
  int64_t q_stride = 0;      // >= num_heads * head_dim; 0 means exactly that
  float* out = nullptr;      // [num_rows, num_heads * head_dim], dense; not q
  std::span<const AttentionSegment> segments = {};
  KvElement element = KvElement::kF32;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;    // divides num_heads; query head h reads KV head
                               // h / (num_heads / num_kv_heads)
  int64_t head_dim = 0;        // even; a multiple of 8 for the fast versions and for codes
  float scale = 0;             // on q.k
  float softcap = 0;           // 0: none
  int64_t sliding_window = 0;  // 0: none
  KeyOffset key_offset = {};
};

// Every row must have its own key and value in the cache already. Rows are independent: a row alone
// gives the same bits as in a batch or in a longer chunk, with any number of threads. What a row
// does not see, including the unwritten rest of the last block, may hold anything, NaN too.
// Allocates from exec.workspace only. Throws kInvalidArgument on a bad size, kUnsupported on a
// head_dim that the format cannot have.
void attention(const AttentionArgs& args, Exec& exec);
std::span<const Kernel<AttentionArgs>> attention_kernels();

void attention_ref(const AttentionArgs& args, Exec& exec);

}  // namespace lathe
