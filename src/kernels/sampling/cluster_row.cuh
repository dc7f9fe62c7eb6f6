// One row of logits in the shared memory of a cluster of blocks, each holding a contiguous slice,
// and what is computed over the whole row: sums, largest elements, thresholds. All threads of the
// cluster call each of these functions together and get the same bits back.
#pragma once
#include <cooperative_groups.h>

#include <cstdint>

namespace lathe {

inline constexpr int kRowBlocks = 8;  // the largest portable cluster
inline constexpr int kRowThreads = 512;
inline constexpr int kRowWarps = kRowThreads / 32;
inline constexpr int kExchangeWords = 7;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Orders like the logits: equal for equal logits (0 and -0), 0 for NaN, 1 and above for the rest.
__device__ inline uint32_t logit_key(float logit) {
  if (logit != logit) return 0;
  const uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0f));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ inline float key_logit(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// Largest logit first, the lowest id on a tie: larger is earlier.
__device__ inline uint64_t rank_of(uint32_t key, int token) {
  return uint64_t{key} << 32 | (0xffffffffu - static_cast<uint32_t>(token));
}
__device__ inline int rank_token(uint64_t rank) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(rank));
}

// Values that a row is reduced to: 8-byte words and how two of them become one.
struct Sum {
  double value = 0;
  __device__ void merge(const Sum& other) { value += other.value; }
};
struct Largest {
  uint64_t rank = 0;
  __device__ void merge(const Largest& other) { rank = other.rank > rank ? other.rank : rank; }
};
// Four ranges of keys: the sums of the upper three (the lowest is never asked for its sum) and the
// numbers of elements of all.
struct Ranges {
  double sums[3] = {0, 0, 0};
  uint64_t upper_counts = 0;  // 21 bits each, the highest range in the low ones
  uint64_t lowest_count = 0;
  __device__ void merge(const Ranges& other) {
    for (int i = 0; i < 3; ++i) sums[i] += other.sums[i];
    upper_counts += other.upper_counts;
    lowest_count += other.lowest_count;
  }
  __device__ int count(int i) const {
    return static_cast<int>(i == 3 ? lowest_count : upper_counts >> (21 * i) & 0x1fffffu);
  }
};

struct ClusterScratch {
  uint64_t exchange[2][kRowBlocks][kExchangeWords];
  uint64_t warps[kRowWarps][kExchangeWords];
  double runs[kRowWarps];  // of reach_by_token()
  double pieces[kRowWarps];
};

class ClusterRow {
 public:
  __device__ ClusterRow(float* slice, ClusterScratch& scratch, int slice_size, int vocab_size)
      : logits(slice),
        block_rank(static_cast<int>(cooperative_groups::this_cluster().block_rank())),
        first_token(block_rank * slice_size),
        count(min(max(vocab_size - first_token, 0), slice_size)),
        scratch_(scratch) {}

  float* const logits;  // [count], tokens first_token...
  const int block_rank;
  const int first_token;
  const int count;

