// Where the short-run kernel cuts a context into parts that are attended to separately and merged:
// at fixed positions, so that a row's arithmetic depends on its position alone. Fine cuts at the
// start let few short sequences fill the GPU; coarse ones further on keep the parts few (a part
// costs a write and a read of a result per query, 1/64 of the bytes of a 512-token part at 4 query
// heads per KV head in bf16).
//   [0, 1024) by 128    [1024, 4096) by 256    [4096, 16384) by 512    then by 1024
#pragma once
#include <cstdint>

#include "kernels/attention/kv_layout_cuda.h"

namespace lathe {

// kLongest: a power of two from 256; longer parts are cut into such.
template <int kLongest = 1024>
LATHE_HOST_DEVICE constexpr int split_begin(int split) {
  return split < 8                       ? split * 128
         : split < 20 || kLongest == 256 ? 1024 + (split - 8) * 256
         : split < 44 || kLongest == 512 ? 4096 + (split - 20) * 512
                                         : 16384 + (split - 44) * 1024;
}

template <int kLongest = 1024>
LATHE_HOST_DEVICE constexpr int split_of(int position) {
  return position < 1024                       ? position / 128
         : position < 4096 || kLongest == 256  ? 8 + (position - 1024) / 256
         : position < 16384 || kLongest == 512 ? 20 + (position - 4096) / 512
                                               : 44 + (position - 16384) / 1024;
}

// Of a cache of codes. A warp takes a part, as long as a microsecond or two for each of its blocks:
// parts of 1024 tokens were a third of the kernel's time each, with most warps done by then.
inline constexpr int kCodePart = 512;

// Bound on the splits that rows of one sequence at `num_rows` consecutive positions below
// max_context see together. A range touches most splits where they are finest, at the start.
template <int kLongest = 1024>
constexpr int64_t max_splits(int64_t max_context, int64_t sliding_window, int64_t num_rows) {
  const int64_t whole =
      max_context > 0 ? split_of<kLongest>(static_cast<int>(max_context - 1)) + 1 : 0;
  if (sliding_window <= 0 || sliding_window + num_rows >= max_context) return whole;
  const int64_t range = split_of<kLongest>(static_cast<int>(sliding_window + num_rows - 1)) + 2;
  return range < whole ? range : whole;
}

}  // namespace lathe
