#include <cuda_bf16.h>

#include "base/error.h"
#include "kernels/moe/moe_cuda.h"
#include "kernels/quantize_activations/row_vectors.cuh"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

constexpr int kRouterWarps = 4;
constexpr int kScoresPerLane = kMaxExperts / 32;
constexpr int kSortThreads = 1024;
constexpr int kRowThreads = 128;
constexpr float kNegativeInfinity = -__builtin_huge_valf();

__device__ float warp_max(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, distance));
  }
  return value;
}

__device__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, distance);
  }
  return value;
}

// Orders like the number, below it NaN; never 0, which marks what was taken.
__device__ uint32_t ordered_bits(float x) {
  if (x != x) return 1;
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// A warp for each row: softmax, then one expert after the other, each the largest that is left.
__global__ void __launch_bounds__(kRouterWarps * 32)
    choose_of_row(const float* scores, int64_t num_rows, int num_experts, int per_token,
                  bool normalize, int32_t* chosen, float* chosen_weights) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t row = int64_t{blockIdx.x} * kRouterWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= num_rows) return;
  float p[kScoresPerLane];
  float largest = kNegativeInfinity;
#pragma unroll
  for (int i = 0; i < kScoresPerLane; ++i) {
    const int expert = i * 32 + lane;
    p[i] = expert < num_experts ? scores[row * num_experts + expert] : kNegativeInfinity;
    largest = fmaxf(largest, p[i]);
  }
  largest = warp_max(largest);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kScoresPerLane; ++i) {
    p[i] = i * 32 + lane < num_experts ? expf(p[i] - largest) : 0.0f;
    sum += p[i];
  }
  sum = warp_sum(sum);
#pragma unroll
  for (int i = 0; i < kScoresPerLane; ++i) p[i] = __fdiv_rn(p[i], sum);

  // Lane j keeps the j-th choice.
  int own_expert = INT32_MAX;
  float own_weight = 0;
  float chosen_sum = 0;
  for (int rank = 0; rank < per_token; ++rank) {
    uint32_t best = 0;
#pragma unroll
    for (int i = 0; i < kScoresPerLane; ++i) {
      if (i * 32 + lane < num_experts && p[i] != kNegativeInfinity) {
        best = max(best, ordered_bits(p[i]));
      }
    }
    best = __reduce_max_sync(kFullWarp, best);
    unsigned expert = UINT32_MAX;
#pragma unroll
    for (int i = kScoresPerLane - 1; i >= 0; --i) {
      const int candidate = i * 32 + lane;
      if (candidate < num_experts && p[i] != kNegativeInfinity && ordered_bits(p[i]) == best) {
        expert = static_cast<unsigned>(candidate);
      }
    }
    expert = __reduce_min_sync(kFullWarp, expert);
    float weight = 0;
#pragma unroll
    for (int i = 0; i < kScoresPerLane; ++i) {
      if (static_cast<unsigned>(i * 32 + lane) == expert) {
        weight = p[i];
        p[i] = kNegativeInfinity;  // taken; a probability never is
      }
    }
    weight = __shfl_sync(kFullWarp, weight, static_cast<int>(expert % 32));
    chosen_sum += weight;
    if (lane == rank) {
      own_expert = static_cast<int>(expert);
      own_weight = weight;
    }
  }
  // Its place among the row's experts in increasing order.
  int place = 0;
  for (int other = 0; other < per_token; ++other) {
    place += __shfl_sync(kFullWarp, own_expert, other) < own_expert ? 1 : 0;
  }
  if (lane < per_token) {
    chosen[row * per_token + place] = own_expert;
    chosen_weights[row * per_token + place] =
        normalize ? __fdiv_rn(own_weight, chosen_sum) : own_weight;
  }
}

