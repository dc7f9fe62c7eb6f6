#include "base/error.h"
#include "kernels/sampling/cluster_row.cuh"
#include "kernels/sampling/sampling_cuda.h"
#include "tensor/cuda_launch.cuh"

namespace lathe {
namespace {

constexpr float kInfinity = __builtin_huge_valf();
constexpr uint32_t kLowestKey = 0x00800000u;  // of the lowest finite number; -infinity is below it
constexpr uint32_t kHighestKey = 0xffffffffu;

// exp_nonpositive() of engine/logits.h, operation by operation: a seed means the same text on both
// machines.
__device__ float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;
  const float scaled = __fmul_rn(x, 1.44269504f);
  const bool in_range = scaled > -126.0f;
  const float clamped = in_range ? scaled : -126.0f;
  const float shifted = __fadd_rn(clamped, kRound);
  const float f = __fsub_rn(clamped, __fsub_rn(shifted, kRound));
  float p = 1.52527338e-5f;
  p = __fadd_rn(__fmul_rn(p, f), 1.54035304e-4f);
  p = __fadd_rn(__fmul_rn(p, f), 1.33335581e-3f);
  p = __fadd_rn(__fmul_rn(p, f), 9.61812911e-3f);
  p = __fadd_rn(__fmul_rn(p, f), 5.55041087e-2f);
  p = __fadd_rn(__fmul_rn(p, f), 2.40226507e-1f);
  p = __fadd_rn(__fmul_rn(p, f), 6.93147181e-1f);
  p = __fadd_rn(__fmul_rn(p, f), 1.0f);
  const int n = __float_as_int(shifted) - __float_as_int(kRound);
  return in_range ? __fmul_rn(p, __int_as_float((n + 127) << 23)) : 0.0f;
}

// Bands of the nucleus search, as in engine/sampler.cpp: what lies in the bands before the last one
// that is needed is drawn from in order of token, the last one in order of rank.
constexpr int kLastBand = 160;
constexpr float kBandsPerNat = 8;
constexpr float kLastBandWeight = 2e-9f;

struct Temperature {
  float max_logit;
  float inverse;

  __device__ float weight(float logit) const {
    return exp_nonpositive(__fmul_rn(__fsub_rn(logit, max_logit), inverse));
  }
  __device__ int band(float logit) const {
    const float depth = __fmul_rn(__fmul_rn(__fsub_rn(max_logit, logit), inverse), kBandsPerNat);
    return depth < static_cast<float>(kLastBand) ? static_cast<int>(depth) : kLastBand;
  }
};

__device__ void load_slice(const SamplingCudaArgs& a, int64_t row, const ClusterRow& cluster) {
  const float* from = a.logits + row * a.stride + cluster.first_token;
  int begin = 0;
  if (reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
    const int vectors = cluster.count / 4;
#pragma unroll 8
    for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kRowThreads) {
      reinterpret_cast<float4*>(cluster.logits)[i] = reinterpret_cast<const float4*>(from)[i];
    }
    begin = vectors * 4;
  }
  for (int i = begin + static_cast<int>(threadIdx.x); i < cluster.count; i += kRowThreads) {
    cluster.logits[i] = from[i];
  }
  __syncthreads();
}

// What the request asks to change in the logits.
__device__ void adjust_logits(const SamplingCudaArgs& a, const SamplingRow& p,
                              const ClusterRow& cluster) {
  const auto own_logit = [&](int token) {
    const int i = token - cluster.first_token;
    return i >= 0 && i < cluster.count ? cluster.logits + i : nullptr;
  };
  if (p.mask_row >= 0) {
    const uint64_t* words = a.masks + int64_t{p.mask_row} * ((a.vocab_size + 63) / 64);
    for (int i = static_cast<int>(threadIdx.x); i < cluster.count; i += kRowThreads) {
      const int token = cluster.first_token + i;
      if ((words[token / 64] >> (token % 64) & 1u) == 0) cluster.logits[i] = -kInfinity;
    }
    __syncthreads();
  }
  // A token may come more than once: the first entry's thread adds them all, in order.
  for (int i = p.biases_begin + static_cast<int>(threadIdx.x); i < p.biases_end; i += kRowThreads) {
    const int token = a.biases[i].token;
    float* logit = own_logit(token);
    if (logit == nullptr) continue;
    bool is_first = true;
    for (int j = p.biases_begin; j < i && is_first; ++j) is_first = a.biases[j].token != token;
    for (int j = i; j < p.biases_end && is_first; ++j) {
      if (a.biases[j].token == token) *logit = __fadd_rn(*logit, a.biases[j].bias);
    }
  }
  __syncthreads();
  for (int i = p.counts_begin + static_cast<int>(threadIdx.x); i < p.counts_end; i += kRowThreads) {
    const SamplingCount entry = a.counts[i];
    float* logit = own_logit(entry.token);
    if (logit == nullptr) continue;
    float value = *logit;
    value =
        value > 0 ? __fdiv_rn(value, p.repetition_penalty) : __fmul_rn(value, p.repetition_penalty);
    if (entry.outputs > 0) {
      value = __fsub_rn(value, __fmul_rn(p.frequency_penalty, static_cast<float>(entry.outputs)));
      value = __fsub_rn(value, p.presence_penalty);
    }
    *logit = value;
  }
  __syncthreads();
}

