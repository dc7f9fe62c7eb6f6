// Decode attention straight on the codes of a latent codec (cache/kv_layer_coder.h): no key or
// value is written anywhere. Of one layer, token t and its latent z_t, d numbers a row:
//   K^_t = U z_t + u + r_t          V^_t = B K^_t + C z_t + b + s_t      r, s: decoded residuals
// Keys need RoPE, so each is rebuilt where its score is taken. Values do not, so their predictor is
// absorbed, and the weighted sums are those of what is stored:
//   sum p V^ = B (sum p r) + (B U + C) (sum p z) + (B u + b) sum p + sum p s
// Residuals are sums of grid vectors turned by a Hadamard matrix, which is linear too: a GPU turns
// their sum, once. Source: spec design 5.1.
//
// Here the reference; latent_attention_cuda.h has the kernel.
#pragma once
#include <cstddef>
#include <cstdint>

#include "quant/row_codes.h"

namespace lathe {

// One token's query heads over the tokens [first_token, num_tokens) of one sequence. Borrows
// everything; rows are dense.
struct LatentAttentionArgs {
  RowShape shape;                      // of keys and values; width() is d
  int64_t num_heads = 0;               // query heads, whole groups for each KV head
  RowFormat key_format, value_format;  // HIGGS
  const float* key_sigma = nullptr;    // [d], or null
  const float* value_sigma = nullptr;

  int64_t rank = 0;
  int latent_bits = 4;                 // 4: points of the grid of 16; 8: whole numbers
  const float* latent_step = nullptr;  // [rank]

  const float* key_weight = nullptr;           // U [d, rank]
  const float* key_bias = nullptr;             // u [d]
  const float* value_key_weight = nullptr;     // B [d, d], or null: values do not depend on keys
  const float* value_latent_weight = nullptr;  // C [d, rank], or null
  const float* value_bias = nullptr;           // b [d]

  const std::byte* latent_codes = nullptr;  // [num_tokens] rows of rank * latent_bits / 8 bytes
  const std::byte* key_codes = nullptr;     // [num_tokens] rows as row_codes.h has them
  const std::byte* value_codes = nullptr;
  int64_t first_token = 0;
  int64_t num_tokens = 0;  // > first_token

  const float* cos = nullptr;  // [num_tokens, rotary_dim / 2], of the tokens' positions
  const float* sin = nullptr;
  int64_t rotary_dim = 0;
  const float* q = nullptr;  // [num_heads, head_dim], behind RoPE
  float scale = 0;

  float* out = nullptr;  // [num_heads, head_dim], divided by the sum of weights
  // [num_heads]: the logarithm of the sum of exp(score), by which parts of a context are merged.
  float* log_sum = nullptr;
};

// latent_weight [d, rank] = B U + C and bias [d] = B u + b, in double and rounded once: of `args`
// the weights and biases are read, no codes.
void absorb_latent_values(const LatentAttentionArgs& args, float* latent_weight, float* bias);

// Plain loops, double sums, values absorbed. Throws kInvalidArgument on sizes that cannot be.
void latent_attention_ref(const LatentAttentionArgs& args);

}  // namespace lathe