// A block for each expert: where its entries begin is the number of choices of lower experts; its
// rows follow in order, by counting ballots.
__global__ void __launch_bounds__(kSortThreads)
    sort_by_expert(const int32_t* chosen, const float* chosen_weights, int64_t num_choices,
                   int num_experts, int per_token, ExpertRowsCuda out) {
  __shared__ int32_t warp_counts[kSortThreads / 32];
  __shared__ int32_t lower;
  wait_for_previous_kernel();
  allow_next_kernel();
  const int expert = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) lower = 0;
  __syncthreads();
  int own_lower = 0;
  for (int64_t i = threadIdx.x; i < num_choices; i += kSortThreads) {
    own_lower += chosen[i] < expert ? 1 : 0;
  }
  atomicAdd(&lower, own_lower);
  __syncthreads();
  int32_t next = lower;
  if (threadIdx.x == 0) {
    out.offsets[expert] = next;
    if (expert == num_experts - 1) out.offsets[num_experts] = static_cast<int32_t>(num_choices);
  }
  for (int64_t begin = 0; begin < num_choices; begin += kSortThreads) {
    const int64_t i = begin + threadIdx.x;
    const bool is_own = i < num_choices && chosen[i] == expert;
    const unsigned ballot = __ballot_sync(kFullWarp, is_own);
    if (lane == 0) warp_counts[warp] = __popc(ballot);
    __syncthreads();
    int before = 0;
    int total = 0;
    for (int w = 0; w < kSortThreads / 32; ++w) {
      before += w < warp ? warp_counts[w] : 0;
      total += warp_counts[w];
    }
    if (is_own) {
      const int32_t entry = next + before + __popc(ballot & ((1u << lane) - 1));
      out.rows[entry] = static_cast<int32_t>(i / per_token);
      out.weights[entry] = chosen_weights[i];
      out.entries[i] = entry;
    }
    next += total;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kRowThreads)
    gather_rows(const uint4* from, uint4* to, int64_t row_words, const int32_t* rows,
                const float* from_scales, float* to_scales) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t source = rows[blockIdx.x];
  const int64_t word = int64_t{blockIdx.y} * kRowThreads + threadIdx.x;
  if (word < row_words)
    to[int64_t{blockIdx.x} * row_words + word] = from[source * row_words + word];
  if (word == 0 && from_scales != nullptr) to_scales[blockIdx.x] = from_scales[source];
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    combine_experts(const T* results, const float* weights, const int32_t* entries, int per_token,
                    int64_t hidden_size, T* y) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t column = (int64_t{blockIdx.y} * kRowThreads + threadIdx.x) * kVectorCols;
  if (column >= hidden_size) return;
  float sum[kVectorCols] = {};
  for (int i = 0; i < per_token; ++i) {
    const int64_t entry = entries[int64_t{blockIdx.x} * per_token + i];
    const float weight = weights[entry];
    float x[kVectorCols];
    load_vector(results + entry * hidden_size + column, x);
#pragma unroll
    for (int j = 0; j < kVectorCols; ++j) sum[j] = __fadd_rn(sum[j], __fmul_rn(weight, x[j]));
  }
  store_vector(y + int64_t{blockIdx.x} * hidden_size + column, sum);
}

}  // namespace

void choose_experts_cuda(const ChooseExpertsCudaArgs& args, CudaStream stream) {
  if (args.num_experts < 1 || args.num_experts > kMaxExperts || args.experts_per_token < 1 ||
      args.experts_per_token > std::min(args.num_experts, kMaxExpertsPerToken) ||
      args.num_rows < 0 || args.num_rows * args.experts_per_token > INT32_MAX) {
    fail(ErrorCode::kInvalidArgument, "a choice of ", args.experts_per_token, " of ",
         args.num_experts, " experts for ", args.num_rows, " rows");
  }
  const auto num_experts = static_cast<int>(args.num_experts);
  const auto per_token = static_cast<int>(args.experts_per_token);
  if (args.num_rows > 0) {
    const int64_t blocks = (args.num_rows + kRouterWarps - 1) / kRouterWarps;
    launch_dependent("choose_of_row", choose_of_row, dim3(static_cast<unsigned>(blocks)),
                     dim3(kRouterWarps * 32), 0, stream, 1, args.scores, args.num_rows, num_experts,
                     per_token, args.normalize, args.chosen, args.chosen_weights);
  }
  launch_dependent("sort_by_expert", sort_by_expert, dim3(static_cast<unsigned>(num_experts)),
                   dim3(kSortThreads), 0, stream, 1, args.chosen, args.chosen_weights,
                   args.num_rows * args.experts_per_token, num_experts, per_token, args.out);
}

void gather_rows_cuda(const GatherRowsCudaArgs& args, CudaStream stream) {
  constexpr int64_t kWordBytes = sizeof(uint4);
  if (args.row_bytes < kWordBytes || args.row_bytes % kWordBytes != 0 || args.count < 0) {
    fail(ErrorCode::kInvalidArgument, "a gather of ", args.count, " rows of ", args.row_bytes,
         " bytes");
  }
  if (args.count == 0) return;
  const int64_t words = args.row_bytes / kWordBytes;
  launch_dependent("gather_rows", gather_rows,
                   dim3(static_cast<unsigned>(args.count),
                        static_cast<unsigned>((words + kRowThreads - 1) / kRowThreads)),
                   dim3(kRowThreads), 0, stream, 1, static_cast<const uint4*>(args.from),
                   static_cast<uint4*>(args.to), words, args.rows, args.from_scales,
                   args.to_scales);
}

void combine_experts_cuda(const CombineExpertsCudaArgs& args, CudaStream stream) {
  if (args.hidden_size < kVectorCols || args.hidden_size % kVectorCols != 0 || args.num_rows < 0 ||
      args.experts_per_token < 1 || args.element == CudaElement::kE4M3) {
    fail(ErrorCode::kInvalidArgument, "a sum of ", args.experts_per_token, " experts for ",
         args.num_rows, " rows of ", args.hidden_size);
  }
  if (args.num_rows == 0) return;
  const int64_t runs = (args.hidden_size / kVectorCols + kRowThreads - 1) / kRowThreads;
  const auto launch = [&](auto element) {
    using T = decltype(element);
    launch_dependent("combine_experts", combine_experts<T>,
                     dim3(static_cast<unsigned>(args.num_rows), static_cast<unsigned>(runs)),
                     dim3(kRowThreads), 0, stream, 1, static_cast<const T*>(args.results),
                     args.weights, args.entries, static_cast<int>(args.experts_per_token),
                     args.hidden_size, static_cast<T*>(args.y));
  };
  if (args.element == CudaElement::kF32) {
    launch(float{});
  } else {
    launch(__nv_bfloat16{});
  }
}

}  // namespace lathe