__device__ uint64_t best_rank(ClusterRow& cluster) {
  Largest best;
  cluster.for_each([&](float logit, int token) {
    const uint32_t key = logit_key(logit);
    if (key != 0) best.merge({rank_of(key, token)});
  });
  return cluster.reduce(best).rank;
}

// The n most probable tokens, and the logarithm of the sum of exp(logits).
__device__ double top_logprobs(const SamplingCudaArgs& a, int64_t row, int n, ClusterRow& cluster) {
  uint64_t rank = best_rank(cluster);
  const Temperature plain = {key_logit(static_cast<uint32_t>(rank >> 32)), 1.0f};
  const double log_sum = static_cast<double>(plain.max_logit) +
                         log(cluster.sum([&](float logit, int) { return plain.weight(logit); }));
  for (int i = 0; i < n; ++i) {
    const bool is_there = (rank >> 32) >= kLowestKey;
    if (cluster.block_rank == 0 && threadIdx.x == 0) {
      const auto logit = static_cast<double>(key_logit(static_cast<uint32_t>(rank >> 32)));
      a.top_tokens[row * a.max_logprobs + i] = is_there ? rank_token(rank) : -1;
      a.top_logprobs[row * a.max_logprobs + i] =
          is_there ? static_cast<float>(logit - log_sum) : -kInfinity;
    }
    if (i + 1 == n || !is_there) continue;  // the same in all threads
    Largest next;
    cluster.for_each([&](float logit, int token) {
      const uint32_t key = logit_key(logit);
      const uint64_t own = rank_of(key, token);
      if (key != 0 && own < rank) next.merge({own});
    });
    rank = cluster.reduce(next).rank;
  }
  return log_sum;
}

// top-k, then top-p among them, both in order of rank: what stays is a smallest rank.
__device__ int draw_top_k(const SamplingRow& p, const Temperature& t, ClusterRow& cluster) {
  const auto one = [](float, int) { return 1.0f; };
  uint64_t least =
      cluster.reach_by_rank(one, 0.0, static_cast<double>(p.top_k), true, kLowestKey, kHighestKey)
          .rank;
  const auto is_kept = [&](float logit, int token) {
    return rank_of(logit_key(logit), token) >= least;
  };
  const auto kept = [&](float logit, int token) {
    return is_kept(logit, token) ? t.weight(logit) : 0.0f;
  };
  if (p.top_p < 1) {
    const double total = cluster.sum(kept);
    least = cluster
                .reach_by_rank(kept, 0.0, p.top_p * total, true, static_cast<uint32_t>(least >> 32),
                               kHighestKey)
                .rank;
  }
  const auto probable = [&](float logit, int token) {
    if (!is_kept(logit, token)) return 0.0f;
    const float weight = t.weight(logit);
    return static_cast<double>(weight) < p.min_p ? 0.0f : weight;
  };
  const double total = cluster.sum(probable);
  return rank_token(cluster
                        .reach_by_rank(probable, 0.0, p.uniform * total, false,
                                       static_cast<uint32_t>(least >> 32), kHighestKey)
                        .rank);
}