  // visit(logit, token) for this thread's elements.
  template <typename Visit>
  __device__ void for_each(Visit visit) const {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kRowThreads) {
      visit(logits[i], first_token + i);
    }
  }

  __device__ void synchronize() const { cooperative_groups::this_cluster().sync(); }

  template <typename T>
  __device__ T reduce(T value) {
    exchange(block_reduce(value));
    T result = received<T>(0);
#pragma unroll
    for (int i = 1; i < kRowBlocks; ++i) result.merge(received<T>(i));
    return result;
  }

  // What block `block` gave to the last reduce().
  template <typename T>
  __device__ const T& received(int block) const {
    return *reinterpret_cast<const T*>(scratch_.exchange[turn_][block]);
  }

  // The sum of weight(logit, token) over the row.
  template <typename Weight>
  __device__ double sum(Weight weight) {
    Sum own;
    for_each(
        [&](float logit, int token) { own.value += static_cast<double>(weight(logit, token)); });
    return reduce(own).value;
  }

  __device__ float logit_of(int token) {
    const int own = token - first_token;
    Sum found;  // one thread's, 0 elsewhere
    if (own >= 0 && own < count && own % kRowThreads == static_cast<int>(threadIdx.x)) {
      found.value = static_cast<double>(logits[own]);
    }
    return static_cast<float>(reduce(found).value);
  }

  // The elements in the order of their ranks, or of their tokens, of which sums are taken until
  // they reach a target: until sum >= target, or sum > target.
  struct Reached {
    uint64_t rank;  // of the element that reached it; the last one that counts if none did
    double before;  // the sum before this element
  };

  // In order of rank. Elements count with weight(logit, token), not at all where that is 0; their
  // keys lie in [low, high]. Equal logits have equal weights.
  template <typename Weight>
  __device__ Reached reach_by_rank(Weight weight, double before, double target, bool inclusive,
                                   uint32_t low, uint32_t high) {
    const auto reaches = [=](double sum) { return inclusive ? sum >= target : sum > target; };
    const Bucket bucket = narrow([](float logit, int) { return logit_key(logit); }, weight, before,
                                 reaches, low, high);
    const auto is_inside = [&](float logit, int token) {
      const uint32_t key = logit_key(logit);
      return key >= bucket.low && key <= bucket.high && weight(logit, token) > 0;
    };
    Largest first;
    for_each([&](float logit, int token) {
      if (is_inside(logit, token)) first.merge({rank_of(logit_key(logit), token)});
    });
    first = reduce(first);
    if (bucket.count <= 1) return {first.rank, bucket.before};
    // Equal logits, in order of token: how many of them are taken, then which is the last.
    const uint32_t key = bucket.low;
    const auto each = static_cast<double>(weight(key_logit(key), rank_token(first.rank)));
    auto taken = static_cast<int64_t>((target - bucket.before) / each);
    taken = taken < 1 ? 1 : taken > bucket.count ? bucket.count : taken;
    const auto sum_of = [&](int64_t number) {
      return bucket.before + static_cast<double>(number) * each;
    };
    while (taken < bucket.count && !reaches(sum_of(taken))) ++taken;
    while (taken > 1 && reaches(sum_of(taken - 1))) --taken;
    const Bucket last =
        narrow([](float, int token) { return 0xffffffffu - static_cast<uint32_t>(token); },
               [&](float logit, int token) { return is_inside(logit, token) ? 1.0f : 0.0f; }, 0.0,
               [=](double sum) { return sum >= static_cast<double>(taken); },
               0xffffffffu - (1u << 20), 0xffffffffu);
    Largest taken_last;
    for_each([&](float logit, int token) {
      const uint32_t inverted = 0xffffffffu - static_cast<uint32_t>(token);
      if (is_inside(logit, token) && inverted >= last.low && inverted <= last.high) {
        taken_last.merge({rank_of(key, token)});
      }
    });
    return {reduce(taken_last).rank, sum_of(taken - 1)};
  }

  // In order of band, 0 first: the band in which the sum reaches the target and the sum before it;
  // num_bands and the sum of all when none does. Elements of band num_bands and above do not count.
  struct Band {
    int band;
    double before;
  };
  template <typename BandOf, typename Weight>
  __device__ Band reach_by_band(BandOf band_of, Weight weight, double target, int num_bands) {
    const auto in_bands = [&](float logit, int token) {
      return band_of(logit) < num_bands ? weight(logit, token) : 0.0f;
    };
    const double all = sum(in_bands);
    if (!(all >= target)) return {num_bands, all};
    const auto top = static_cast<uint32_t>(num_bands);
    // One element alone may end the search before its band is known; then any of the bucket's bands
    // without elements would do, and its own is asked for.
    const Bucket bucket =
        narrow([&](float logit, int) { return top - static_cast<uint32_t>(band_of(logit)); },
               in_bands, 0.0, [=](double reached) { return reached >= target; }, 1u, top);
    Largest key;
    for_each([&](float logit, int token) {
      const uint32_t own = top - static_cast<uint32_t>(band_of(logit));
      if (own >= bucket.low && own <= bucket.high && in_bands(logit, token) > 0) key.merge({own});
    });
    key = reduce(key);
    return {num_bands - static_cast<int>(key.rank), bucket.before};
  }

  // In order of token; reached when sum > target. -1 when no element counts.
  template <typename Weight>
  __device__ int reach_by_token(Weight weight, double target) {
    // Each warp sums a contiguous run, so that runs, and blocks, follow one another by token.
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int run = (count + kRowThreads - 1) / kRowThreads * 32;
    const int begin = min(warp * run, count);
    const int end = min(begin + run, count);
    Sum own;
    for (int i = begin + lane; i < end; i += 32) {
      own.value += static_cast<double>(weight(logits[i], first_token + i));
    }
    own = warp_reduce(own);
    if (lane == 0) scratch_.runs[warp] = own.value;
    __syncthreads();
    Sum block;
    for (int w = 0; w < kRowWarps; ++w) block.merge({scratch_.runs[w]});
    exchange(block);
    Largest found;
    double before = 0;
    const auto block_sum = [&](int i) { return received<Sum>(i).value; };
    const auto run_sum = [&](int w) { return scratch_.runs[w]; };
    if (part_that_reaches(block_sum, kRowBlocks, target, before) == block_rank) {
      // The whole block on the run, a piece for each warp.
      const int reached = part_that_reaches(run_sum, kRowWarps, target, before);
      const int run_begin = min(reached * run, count);
      const int run_end = min(run_begin + run, count);
      const int piece = (run + kRowThreads - 1) / kRowThreads * 32;
      const int piece_begin = min(run_begin + warp * piece, run_end);
      const int piece_end = min(piece_begin + piece, run_end);
      Sum in_piece;
      for (int i = piece_begin + lane; i < piece_end; i += 32) {
        in_piece.value += static_cast<double>(weight(logits[i], first_token + i));
      }
      in_piece = warp_reduce(in_piece);
      if (lane == 0) scratch_.pieces[warp] = in_piece.value;
      __syncthreads();
      const auto piece_sum = [&](int w) { return scratch_.pieces[w]; };
      if (part_that_reaches(piece_sum, kRowWarps, target, before) == warp) {
        const int token = walk(weight, piece_begin, piece_end, before, target);
        if (token >= 0) found.rank = rank_of(1, token);
      }
    }
    found = reduce(found);
    return found.rank == 0 ? -1 : rank_token(found.rank);
  }

 private:
  struct Bucket {
    uint32_t low;  // keys [low, high], one key or one element
    uint32_t high;
    double before;  // the sum of the larger keys
    int count;      // of elements in it
  };

  // Finds the bucket in which the sum over falling keys reaches what it should, four ranges at a
  // time; the lowest one that is not empty when none does.
  template <typename Key, typename Weight, typename Reaches>
  __device__ Bucket narrow(Key key_of, Weight weight, double before, Reaches reaches, uint32_t low,
                           uint32_t high) {
    int inside = -1;  // elements in [low, high]; not known at first
    while (inside < 0 || (inside > 1 && low < high)) {
      const uint32_t step = (high - low) / 4 + 1;
      Ranges own;
      for_each([&](float logit, int token) {
        const uint32_t key = key_of(logit, token);
        if (key < low || key > high) return;
        const auto w = static_cast<double>(weight(logit, token));
        if (!(w > 0)) return;
        const uint32_t depth = high - key;
        if (depth < step) {
          own.sums[0] += w;
          own.upper_counts += 1;
        } else if (depth < 2 * step) {
          own.sums[1] += w;
          own.upper_counts += uint64_t{1} << 21;
        } else if (depth < 3 * step) {
          own.sums[2] += w;
          own.upper_counts += uint64_t{1} << 42;
        } else {
          own.lowest_count += 1;
        }
      });
      const Ranges all = reduce(own);
      int chosen = -1;
      double sum = before;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool is_open = chosen < 0 || !reaches(sum);
        if (all.count(i) == 0 || !is_open) continue;
        chosen = i;
        before = sum;
        sum += i < 3 ? all.sums[i] : 0.0;
      }
      if (chosen < 0) return {low, high, before, 0};
      const uint32_t top = high;
      high = top - static_cast<uint32_t>(chosen) * step;
      if (chosen < 3) low = max(low, high - (step - 1));
      inside = all.count(chosen);
    }
    return {low, high, before, inside};
  }

  // The first of the parts, in order, up to which the sum exceeds the target, and the sum before
  // it; the last one that is not zero when rounding leaves all below it. -1: all are zero.
  template <typename SumOf>
  __device__ int part_that_reaches(SumOf sum_of, int num_parts, double target,
                                   double& before) const {
    int part = -1;
    double sum = before;
    for (int i = 0; i < num_parts; ++i) {
      const double own = sum_of(i);
      if (!(own > 0)) continue;
      part = i;
      before = sum;
      sum += own;
      if (sum > target) break;
    }
    return part;
  }

  // One warp goes along its run.
  template <typename Weight>
  __device__ int walk(Weight weight, int begin, int end, double before, double target) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int token = -1;
    for (int i = begin; i < end; i += 32) {
      const int own = i + lane;
      const double w =
          own < end ? static_cast<double>(weight(logits[own], first_token + own)) : 0.0;
      double sum = w;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const double other = __shfl_up_sync(kAllLanes, sum, distance);
        if (lane >= distance) sum += other;
      }
      const unsigned counts = __ballot_sync(kAllLanes, w > 0);
      const unsigned reached = __ballot_sync(kAllLanes, w > 0 && before + sum > target);
      if (reached != 0) return first_token + i + __ffs(static_cast<int>(reached)) - 1;
      if (counts != 0) token = first_token + i + 31 - __clz(static_cast<int>(counts));
      before += __shfl_sync(kAllLanes, sum, 31);
    }
    return token;
  }

  template <typename T>
  __device__ static T warp_reduce(T value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value.merge(from_lane(value, distance));
    return value;
  }

  template <typename T>
  __device__ static T from_lane(const T& value, int distance) {
    constexpr int kWords = sizeof(T) / sizeof(uint64_t);
    union Words {
      __device__ Words() {}
      T value;
      unsigned long long words[kWords];
    };
    Words own, other;
    own.value = value;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      other.words[i] = __shfl_xor_sync(kAllLanes, own.words[i], distance);
    }
    return other.value;
  }

  // The whole block's value, in the first warp.
  template <typename T>
  __device__ T block_reduce(T value) {
    static_assert(sizeof(T) <= sizeof(scratch_.warps[0]));
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    value = warp_reduce(value);
    if (lane == 0) *reinterpret_cast<T*>(scratch_.warps[warp]) = value;
    __syncthreads();
    if (warp != 0) return value;
    return warp_reduce(lane < kRowWarps ? *reinterpret_cast<T*>(scratch_.warps[lane]) : T{});
  }

  // Gives the first warp's value to every block. Two buffers take turns: who writes into one again
  // has passed the barrier of the other, which every block reaches only after reading this one.
  template <typename T>
  __device__ void exchange(const T& value) {
    turn_ ^= 1;
    if (threadIdx.x < kRowBlocks) {
      uint64_t* words = scratch_.exchange[turn_][block_rank];
      *reinterpret_cast<T*>(
          cooperative_groups::this_cluster().map_shared_rank(words, threadIdx.x)) = value;
    }
    synchronize();
  }
  ClusterScratch& scratch_;
  int turn_ = 0;
};

}  // namespace lathe
