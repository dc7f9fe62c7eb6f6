#include "base/error.h"
#include "kernels/sampling/sampling_cuda.h"
#include "kernels/sampling/shortlist.cuh"
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
  // Of the logit that many bands below the largest, moved by a few of its last places.
  __device__ uint32_t key_at(float bands, float places) const {
    const float logit = max_logit - bands / kBandsPerNat / inverse;
    const float place = fmaxf(fabsf(max_logit), fabsf(logit)) * 0x1p-23f;
    return max(logit_key(logit + places * place), kLowestKey);
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

// Where a row may be cut so that few elements stay: at these bands.
constexpr int kNumCuts = 6;
__device__ constexpr int kCutBands[kNumCuts] = {16, 32, 48, 72, 104, kLastBand};
// Of single-precision sums of up to 128 numbers in a thread and 12 more levels.
constexpr double kMassMargin = 1e-4;

// What lies above each cut; first between cut and cut, then added up.
struct Survey {
  double total = 0;
  float mass[kNumCuts] = {};
  uint32_t counts[kNumCuts] = {};
  __device__ void merge(const Survey& other) {
    total += other.total;
    for (int i = 0; i < kNumCuts; ++i) {
      mass[i] += other.mass[i];
      counts[i] += other.counts[i];
    }
  }
};

template <bool kWithMass>
__device__ Survey survey_row(const Temperature& t, ClusterRow& cluster) {
  Survey own;
  cluster.for_each([&](float logit, int) {
    const float weight = kWithMass ? t.weight(logit) : 0.0f;
    if (kWithMass) own.total += static_cast<double>(weight);
    const int band = t.band(logit);
    int below = 0;
#pragma unroll
    for (int i = 0; i < kNumCuts; ++i) {
      if (band >= below && band < kCutBands[i]) {
        if (kWithMass) own.mass[i] += weight;
        own.counts[i] += 1;
      }
      below = kCutBands[i];
    }
  });
  return cluster.reduce(own);
}

// Takes the elements above the cut, if they are few enough. `ends`: this block has nothing more to
// do.
struct Cut {
  bool is_taken;
  bool ends;
};
__device__ Cut take_cut(int cut, const Survey& survey, const Temperature& t, ClusterRow& cluster,
                        Shortlist& list) {
  uint32_t size = 0;
  uint32_t before = 0;
#pragma unroll
  for (int i = 0; i < kNumCuts; ++i) {
    if (i > cut) continue;
    size += survey.counts[i];
    for (int block = 0; block < cluster.block_rank; ++block) {
      before += cluster.received<Survey>(block).counts[i];
    }
  }
  if (cut >= kNumCuts || size > kShortlist) return {false, false};
  int cut_band = 0;
#pragma unroll
  for (int i = 0; i < kNumCuts; ++i) cut_band = i == cut ? kCutBands[i] : cut_band;
  const bool is_first = list.gather(
      cluster, [&](float logit, int) { return t.band(logit) < cut_band; }, static_cast<int>(before),
      static_cast<int>(size));
  if (is_first) list.sort();
  return {true, !is_first};
}

__device__ float probable_weight(const SamplingRow& p, const Temperature& t, float logit) {
  const float weight = t.weight(logit);
  return static_cast<double>(weight) < p.min_p ? 0.0f : weight;
}

// What top-k and top-p leave of a row, where it was not few elements that could be gathered.
struct Kept {
  uint64_t least = 0;                             // the smallest rank that stays
  int last_band = -1;                             // >= 0: earlier bands stay whatever their ranks
  uint32_t low = kLowestKey, high = kHighestKey;  // where the last band's keys lie

  __device__ bool holds(const Temperature& t, float logit, int token) const {
    if (last_band >= 0) {
      const int band = t.band(logit);
      if (band != last_band) return band < last_band;
    }
    return rank_of(logit_key(logit), token) >= least;
  }
};

// top-k, then top-p among them, both in order of rank: what stays is a smallest rank.
__device__ Kept keep_top_k(const SamplingRow& p, const Temperature& t, ClusterRow& cluster) {
  const auto one = [](float, int) { return 1.0f; };
  Kept kept;
  kept.least =
      cluster.reach_by_rank(one, 0.0, static_cast<double>(p.top_k), true, kLowestKey, kHighestKey)
          .rank;
  if (p.top_p < 1) {
    const auto weight = [&](float logit, int token) {
      return kept.holds(t, logit, token) ? t.weight(logit) : 0.0f;
    };
    const double total = cluster.sum(weight);
    kept.least = cluster
                     .reach_by_rank(weight, 0.0, p.top_p * total, true,
                                    static_cast<uint32_t>(kept.least >> 32), kHighestKey)
                     .rank;
  }
  return kept;
}

__device__ int draw_top_k_of_all(const SamplingRow& p, const Temperature& t, ClusterRow& cluster) {
  const Kept kept = keep_top_k(p, t, cluster);
  const auto probable = [&](float logit, int token) {
    return kept.holds(t, logit, token) ? probable_weight(p, t, logit) : 0.0f;
  };
  const double total = cluster.sum(probable);
  return rank_token(cluster
                        .reach_by_rank(probable, 0.0, p.uniform * total, false,
                                       static_cast<uint32_t>(kept.least >> 32), kHighestKey)
                        .rank);
}

__device__ int draw_top_k(const SamplingRow& p, const Temperature& t, ClusterRow& cluster,
                          Shortlist& list) {
  const Survey survey = survey_row<false>(t, cluster);
  uint32_t above = 0;
  int cut = kNumCuts;
#pragma unroll
  for (int i = 0; i < kNumCuts; ++i) {
    above += survey.counts[i];
    if (cut == kNumCuts && above >= static_cast<uint32_t>(p.top_k)) cut = i;
  }
  const Cut taken = take_cut(cut, survey, t, cluster, list);
  if (!taken.is_taken) return draw_top_k_of_all(p, t, cluster);
  if (taken.ends) return -1;
  int num_kept = p.top_k;
  const auto kept = [&](int i) { return i < num_kept ? t.weight(list.logit(i)) : 0.0f; };
  if (p.top_p < 1) num_kept = list.reach(kept, 0, p.top_p * list.sum(kept), true).index + 1;
  const auto probable = [&](int i) {
    return i < num_kept ? probable_weight(p, t, list.logit(i)) : 0.0f;
  };
  const double target = p.uniform * list.sum(probable);
  return rank_token(list.rank(list.reach(probable, 0, target, false).index));
}

// top-p without top-k: the elements in order of rank whose sum reaches `target`.
__device__ Kept keep_nucleus(const Temperature& t, double target, ClusterRow& cluster) {
  const ClusterRow::Band found =
      cluster.reach_by_band([&](float logit) { return t.band(logit); },
                            [&](float logit, int) {
                              const float weight = t.weight(logit);
                              return weight < kLastBandWeight ? 0.0f : weight;
                            },
                            target, kLastBand);
  Kept kept;
  kept.last_band = found.band;
  // Where the band's logits lie, and a little more, for rounding.
  const auto top = static_cast<float>(found.band);
  if (found.band != 0) kept.high = t.key_at(top - 0.1f, 4);
  if (found.band != kLastBand) kept.low = t.key_at(top + 1.1f, -4);
  kept.least =
      cluster
          .reach_by_rank([&](float logit,
                             int) { return t.band(logit) == found.band ? t.weight(logit) : 0.0f; },
                         found.before, target, true, kept.low, kept.high)
          .rank;
  return kept;
}

__device__ int draw_nucleus_of_all(const SamplingRow& p, const Temperature& t, double target,
                                   ClusterRow& cluster) {
  const Kept kept = keep_nucleus(t, target, cluster);
  const auto above = [&](float logit, int) {
    return t.band(logit) < kept.last_band ? probable_weight(p, t, logit) : 0.0f;
  };
  const auto beside = [&](float logit, int token) {
    const bool is_kept = t.band(logit) == kept.last_band && kept.holds(t, logit, token);
    return is_kept ? probable_weight(p, t, logit) : 0.0f;
  };
  const double sum_above = cluster.sum(above);
  const double sum_beside = cluster.sum(beside);
  const double drawn = p.uniform * (sum_above + sum_beside);
  if (drawn < sum_above || sum_beside == 0) return cluster.reach_by_token(above, drawn);
  return rank_token(
      cluster.reach_by_rank(beside, sum_above, drawn, false, kept.low, kept.high).rank);
}

__device__ int draw_nucleus(const SamplingRow& p, const Temperature& t, ClusterRow& cluster,
                            Shortlist& list) {
  const Survey survey = survey_row<true>(t, cluster);
  const double target = p.top_p * survey.total;
  double above = 0;
  int cut = kNumCuts;
#pragma unroll
  for (int i = 0; i < kNumCuts; ++i) {
    above += static_cast<double>(survey.mass[i]);
    if (cut == kNumCuts && above >= target * (1 + kMassMargin)) cut = i;
  }
  const Cut taken = take_cut(cut, survey, t, cluster, list);
  if (!taken.is_taken) return draw_nucleus_of_all(p, t, target, cluster);
  if (taken.ends) return -1;
  const auto weight = [&](int i) { return t.weight(list.logit(i)); };
  const int last = list.reach(weight, 0, target, true).index;
  const int last_band = t.band(list.logit(last));
  int num_above = 0;
  for (int i = static_cast<int>(threadIdx.x); i < kShortlist; i += kRowThreads) {
    num_above += __syncthreads_count(i <= last && t.band(list.logit(i)) < last_band);
  }
  const auto probable = [&](int i) { return probable_weight(p, t, list.logit(i)); };
  const auto above_band = [&](int i) { return i < num_above ? probable(i) : 0.0f; };
  const auto beside = [&](int i) { return i >= num_above && i <= last ? probable(i) : 0.0f; };
  const double sum_above = list.sum(above_band);
  const double sum_beside = list.sum(beside);
  const double drawn = p.uniform * (sum_above + sum_beside);
  if (drawn < sum_above || sum_beside == 0) {
    list.sort_by_token(num_above);
    const auto by_token = [&](int i) { return probable_weight(p, t, list.logit_at(i)); };
    return list.token_at(list.reach(by_token, 0, drawn, false).index);
  }
  return rank_token(list.rank(list.reach(beside, sum_above, drawn, false).index));
}

__device__ int draw_from_all(const SamplingRow& p, const Temperature& t, ClusterRow& cluster) {
  const auto probable = [&](float logit, int) { return probable_weight(p, t, logit); };
  return cluster.reach_by_token(probable, p.uniform * cluster.sum(probable));
}

// q(token) of the distribution that a draft was drawn from.
__device__ double drawn_with(const SamplingCudaArgs& a, const SamplingRow& p, int token) {
  if (p.probs_begin == p.probs_end) return token == p.draft ? 1.0 : 0.0;
  int begin = p.probs_begin;
  int end = p.probs_end;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (a.probs[middle].token < token) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin < p.probs_end && a.probs[begin].token == token ? a.probs[begin].prob : 0.0;
}

// Sampler::verify() and, for a judge, Sampler::probability(). best: the most probable token.
__device__ int verify_draft(const SamplingCudaArgs& a, const SamplingRow& p, float max_logit,
                            int best, ClusterRow& cluster, SampledDraft& rejected) {
  const float draft_logit = cluster.logit_of(p.draft);
  if (p.inverse_temperature == 0) {
    if (best == p.draft) return best;
    const Temperature plain = {max_logit, 1.0f};
    const double total = cluster.sum([&](float logit, int) { return plain.weight(logit); });
    rejected.prob = static_cast<float>(static_cast<double>(plain.weight(draft_logit)) / total);
    rejected.gap = max_logit - draft_logit;
    return best;
  }
  const Temperature t = {max_logit, p.inverse_temperature};
  Kept kept;  // all
  if (p.top_k > 0 && p.top_k < a.vocab_size) {
    kept = keep_top_k(p, t, cluster);
  } else if (p.top_p < 1) {
    const double total = cluster.sum([&](float logit, int) { return t.weight(logit); });
    kept = keep_nucleus(t, p.top_p * total, cluster);
  }
  const auto probable = [&](float logit, int token) {
    return kept.holds(t, logit, token) ? probable_weight(p, t, logit) : 0.0f;
  };
  const double total = cluster.sum(probable);
  const double prob = static_cast<double>(probable(draft_logit, p.draft)) / total;
  if (p.accept_uniform * drawn_with(a, p, p.draft) < prob) return p.draft;
  const auto residual = [&](float logit, int token) {
    const float weight = probable(logit, token);
    return weight > 0 ? fmax(static_cast<double>(weight) / total - drawn_with(a, p, token), 0.0)
                      : 0.0;
  };
  const double left = cluster.sum(residual);
  int token = cluster.reach_by_token(residual, p.uniform * left);
  // p = q up to rounding: a rejection had probability 0, and p itself is as good.
  if (token < 0) token = cluster.reach_by_token(probable, p.uniform * total);
  rejected.prob = static_cast<float>(prob);
  rejected.gap = cluster.logit_of(token) - draft_logit;
  return token;
}

__global__ void __launch_bounds__(kRowThreads, 2)
    sample_rows(const SamplingCudaArgs a, int slice_size) {
  extern __shared__ float4 slice[];
  __shared__ ClusterScratch scratch;
  __shared__ ShortlistScratch list_scratch;
  const int64_t row = blockIdx.x / kRowBlocks;
  ClusterRow cluster(reinterpret_cast<float*>(slice), scratch, slice_size,
                     static_cast<int>(a.vocab_size));
  Shortlist list(list_scratch);
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
  SampledDraft rejected;
  if ((best >> 32) < kLowestKey || max_logit == kInfinity) {
    token = -1;
  } else if (p.draft >= 0) {
    token = verify_draft(a, p, max_logit, token, cluster, rejected);
  } else if (p.inverse_temperature > 0) {
    const Temperature temperature = {max_logit, p.inverse_temperature};
    if (p.top_k > 0 && p.top_k < a.vocab_size) {
      token = draw_top_k(p, temperature, cluster, list);
    } else if (p.top_p < 1) {
      token = draw_nucleus(p, temperature, cluster, list);
    } else {
      token = draw_from_all(p, temperature, cluster);
    }
  }
  if (cluster.block_rank != 0 || threadIdx.x != 0) return;
  a.tokens[row] = token;
  const float nan = __int_as_float(0x7fc00000);
  const auto logprob = [&](int of) {
    if (!wants_logprobs || token < 0) return nan;
    return static_cast<float>(static_cast<double>(a.logits[row * a.stride + of]) - log_sum);
  };
  if (wants_logprobs) a.logprobs[row] = logprob(token);
  if (p.draft < 0 || a.drafts == nullptr) return;
  rejected.logprob = logprob(p.draft);
  a.drafts[row] = rejected;
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
