// Rotary embedding, the paged cache and causal grouped-query attention on the GPU. The maths is
// that of attention.h and rope.h; a row at position p sees (p - sliding_window, p], or [0, p].
//
// All functions only enqueue work on a stream, allocate nothing, and choose their launches by the
// host-side bounds of CudaBatch alone, so a step can be captured in a CUDA graph and replayed with
// other contents. They start early where the kernel before lets them (programmatic launch).
#pragma once
#include <cstdint>

#include "kernels/attention/kv_layout_cuda.h"
#include "kernels/linear/linear_cuda.h"
#include "tensor/cuda_stream.h"

namespace lathe {

struct KvCudaGrid;  // kv_codes_cuda.h

// The keys (after RoPE) and values of one layer of the cache, [num_blocks][num_kv_heads][one head
// of a block, kv_layout_cuda.h], 128-byte aligned. Block b of all heads is one piece of
// num_kv_heads * kv_cuda_head_bytes() bytes, so blocks copy as a whole.
struct KvCudaLayer {
  KvCudaElement element = KvCudaElement::kBF16;
  void* keys = nullptr;
  void* values = nullptr;
  float key_scale = 1;  // kE4M3: what a stored number is multiplied by
  float value_scale = 1;
  const KvCudaGrid* grid = nullptr;  // codes: what they stand for, on the device
};

// The rows of one step. Pointers are to device memory. A sequence's rows are consecutive and so are
// their positions; the cache holds (once rope_append_cuda has run) every position they see.
struct CudaBatch {
  const int32_t* positions = nullptr;     // [num_rows]
  const int32_t* row_sequence = nullptr;  // [num_rows], -1: a row of padding, skipped
  const int32_t* query_begin = nullptr;   // [num_sequences + 1]; a sequence may have no rows
  const int32_t* block_tables = nullptr;  // [num_sequences, table_stride], block ids; entries of
                                          // blocks that no row sees are not read
  int64_t table_stride = 0;
  // [num_sequences]: the block with the exact rows of a sequence's first kLiveSinks positions,
  // which are written beside their codes and read instead of them (kv_codes_cuda.h). Null: there
  // are codes alone. Not read for other caches.
  const int32_t* sink_blocks = nullptr;
  int64_t num_rows = 0;
  int64_t num_sequences = 0;
  // No sequence has 1 to kAttentionDecodeRows rows (a step of prompts alone): saves a launch.
  bool only_long_runs = false;
  // In the host's memory, for a cache of codes: the sequences with more than kAttentionDecodeRows
  // rows. Null: those are not known, and all sequences cost launches.
  const int32_t* long_runs = nullptr;
  int64_t num_long_runs = 0;
  // Bounds. What lies above them in the device's numbers is not computed.
  int64_t max_rows_per_sequence = 1;
  int64_t max_context = 0;  // tokens, the largest position + 1. Close bounds make small grids and
                            // workspaces: round up to a power of two, not to the model's limit.
};

// What the keys of a cache of codes are without (KeyOffset, attention.h), on the device. C and S
// are turned to a block's beginning here, and meet cos(i f_j), sin(i f_j), i < kBlockSize.
// Positions of the cache lie below num_blocks * kBlockSize. Tables have cos, then sin, of head_dim
// / 2 pairs; those behind rotary_dim / 2 do not turn: 1 and 0.
struct KeyOffsetCuda {
  const float* offset = nullptr;        // [num_kv_heads, head_dim], before RoPE; null: none
  const float* block_starts = nullptr;  // [num_blocks, head_dim], 16-byte aligned
  const float* in_block = nullptr;      // [head_dim, kBlockSize]
  int64_t rotary_dim = 0;
  // [num_rows, num_heads, head_dim], what rope_append_cuda() makes of each query: C, then S, half a
  // head each. The first of the pairs that do not turn has the rest of q . offset as its C. Of rows
  // of long runs it is not read.
  float* products = nullptr;
};

struct RopeAppendArgs {
  // [num_rows, (num_heads + 2 num_kv_heads) * head_dim]: q | k | v. q is normed and rotated in
  // place; k and v go to the cache, rounded to nearest even (kE4M3 saturates), and stay as they
  // are. For a cache of codes q is multiplied by the Hadamard matrix (kv_rotate()) behind all that,
  // as attention_cuda() wants it.
  void* qkv = nullptr;
  CudaElement element = CudaElement::kBF16;  // or kF32
  int64_t stride = 0;                        // in elements, a multiple of 2
  const float* q_norm = nullptr;             // [head_dim] RMSNorm gain per head, or null
  const float* k_norm = nullptr;
  float eps = 0;
  const float* cos = nullptr;  // [num_rows, rotary_dim / 2]
  const float* sin = nullptr;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;    // even, <= 256
  int64_t rotary_dim = 0;  // even, <= head_dim; half-split pairs (rope.h)
  // A cache of codes: [num_kv_heads, head_dim], taken from keys before RoPE, behind their norm.
  // Null: nothing.
  const float* key_offset = nullptr;
  float* offset_products = nullptr;  // KeyOffsetCuda::products, or null: nobody reads them
};

// Throws kInvalidArgument on a bad size.
void rope_append_cuda(const RopeAppendArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
                      CudaStream stream);

// cos and sin of position * inverse_frequencies[j], times attention_factor, in double and rounded
// once: [num_rows, half] each. Rows with a negative position get zeros.
void rope_tables_cuda(const float* inverse_frequencies, float attention_factor, int64_t half,
                      const int32_t* positions, int64_t num_rows, float* cos, float* sin,
                      CudaStream stream);

struct AttentionCudaArgs {
  // [num_rows, num_heads * head_dim]; for a cache of codes, heads times the Hadamard matrix, as
  // rope_append_cuda() leaves them. The result is not rotated.
  const void* q = nullptr;
  CudaElement element = CudaElement::kBF16;  // of q and out; kF32 runs in plain fp32 arithmetic
  int64_t q_stride = 0;                      // in elements, even; fast if a multiple of 8
  void* out = nullptr;    // [num_rows, num_heads * head_dim], dense; rows of padding are left alone
  int64_t num_heads = 0;  // up to 16 per KV head
  int64_t num_kv_heads = 0;  // divides num_heads
  int64_t head_dim = 0;      // even, <= 256; 64, 96, 128 and 256 have fast versions
  float scale = 0;
  float softcap = 0;              // 0: none
  int64_t sliding_window = 0;     // 0: none
  KeyOffsetCuda key_offset = {};  // of a cache of codes
  // The kernel before this one in the stream is rope_append_cuda(), and what it does not write
  // itself (positions, tables, the cache before this step's rows) was written before it began.
  // Reading the cache then starts while it still runs.
  bool follows_rope_append = false;
  // attention_cuda_workspace_bytes(), 256-byte aligned. Zero it once after it is allocated; from
  // then on nobody else writes there. Calls on one stream may share it, whatever their sizes.
  void* workspace = nullptr;
};

// Never falls when a bound of the batch grows. `cache`: of the layers to be read. For codes and a
// batch with long runs there is room for one sequence's keys and values of one layer as numbers.
int64_t attention_cuda_workspace_bytes(const AttentionCudaArgs& args, const CudaBatch& batch,
                                       KvCudaElement cache = KvCudaElement::kBF16);

// A row's bits depend on its own q and the keys and values it sees, not on the other rows, with one
// exception: sequences with more than kAttentionDecodeRows rows in the step take another kernel.
// What no row of a sequence sees may hold anything, NaN too.
// Throws kInvalidArgument on a bad size.
inline constexpr int64_t kAttentionDecodeRows = 16;
void attention_cuda(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
                    CudaStream stream);

}  // namespace lathe
