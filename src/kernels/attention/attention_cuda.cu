#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_cuda_kernels.h"

namespace lathe {
namespace {

void check(const AttentionCudaArgs& a, const CudaBatch& batch) {
  if (a.head_dim < 8 || a.head_dim > 256 || a.head_dim % 8 != 0) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: head_dim ", a.head_dim,
         " (multiples of 8 up to 256)");
  }
  if (a.num_kv_heads < 1 || a.num_heads < 1 || a.num_heads % a.num_kv_heads != 0 ||
      a.num_heads / a.num_kv_heads > 16) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: ", a.num_heads, " query heads on ",
         a.num_kv_heads, " KV heads (whole groups of up to 16)");
  }
  if (a.q_stride < a.num_heads * a.head_dim || a.q_stride % 8 != 0 ||
      a.element == CudaElement::kE4M3) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: row stride ", a.q_stride,
         " of q, or its element");
  }
  if (batch.num_rows < 0 || batch.num_sequences < 0 || batch.max_rows_per_sequence < 0 ||
      batch.max_context < 0 || batch.num_sequences > 65535) {
    fail(ErrorCode::kInvalidArgument, "attention on the GPU: ", batch.num_rows, " rows of ",
         batch.num_sequences, " sequences, at most ", batch.max_rows_per_sequence,
         " rows each, context ", batch.max_context);
  }
}

}  // namespace

int64_t attention_cuda_workspace_bytes(const AttentionCudaArgs& args, const CudaBatch& batch) {
  check(args, batch);
  return 0;
}

void attention_cuda(const AttentionCudaArgs& args, const CudaBatch& batch, const KvCudaLayer& layer,
                    CudaStream stream) {
  check(args, batch);
  attention_plain_cuda(args, batch, layer, stream);
}

}  // namespace lathe
