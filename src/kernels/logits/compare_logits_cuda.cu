#include "base/error.h"
#include "kernels/logits/compare_logits_cuda.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int kThreads = 512;

// Sum over the block, for every thread, in an order that does not depend on anything.
__device__ double block_sum(double value, double* shared) {
  __syncthreads();
  shared[threadIdx.x] = value;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) shared[threadIdx.x] += shared[threadIdx.x + step];
  }
  __syncthreads();
  return shared[0];
}

struct Top {
  float value;
  int32_t token;
};
// NaN wins, so that it is seen.
__device__ Top better(Top a, Top b) {
  if (isnan(a.value) || isnan(b.value)) return isnan(a.value) ? a : b;
  if (a.value != b.value) return a.value > b.value ? a : b;
  return a.token < b.token ? a : b;
}

__device__ Top block_top(const float* row, int64_t count, Top* shared) {
  Top top = {-INFINITY, 0};
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    top = better(top, Top{row[i], static_cast<int32_t>(i)});
  }
  __syncthreads();
  shared[threadIdx.x] = top;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) {
      shared[threadIdx.x] = better(shared[threadIdx.x], shared[threadIdx.x + step]);
    }
  }
  __syncthreads();
  return shared[0];
}

__device__ double log_norm(const float* row, int64_t count, float top, double* shared) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += expf(row[i] - top);
  return static_cast<double>(top) + log(block_sum(sum, shared));
}

// A block a row.
__global__ void compare_rows(CompareLogitsArgs args) {
  __shared__ double sums[kThreads];
  __shared__ Top tops[kThreads];
  const int64_t row = blockIdx.x;
  const int32_t target = args.targets[row];
  const float* model = args.model + row * args.model_vocab;
  const Top model_top = block_top(model, args.common, tops);
  const double model_norm = log_norm(model, args.common, model_top.value, sums);
  LogitComparison result = {};
  result.model_nll = model_norm - static_cast<double>(model[target]);
  if (args.reference != nullptr) {
    const float* reference = args.reference + row * args.reference_vocab;
    const Top top = block_top(reference, args.common, tops);
    const double norm = log_norm(reference, args.common, top.value, sums);
    // sum p (log p - log q); the two norms are common to all terms, and sum p = 1 up to rounding.
    const auto shift = static_cast<float>(norm);
    double difference = 0, mass = 0;
    for (int64_t i = threadIdx.x; i < args.common; i += kThreads) {
      const double p = static_cast<double>(expf(reference[i] - shift));
      difference += p * (static_cast<double>(reference[i]) - static_cast<double>(model[i]));
      mass += p;
    }
    difference = block_sum(difference, sums);
    mass = block_sum(mass, sums);
    result.kl = difference / mass - norm + model_norm;
    result.reference_nll = norm - static_cast<double>(reference[target]);
    result.same_top = top.token == model_top.token ? 1 : 0;
  }
  if (threadIdx.x == 0) args.out[row] = result;
}

}  // namespace

void compare_logits_cuda(const CompareLogitsArgs& args, CudaStream stream) {
  if (args.num_rows == 0) return;
  if (args.common < 1 || args.common > args.model_vocab ||
      (args.reference != nullptr && args.common > args.reference_vocab)) {
    fail(ErrorCode::kInvalidArgument, "logits of ", args.model_vocab, " and ", args.reference_vocab,
         " tokens compared over ", args.common);
  }
  compare_rows<<<static_cast<unsigned>(args.num_rows), kThreads, 0, stream>>>(args);
  cuda_check_launch("compare_rows");
}

}  // namespace lathe
