// Linear layers at up to 64 rows of x: what is common to the weight formats. See
// small_linear_sm90.h for the method.
#pragma once
#include <cstdint>
#include <string>

#include "kernels/linear/linear_cuda.h"

namespace lathe {

inline constexpr int kSmallLinearMaxRows = 64;

// What is chosen by the sizes alone. The bits of a row of y depend on nothing else.
struct SmallLinearConfig {
  int rows = 8;          // of x, padded: 8, 16, 32 or 64
  int cluster = 1;       // blocks that share a row panel of W, along k: 1, 2, 4 or 8
  int num_clusters = 1;  // that walk over the row panels
  int passes = 1;        // over x, where it does not fit into shared memory at once
  int slots = 8;         // of the ring, four tiles each
  bool operator==(const SmallLinearConfig&) const = default;
};
std::string to_string(const SmallLinearConfig& config);

// tile_bytes: codes and scales of 64 x 64 weights. m = 1..64, k a multiple of 64.
SmallLinearConfig choose_small_linear_config(int64_t m, int64_t n, int64_t k, int tile_bytes,
                                             int num_sms);
// The best with so many blocks in a cluster, and what the choice thinks of it: its time in units of
// the time in which the memory delivers a tile to every multiprocessor. Infinite where it cannot
// be.
struct SmallLinearCandidate {
  SmallLinearConfig config;
  double time;
};
SmallLinearCandidate small_linear_candidate(int64_t m, int64_t n, int64_t k, int tile_bytes,
                                            int num_sms, int cluster);
// Scratch on the device that a launch needs: 0 unless there are several passes.
int64_t small_linear_workspace_bytes(const SmallLinearConfig& config, int64_t n);

}  // namespace lathe
