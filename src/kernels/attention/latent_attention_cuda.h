// latent_attention.h on a GPU: decode attention, one row a sequence, on the blocks of a coded cache
// as they lie (docs/plans/aqua-kv.md, "Latents without rebuilding"). Nothing is rebuilt in memory.
//
//   coded blocks   a warpgroup takes 64 tokens for one KV head. The grid vectors of the keys' codes
//                  and the latent are the left operand of
//                      K^ = scale (vectors x Hadamard) + z x U^T + u
//                  on tensor cores; K^ stays in registers, is turned by its place among the 64, and
//                  meets queries that are turned back by where the 64 begin. Weighted sums are
//                  those of z and of the values' grid vectors: 2 (rank + head_dim) numbers a query.
//   exact blocks   sinks and window, in fp32
//   merge          parts of a context as one; the values' predictor and Hadamard matrix, once
//
// Values must be predicted from the latent alone (`fit-kv --value-inputs latent`): then a KV head
// has no use for the others' codes.
// All functions only enqueue work on a stream.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/kv_rows/kv_rows_cuda.h"

namespace lathe {

// One layer's cache. Pointers are to device memory.
struct LatentKvCuda {
  int64_t rank = 0;
  const void* key_image = nullptr;       // latent_key_image()
  const float* key_bias = nullptr;       // u [d], or null
  const float* value_weight = nullptr;   // latent_value_weight()
  const float* value_bias = nullptr;     // b [d], or null
  const float* points = nullptr;         // [16][2], of the rows' codes
  const float* latent_points = nullptr;  // [16]

  // A block table's entry below num_coded_blocks is a block of codes; the other entries, and
  // first_live + sink_blocks[i], are blocks of `exact`.
  KvCodesCuda latents = {}, keys = {}, values = {};  // `blocks`, pieces: not read
  int64_t num_coded_blocks = 0;
  KvCudaLayer exact = {};  // bf16, keys behind RoPE
  // [num_coded_blocks]: where the first num_sinks tokens of the sequence lie that begins with this
  // coded block; -1: in the codes.
  const int32_t* sink_blocks = nullptr;
  int64_t first_live = 0;
  int64_t num_sinks = 0;

  const float* cos = nullptr;  // [positions, head_dim / 2]
  const float* sin = nullptr;
};

// What latent_attention_cuda() can read: rows of 2-bit pairs behind a Hadamard matrix with
// one-byte scales, 4-bit latents of some ranks.
struct LatentKvShape {
  RowShape shape = {};
  RowFormat key_format = {}, value_format = {};
  bool with_sigma = false;
  int64_t rank = 0;
  int latent_bits = 0;
  int64_t rotary_dim = 0;
  int64_t num_heads = 0;  // query heads, up to 8 for each KV head
};
bool can_attend_to_latents(const LatentKvShape& shape);

// U [d, rank] and the latents' steps [rank] as the kernel multiplies by them, for each KV head a
// matrix [head_dim + rank, head_dim] in bf16 with the Hadamard matrix above it.
std::vector<uint16_t> latent_key_image(const RowShape& shape, int64_t rank, const float* weight,
                                       const float* step);
// C [d, rank] times the latents' steps, turned: [rank, d].
std::vector<float> latent_value_weight(const RowShape& shape, int64_t rank, const float* weight,
                                       const float* step);

struct LatentAttentionCudaArgs {
  const void* q = nullptr;  // bf16 [num_rows, num_heads * head_dim], behind RoPE
  int64_t q_stride = 0;     // in elements
  void* out = nullptr;      // bf16 [num_rows, num_heads * head_dim], dense
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0;
  float* workspace = nullptr;  // latent_attention_workspace_floats()
};

int64_t latent_attention_workspace_floats(const LatentAttentionCudaArgs& args,
                                          const CudaBatch& batch, const LatentKvCuda& kv);
// Sequences have one row or none. Throws kUnsupported where can_attend_to_latents() is false.
void latent_attention_cuda(const LatentAttentionCudaArgs& args, const CudaBatch& batch,
                           const LatentKvCuda& kv, CudaStream stream);

}  // namespace lathe
