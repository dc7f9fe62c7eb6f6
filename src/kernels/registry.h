// One table per operation drives dispatch, tests and benchmarks: every compiled-in version, best
// first, the reference last.
//
// LATHE_FORCE_KERNEL=ref|avx2|avx512|amx caps the choice for every operation: a row named so is
// taken where the operation has one, and where it has none the best row below that level (ref <
// avx2 < avx512 < amx). A level that this machine lacks, or an unknown name, is an error, never a
// silent fallback.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/features.h"
#include "tensor/exec.h"

namespace lathe {

enum class Device { kCpu, kCuda };

template <typename Args>
struct Kernel {
  std::string_view name;  // "ref", "avx2", "avx512", "amx"
  Device device;
  uint32_t needs;  // CpuFeature bits
  void (*run)(const Args&, Exec&);
};

// What a row of level amx needs.
inline constexpr uint32_t kAmxFeatures =
    kAvx2 | kAvx512 | kAvx512Vnni | kAvx512Vbmi | kAvx512Bf16 | kAmxBf16;

// Levels by name, for LATHE_FORCE_KERNEL.
int kernel_level(std::string_view name);  // ref 0, avx2 1, avx512 2, amx 3; -1: unknown
// The level that the environment allows; the machine's best when nothing is forced. Read once.
// Throws kInvalidArgument when LATHE_FORCE_KERNEL is unknown, kUnsupported when the machine lacks
// it.
int allowed_kernel_level();
bool machine_has(uint32_t needs);

// The first row that fits this machine and the allowed level.
template <typename Args>
const Kernel<Args>& best_kernel(std::span<const Kernel<Args>> table) {
  const int level = allowed_kernel_level();
  for (const Kernel<Args>& row : table) {
    if (machine_has(row.needs) && kernel_level(row.name) <= level) return row;
  }
  return table.back();
}

}  // namespace lathe
