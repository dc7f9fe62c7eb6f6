// The elements of a row that a draw can choose from, when they are few: gathered in the memory of
// the cluster's first block, which finishes alone by sorting them. All threads of the block call
// each of these functions together.
#pragma once
#include "kernels/sampling/cluster_row.cuh"

namespace lathe {

inline constexpr int kShortlist = 1024;  // two to a thread
static_assert(kShortlist == 2 * kRowThreads);

struct ShortlistScratch {
  uint64_t ranks[kShortlist];
  double runs[kRowWarps];
  int num_gathered;  // by this block
  int first;
  int last;
};

class Shortlist {
 public:
  __device__ explicit Shortlist(ShortlistScratch& scratch) : scratch_(scratch) {}

  __device__ int size() const { return size_; }
  __device__ uint64_t rank(int i) const { return scratch_.ranks[i]; }
  __device__ float logit(int i) const { return key_logit(static_cast<uint32_t>(rank(i) >> 32)); }

  // Gathers the elements for which wanted(logit, token) holds, in any order; `size` of them in the
  // row, `before` in the blocks in front of this one. For the whole cluster. False in all blocks
  // but the first, which may then end.
  template <typename Wanted>
  __device__ bool gather(ClusterRow& row, Wanted wanted, int before, int size) {
    if (threadIdx.x == 0) scratch_.num_gathered = 0;
    __syncthreads();
    uint64_t* first_block = cooperative_groups::this_cluster().map_shared_rank(scratch_.ranks, 0);
    row.for_each([&](float logit, int token) {
      if (!wanted(logit, token)) return;
      const int place = before + atomicAdd(&scratch_.num_gathered, 1);
      if (place < kShortlist) first_block[place] = rank_of(logit_key(logit), token);
    });
    row.synchronize();
    size_ = size;
    return row.block_rank == 0;
  }

  // Largest first.
  __device__ void sort() {
    int padded = 2;
    while (padded < size_) padded *= 2;
    for (int i = size_ + static_cast<int>(threadIdx.x); i < padded; i += kRowThreads) {
      scratch_.ranks[i] = 0;
    }
    for (int run = 2; run <= padded; run *= 2) {
      for (int distance = run / 2; distance > 0; distance /= 2) {
        __syncthreads();
        const int pair = static_cast<int>(threadIdx.x);
        if (pair >= padded / 2) continue;
        const int low = 2 * pair - (pair & (distance - 1));
        const uint64_t a = scratch_.ranks[low];
        const uint64_t b = scratch_.ranks[low + distance];
        const bool falls = (low & run) == 0;
        if (falls ? a < b : a > b) {
          scratch_.ranks[low] = b;
          scratch_.ranks[low + distance] = a;
        }
      }
    }
    __syncthreads();
  }

  // The first `size` of the sorted elements, from now on in order of token: token_at() and
  // logit_at() instead of rank() and logit().
  __device__ void sort_by_token(int size) {
    for (int i = static_cast<int>(threadIdx.x); i < size; i += kRowThreads) {
      scratch_.ranks[i] = scratch_.ranks[i] << 32 | scratch_.ranks[i] >> 32;
    }
    size_ = size;
    sort();
  }
  __device__ int token_at(int i) const { return rank_token(rank(i) >> 32); }
  __device__ float logit_at(int i) const { return key_logit(static_cast<uint32_t>(rank(i))); }

  struct Reached {
    int index;  // of the element that reached the target; the last one that counts if none did, or
                // 0
    double total;
  };
  // weight(i) of the elements, 0 where they do not count, is added up from `before` until it
  // reaches the target: until sum >= target, or sum > target.
  template <typename Weight>
  __device__ Reached reach(Weight weight, double before, double target, bool inclusive) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int own = 2 * static_cast<int>(threadIdx.x);
    double w[2];
    for (int i = 0; i < 2; ++i) {
      w[i] = own + i < size_ ? static_cast<double>(weight(own + i)) : 0.0;
    }
    double sum = w[0] + w[1];
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const double other = __shfl_up_sync(kAllLanes, sum, distance);
      if (lane >= distance) sum += other;
    }
    double in_front = __shfl_up_sync(kAllLanes, sum, 1);
    if (lane == 0) in_front = 0;
    __syncthreads();
    if (lane == 31) scratch_.runs[warp] = sum;
    if (threadIdx.x == 0) {
      scratch_.first = kShortlist;
      scratch_.last = 0;
    }
    __syncthreads();
    double total = 0;
    for (int i = 0; i < kRowWarps; ++i) {
      if (i == warp) in_front += total;
      total += scratch_.runs[i];
    }
    double reached = before + in_front;
    for (int i = 0; i < 2; ++i) {
      reached += w[i];
      if (!(w[i] > 0)) continue;
      atomicMax(&scratch_.last, own + i);
      if (inclusive ? reached >= target : reached > target) atomicMin(&scratch_.first, own + i);
    }
    __syncthreads();
    return {scratch_.first < kShortlist ? scratch_.first : scratch_.last, total};
  }

  template <typename Weight>
  __device__ double sum(Weight weight) {
    return reach(weight, 0, 0, true).total;
  }

 private:
  ShortlistScratch& scratch_;
  int size_ = 0;
};

}  // namespace lathe
