// What attention_cuda() chooses from. Internal to kernels/attention and its tests and benchmarks;
// only for files that are built with LATHE_CUDA.
#pragma once
#include <cuda_runtime.h>

#include "kernels/attention/attention_cuda.h"
#include "tensor/cuda_check.h"

namespace lathe {

// Any head size and every combination of elements, fp32 arithmetic, no workspace: the reference of
// the fast versions on the device, and what runs where they do not apply. short_runs_only: leaves
// sequences with more than kAttentionDecodeRows rows in the step alone.
void attention_plain_cuda(const AttentionCudaArgs& args, const CudaBatch& batch,
                          const KvCudaLayer& layer, bool short_runs_only, CudaStream stream);
// The same for the sequences that short_runs_only leaves alone, with keys and values in shared
// memory for 64 rows at a time.
void attention_tiles_cuda(const AttentionCudaArgs& args, const CudaBatch& batch,
                          const KvCudaLayer& layer, CudaStream stream);

// The fast versions: bf16 queries on a bf16 or E4M3 cache, head_dim 64, 96, 128 or 256.
bool has_fast_attention(const AttentionCudaArgs& args, KvCudaElement element);

// Sequences with 1 to kAttentionDecodeRows rows in the step; the others are left alone.
struct DecodeGrid {
  int64_t num_splits = 0;   // attention_splits.h, that one sequence may see
  int64_t num_queries = 0;  // (row, head) pairs of one sequence and KV head
  int64_t statistics_bytes = 0;
  int64_t sums_bytes = 0;
};
// At the start of the workspace, whatever the sizes of a call, so that they stay zero.
inline constexpr int64_t kDecodeCounterBytes = 1 << 18;
DecodeGrid decode_grid(const AttentionCudaArgs& args, const CudaBatch& batch,
                       bool of_codes = false);
// Whether merging the parts of a query is left to a kernel of its own.
bool decode_merges_apart(const DecodeGrid& grid);
// How many blocks of the grid share the parts of one sequence, KV head and group of queries.
int64_t decode_blocks_per_pair(int64_t pairs, int64_t max_context, int64_t num_splits);
void attention_decode_bf16_sm90(const AttentionCudaArgs& args, const CudaBatch& batch,
                                const KvCudaLayer& layer, CudaStream stream);
void attention_decode_e4m3_sm90(const AttentionCudaArgs& args, const CudaBatch& batch,
                                const KvCudaLayer& layer, CudaStream stream);

// Sequences with more than kAttentionDecodeRows rows in the step; the others are left alone.
void attention_prefill_bf16_sm90(const AttentionCudaArgs& args, const CudaBatch& batch,
                                 const KvCudaLayer& layer, CudaStream stream);
void attention_prefill_e4m3_sm90(const AttentionCudaArgs& args, const CudaBatch& batch,
                                 const KvCudaLayer& layer, CudaStream stream);

// --- a cache of codes ---------------------------------------------------------------------------

// What rope_append_cuda() does for such a cache.
void rope_append_codes_cuda(const RopeAppendArgs& args, const CudaBatch& batch,
                            const KvCudaLayer& layer, CudaStream stream);
// Any head size, fp32 arithmetic, no workspace: the reference on the device of the two below.
void attention_codes_plain_cuda(const AttentionCudaArgs& args, const CudaBatch& batch,
                                const KvCudaLayer& layer, bool short_runs_only, CudaStream stream);
// bf16 queries, head_dim 64 or 128.
bool has_fast_code_attention(const AttentionCudaArgs& args);
void attention_decode_codes_sm90(const AttentionCudaArgs& args, const CudaBatch& batch,
                                 const KvCudaLayer& layer, CudaStream stream);
// Long runs, any size: the sequences' keys and values as numbers in the workspace, one sequence
// after the other, and the kernels above on those.
void attention_prefill_codes_cuda(const AttentionCudaArgs& args, const CudaBatch& batch,
                                  const KvCudaLayer& layer, CudaStream stream);
// The part of the workspace that these numbers take, behind that of decode_grid().
int64_t prefill_codes_bytes(const AttentionCudaArgs& args, const CudaBatch& batch);

}  // namespace lathe
