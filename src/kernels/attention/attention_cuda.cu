#include <algorithm>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_cuda_kernels.h"
#include "kernels/attention/attention_splits.h"

namespace lathe {
namespace {

void check(const AttentionCudaArgs& a, const CudaBatch& batch) {
  if (a.head_dim < 2 || a.head_dim > 256 || a.head_dim % 2 != 0) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: head_dim ", a.head_dim,
         " (even numbers up to 256)");
  }
  if (a.num_kv_heads < 1 || a.num_heads < 1 || a.num_heads % a.num_kv_heads != 0 ||
      a.num_heads / a.num_kv_heads > 16) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: ", a.num_heads, " query heads on ",
         a.num_kv_heads, " KV heads (whole groups of up to 16)");
  }
  if (a.q_stride < a.num_heads * a.head_dim || a.q_stride % 2 != 0 ||
      a.element == CudaElement::kE4M3) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: row stride ", a.q_stride,
         " of q, or its element");
  }
  if (batch.num_rows < 0 || batch.num_sequences < 0 || batch.max_rows_per_sequence < 0 ||
      batch.max_context < 0 || batch.num_sequences > 65535 || batch.max_context > 1 << 30) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: ", batch.num_rows, " rows of ",
         batch.num_sequences, " sequences, at most ", batch.max_rows_per_sequence,
         " rows each, context ", batch.max_context);
  }
  const int64_t queries =
      std::min(batch.max_rows_per_sequence, kAttentionDecodeRows) * (a.num_heads / a.num_kv_heads);
  const int64_t counters = batch.num_sequences * a.num_kv_heads * ((queries + 15) / 16);
  if (counters * 4 > kDecodeCounterBytes) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: ", batch.num_sequences,
         " sequences with up to ", batch.max_rows_per_sequence,
         " rows each are too many for a step");
  }
}

}  // namespace

bool has_fast_attention(const AttentionCudaArgs& args, KvCudaElement element) {
  const int64_t d = args.head_dim;
  return args.element == CudaElement::kBF16 && element != KvCudaElement::kF32 &&
         !kv_cuda_is_coded(element) && args.q_stride % 8 == 0 &&
         (d == 64 || d == 96 || d == 128 || d == 256);
}

DecodeGrid decode_grid(const AttentionCudaArgs& args, const CudaBatch& batch, bool of_codes) {
  const int64_t rows = std::min(batch.max_rows_per_sequence, kAttentionDecodeRows);
  DecodeGrid grid;
  grid.num_queries = rows * (args.num_heads / args.num_kv_heads);
  grid.num_splits = of_codes ? max_splits<kCodePart>(batch.max_context, args.sliding_window, rows)
                             : max_splits(batch.max_context, args.sliding_window, rows);
  const int64_t partials =
      batch.num_sequences * args.num_kv_heads * grid.num_queries * grid.num_splits;
  grid.statistics_bytes = (partials * 8 + 255) / 256 * 256;
  grid.sums_bytes = partials * args.head_dim * 4;
  return grid;
}

// One block merges all queries of its tile: quick for few, while many wait for each other.
bool decode_merges_apart(const DecodeGrid& grid) {
  return grid.num_splits > 1 && grid.num_queries > 8;
}

int64_t decode_blocks_per_pair(int64_t pairs, int64_t max_context, int64_t num_splits) {
  // Three rounds over a GPU that holds some 400 blocks; but a long context among many short ones
  // still in 16 pieces, if they have 256 tokens. Not one block for each part that a bound allows:
  // to start and end a block costs microseconds, and one without work still a nanosecond.
  constexpr int64_t kBlocks = 1200, kPieces = 16, kTokens = 256;
  int64_t blocks =
      std::max(kBlocks / std::max<int64_t>(pairs, 1), std::min(kPieces, max_context / kTokens));
  return std::clamp<int64_t>(blocks, 1, std::max<int64_t>(num_splits, 1));
}

int64_t attention_cuda_workspace_bytes(const AttentionCudaArgs& args, const CudaBatch& batch,
                                       KvCudaElement cache) {
  check(args, batch);
  const DecodeGrid grid = decode_grid(args, batch, kv_cuda_is_coded(cache));
  return kDecodeCounterBytes + grid.statistics_bytes + (grid.sums_bytes + 255) / 256 * 256 +
         (kv_cuda_is_coded(cache) ? prefill_codes_bytes(args, batch) : 0);
}

namespace {

void attend_to_codes(const AttentionCudaArgs& args, const CudaBatch& batch,
                     const KvCudaLayer& layer, CudaStream stream) {
  if (args.head_dim % 8 != 0 || layer.grid == nullptr) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: codes of head_dim ", args.head_dim,
         " (multiples of 8), or without their grid");
  }
  const KeyOffsetCuda& key = args.key_offset;
  if (key.offset != nullptr &&
      (key.rotary_dim < 0 || key.rotary_dim > args.head_dim || key.rotary_dim % 2 != 0 ||
       (key.products == nullptr && !batch.only_long_runs))) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: an offset of keys with rotary_dim ",
         key.rotary_dim, " of ", args.head_dim, ", or without the queries' products");
  }
  const bool long_runs = batch.max_rows_per_sequence > kAttentionDecodeRows;
  if (long_runs) attention_prefill_codes_cuda(args, batch, layer, stream);
  if (batch.only_long_runs) return;
  if (has_fast_code_attention(args)) {
    attention_decode_codes_sm90(args, batch, layer, stream);
  } else {
    attention_codes_plain_cuda(args, batch, layer, long_runs, stream);
  }
}

}  // namespace

void attention_cuda(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
                    CudaStream stream) {
  check(args, batch);
  if (batch.num_rows == 0 || batch.num_sequences == 0 || batch.max_context == 0) return;
  if (kv_cuda_is_coded(layer.element)) return attend_to_codes(args, batch, layer, stream);
  if (args.key_offset.offset != nullptr) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: a cache that keeps key offsets");
  }
  if (!has_fast_attention(args, layer.element)) {
    const bool long_runs = batch.max_rows_per_sequence > kAttentionDecodeRows;
    if (long_runs) attention_tiles_cuda(args, batch, layer, stream);
    if (!batch.only_long_runs) attention_plain_cuda(args, batch, layer, long_runs, stream);
    return;
  }
  const bool e4m3 = layer.element == KvCudaElement::kE4M3;
  if (batch.max_rows_per_sequence > kAttentionDecodeRows) {
    (e4m3 ? attention_prefill_e4m3_sm90 : attention_prefill_bf16_sm90)(args, batch, layer, stream);
  }
  if (batch.only_long_runs) return;
  // Whatever the bound, there may be sequences with few rows.
  (e4m3 ? attention_decode_e4m3_sm90 : attention_decode_bf16_sm90)(args, batch, layer, stream);
}

}  // namespace lathe
