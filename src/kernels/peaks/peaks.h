// This machine's ceilings, measured now: what a speed is compared with. 0 on a CPU without AVX2.
#pragma once
#include <cstdint>

#include "tensor/exec.h"

namespace lathe {

// Bytes per second that all threads of exec together read from memory: the best of several passes
// over num_bytes (choose it several times larger than the last cache level), summed with vector
// loads. Takes about rounds * num_bytes / bandwidth seconds. Other processes lower it.
double measure_read_bandwidth(Exec& exec, int64_t num_bytes = int64_t{512} << 20, int rounds = 6);

// Floating-point operations per second (a fused multiply-add counts two) of all threads together,
// fp32 in 256-bit vectors, from registers only.
double measure_fma_rate(Exec& exec);

}  // namespace lathe
