// How the kernels of w8_small_sm90.h divide their work and shared memory, for host and device.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define LATHE_W8_HOST_DEVICE __host__ __device__
#else
#define LATHE_W8_HOST_DEVICE
#endif

namespace lathe {

inline constexpr int kW8SmallMaxShared = 227 * 1024;
inline constexpr int kW8SmallHalfShared = 113 * 1024;  // two blocks on a multiprocessor
inline constexpr int kW8SmallBarrierBytes = 1024;
inline constexpr int kW8SmallProducers = 4;  // warps that copy
inline constexpr int kW8SmallMaxStages = 12;

// rows: of x, padded: 8, 16, 32 or 64. From 32, x is read from shared memory for two tiles of 16
// rows of W at a time, which halves that traffic.
LATHE_W8_HOST_DEVICE constexpr int w8_small_unit_rows(int rows) { return rows <= 16 ? 16 : 32; }
// Warps that multiply, and all threads.
LATHE_W8_HOST_DEVICE constexpr int w8_small_warps(int) { return 8; }
LATHE_W8_HOST_DEVICE constexpr int w8_small_threads(int rows) {
  return (w8_small_warps(rows) + kW8SmallProducers) * 32;
}

// One stage: codes of all warps, x, scales. Behind the stages: sums of the warps.
struct W8SmallLayout {
  int x_offset;
  int scales_offset;
  int stage_bytes;
  int sum_bytes;

  // scale_bytes: of a group; 0 where there are none.
  LATHE_W8_HOST_DEVICE constexpr W8SmallLayout(int rows, int split, int cluster, int scale_bytes)
      : x_offset(w8_small_warps(rows) * w8_small_unit_rows(rows) * 128),
        scales_offset(x_offset + split * rows * 256),
        stage_bytes(scales_offset +
                    w8_small_warps(rows) * w8_small_unit_rows(rows) * 4 * scale_bytes),
        sum_bytes(split * cluster > 1 ? w8_small_warps(rows) * w8_small_unit_rows(rows) * rows * 4
                                      : 0) {}
  LATHE_W8_HOST_DEVICE constexpr int bytes(int stages) const {
    return kW8SmallBarrierBytes + stages * stage_bytes + sum_bytes;
  }
};

}  // namespace lathe