__device__ int draw_nucleus(const SamplingRow& p, const Temperature& t, ClusterRow& cluster) {
  const double target = p.top_p * cluster.sum([&](float logit, int) { return t.weight(logit); });
  const ClusterRow::Band found =
      cluster.reach_by_band([&](float logit) { return t.band(logit); },
                            [&](float logit, int) {
                              const float weight = t.weight(logit);
                              return weight < kLastBandWeight ? 0.0f : weight;
                            },
                            target, kLastBand);
  const int last_band = found.band;
  const uint64_t least =
      cluster
          .reach_by_rank(
              [&](float logit, int) { return t.band(logit) == last_band ? t.weight(logit) : 0.0f; },
              found.before, target, true, kLowestKey, kHighestKey)
          .rank;
  const auto probable = [&](float logit) {
    const float weight = t.weight(logit);
    return static_cast<double>(weight) < p.min_p ? 0.0f : weight;
  };
  const auto above = [&](float logit, int) {
    return t.band(logit) < last_band ? probable(logit) : 0.0f;
  };
  const auto beside = [&](float logit, int token) {
    const bool is_kept = t.band(logit) == last_band && rank_of(logit_key(logit), token) >= least;
    return is_kept ? probable(logit) : 0.0f;
  };
  const double sum_above = cluster.sum(above);
  const double sum_beside = cluster.sum(beside);
  const double drawn = p.uniform * (sum_above + sum_beside);
  if (drawn < sum_above || sum_beside == 0) return cluster.reach_by_token(above, drawn);
  return rank_token(
      cluster.reach_by_rank(beside, sum_above, drawn, false, kLowestKey, kHighestKey).rank);
}

__device__ int draw_from_all(const SamplingRow& p, const Temperature& t, ClusterRow& cluster) {
  const auto probable = [&](float logit, int) {
    const float weight = t.weight(logit);
    return static_cast<double>(weight) < p.min_p ? 0.0f : weight;
  };
  return cluster.reach_by_token(probable, p.uniform * cluster.sum(probable));
}

__global__ void __launch_bounds__(kRowThreads, 2)
    sample_rows(const SamplingCudaArgs a, int slice_size) {
  extern __shared__ float4 slice[];
  __shared__ RowScratch scratch;
  const int64_t row = blockIdx.x / kRowBlocks;
  ClusterRow cluster(reinterpret_cast<float*>(slice), scratch, slice_size,
                     static_cast<int>(a.vocab_size));
  wait_for_previous_kernel();
  allow_next_kernel();
  const SamplingRow p = a.rows == nullptr ? SamplingRow{} : a.rows[row];
  load_slice(a, row, cluster);
  cluster.synchronize();  // every block runs before another writes into its memory

  double log_sum = 0;
  const bool wants_logprobs = p.num_logprobs >= 0 && a.logprobs != nullptr;
  if (wants_logprobs) {
    const int n = min(p.num_logprobs, static_cast<int>(a.max_logprobs));
    log_sum = top_logprobs(a, row, n, cluster);
  }
  adjust_logits(a, p, cluster);
  const uint64_t best = best_rank(cluster);
  const float max_logit = key_logit(static_cast<uint32_t>(best >> 32));
  int token = rank_token(best);
  if ((best >> 32) < kLowestKey || max_logit == kInfinity) {
    token = -1;
  } else if (p.inverse_temperature > 0) {
    const Temperature temperature = {max_logit, p.inverse_temperature};
    if (p.top_k > 0 && p.top_k < a.vocab_size) {
      token = draw_top_k(p, temperature, cluster);
    } else if (p.top_p < 1) {
      token = draw_nucleus(p, temperature, cluster);
    } else {
      token = draw_from_all(p, temperature, cluster);
    }
  }
  if (cluster.block_rank != 0 || threadIdx.x != 0) return;
  a.tokens[row] = token;
  if (wants_logprobs) {
    const float nan = __int_as_float(0x7fc00000);
    a.logprobs[row] =
        token < 0
            ? nan
            : static_cast<float>(static_cast<double>(a.logits[row * a.stride + token]) - log_sum);
  }
}

}  // namespace

void sample_cuda(const SamplingCudaArgs& args, CudaStream stream) {
  SamplingCudaArgs a = args;
  if (a.stride == 0) a.stride = a.vocab_size;
  if (a.vocab_size < 1 || a.vocab_size > kMaxSamplingVocab || a.stride < a.vocab_size ||
      a.num_rows < 0 || a.max_logprobs < 0) {
    fail(ErrorCode::kInvalidArgument, "sampling ", a.num_rows, " rows of ", a.vocab_size,
         " logits, row stride ", a.stride, "; at most ", kMaxSamplingVocab, " logits");
  }
  if (a.num_rows == 0) return;
  const int64_t slice_size = (a.vocab_size + 4 * kRowBlocks - 1) / (4 * kRowBlocks) * 4;
  const int64_t bytes = slice_size * static_cast<int64_t>(sizeof(float));
  cuda_check(cudaFuncSetAttribute(sample_rows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             "asking for ", bytes, " bytes of shared memory");
  launch_dependent("sample_rows", sample_rows, dim3(static_cast<unsigned>(a.num_rows * kRowBlocks)),
                   dim3(kRowThreads), bytes, stream, kRowBlocks, a, static_cast<int>(slice_size));
}

}  // namespace lathe
