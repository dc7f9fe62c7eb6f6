// Causal grouped-query attention of flat rows over a paged cache (Kwon et al. 2023), as a running
// (online) softmax in fp32 over blocks of keys.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/registry.h"

namespace lathe {

// The keys and values of one layer of one block of tokens, as fp32 or bf16, ready for the dot
// product (keys after RoPE): [num_kv_heads][block_size][head_dim].
struct KvBlockView {
  const void* keys = nullptr;
  const void* values = nullptr;
};

enum class KvElement { kF32, kBF16 };

// One run of query rows that belong to one sequence and have consecutive positions.
struct AttentionSegment {
  int64_t row_begin = 0;       // in q and out
  int64_t num_rows = 0;
  int64_t first_position = 0;  // of row_begin
  const KvBlockView* blocks = nullptr;  // block b holds positions [b * block_size, ...)
};

struct AttentionArgs {
  const float* q;   // [num_rows, num_heads, head_dim], row stride q_stride
  int64_t q_stride;
  float* out;       // [num_rows, num_heads * head_dim], dense
  std::span<const AttentionSegment> segments;
  KvElement element;
  int64_t num_heads, num_kv_heads, head_dim, block_size;
  float scale;           // on q.k
  float softcap;         // tanh soft-cap of the scores; 0: none
  int64_t sliding_window;  // 0: none; else a row sees itself and window - 1 positions before it
};

// Every row must have its own key and value in the cache already. Rows are independent: a row alone
// gives the same bits as in a batch or in a longer chunk.
void attention(const AttentionArgs& args, Exec& exec);
std::span<const Kernel<AttentionArgs>> attention_kernels();

}  // namespace lathe
