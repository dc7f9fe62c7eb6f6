// latent_attention.h on a GPU: decode attention of several sequences on their coded blocks, one row
// each. A block of the grid takes some coded blocks of one sequence for one KV head: per 32 tokens
//
//   codes -> z (shared memory) -> U z on tensor cores -> + u + decoded residual -> RoPE -> scores
//   -> weights -> weighted sums of z, of the keys' grid vectors of all heads, of the values' own
//
// and a second kernel merges the parts, turns the sums of grid vectors, and multiplies by the
// values' predictor. Codes are all that is read, 1.3 KB a token at 1024 numbers and 2 bits.
// All functions only enqueue work on a stream.
#pragma once
#include <cstdint>

#include "kernels/kv_rows/kv_rows_cuda.h"

namespace lathe {

// Pointers are to device memory.
struct LatentAttentionCudaArgs {
  KvRowsCudaFormat key = {}, value = {};  // key.bias is u; value.bias is not read (absorbed_bias)
  KvLatentCudaFormat latent = {};
  int64_t rank_stride = 0;                 // of key_weight, a multiple of 16, at least the rank
  const void* key_weight = nullptr;        // U, bf16 [d, rank_stride], zeros behind the rank
  const void* value_key_weight = nullptr;  // B, bf16 [d, d], or null
  const float* absorbed_latent = nullptr;  // [d, rank], absorb_latent_values()
  const float* absorbed_bias = nullptr;    // [d]

  // Codes by blocks; KvCodesCuda::blocks is not read: block b of sequence s, positions from
  // b * kBlockSize on, is blocks[s * table_stride + b].
  KvCodesCuda latent_codes = {}, key_codes = {}, value_codes = {};
  const int32_t* blocks = nullptr;
  int64_t table_stride = 0;
  const int32_t* num_tokens = nullptr;  // [num_sequences], of codes; 0: none
  int64_t num_sequences = 0;
  int64_t max_tokens = 0;  // bound; what lies above it is not read
  int64_t num_sinks = 0;   // positions below it are left out

  const float* cos = nullptr;  // [positions, rotary_dim / 2]
  const float* sin = nullptr;
  int64_t rotary_dim = 0;
  const void* q = nullptr;  // bf16 [num_sequences, num_heads * head_dim], behind RoPE
  int64_t q_stride = 0;     // in elements
  int64_t num_heads = 0;    // up to 16 for each KV head
  float scale = 0;

  float* workspace = nullptr;  // latent_attention_workspace_floats()
  float* out = nullptr;        // [num_sequences, num_heads, head_dim]; zeros where nothing is seen
  float* log_sum = nullptr;    // [num_sequences, num_heads]; minus infinity there
};

int64_t latent_attention_workspace_floats(const LatentAttentionCudaArgs& args);
// Throws kInvalidArgument on sizes that cannot be, kUnsupported where shared memory does not hold
// the sums of one KV head's queries.
void latent_attention_cuda(const LatentAttentionCudaArgs& args, CudaStream stream);

}  // namespace lathe
