#include "base/error.h"
#include "kernels/embedding/embedding_cuda.h"
#include "kernels/quantize_activations/row_vectors.cuh"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

constexpr int kThreads = 128;

// One block for each token and run of kThreads vectors.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    embedding_rows(const T* table, const int32_t* token_ids, int64_t vocab_size,
                   int64_t hidden_size, float scale, float* hidden) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kVectorCols;
  if (column >= hidden_size) return;
  const int64_t id = token_ids[blockIdx.x];
  float x[kVectorCols];
#pragma unroll
  for (int i = 0; i < kVectorCols; ++i) x[i] = __uint_as_float(0x7fc00000u);
  if (id >= 0 && id < vocab_size) {
    load_vector(table + id * hidden_size + column, x);
#pragma unroll
    for (int i = 0; i < kVectorCols; ++i) x[i] = __fmul_rn(scale, x[i]);
  }
  store_vector(hidden + int64_t{blockIdx.x} * hidden_size + column, x);
}

template <typename T>
void launch(const EmbeddingCudaArgs& args, CudaStream stream) {
  const int64_t runs = (args.hidden_size / kVectorCols + kThreads - 1) / kThreads;
  launch_dependent("embedding_rows", embedding_rows<T>,
                   dim3(static_cast<unsigned>(args.num_tokens), static_cast<unsigned>(runs)),
                   dim3(kThreads), 0, stream, 1, static_cast<const T*>(args.table), args.token_ids,
                   args.vocab_size, args.hidden_size, args.scale, args.hidden);
}

}  // namespace

void embedding_lookup_cuda(const EmbeddingCudaArgs& args, CudaStream stream) {
  if (args.hidden_size < kVectorCols || args.hidden_size % kVectorCols != 0 ||
      args.vocab_size < 1 || args.num_tokens < 0) {
    fail(ErrorCode::kInvalidArgument, "an embedding of ", args.num_tokens, " tokens from [",
         args.vocab_size, ", ", args.hidden_size, "]");
  }
  if (args.num_tokens == 0) return;
  switch (args.element) {
    case CudaElement::kF32:
      return launch<float>(args, stream);
    case CudaElement::kBF16:
      return launch<__nv_bfloat16>(args, stream);
    case CudaElement::kE4M3:
      fail(ErrorCode::kInvalidArgument, "an embedding table of E4M3 codes");
  }
}

}  // namespace lathe
