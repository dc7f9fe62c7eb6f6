#include "kernels/registry.h"

#include <cstdlib>

#include "base/error.h"

namespace lathe {

int kernel_level(std::string_view name) {
  if (name == "ref") return 0;
  if (name == "avx2") return 1;
  if (name == "avx512") return 2;
  if (name == "amx") return 3;
  return -1;
}

bool machine_has(uint32_t needs) { return (cpu_features() & needs) == needs; }

int allowed_kernel_level() {
  static const int level = [] {
    const int best = machine_has(kAmxFeatures)                          ? 3
                     : machine_has(kAvx512 | kAvx512Vnni | kAvx512Vbmi) ? 2
                     : machine_has(kAvx2)                               ? 1
                                                                        : 0;
    const char* forced = std::getenv("LATHE_FORCE_KERNEL");
    if (forced == nullptr || *forced == '\0') return best;
    const int wanted = kernel_level(forced);
    if (wanted < 0) {
      fail(ErrorCode::kInvalidArgument, "LATHE_FORCE_KERNEL=", forced,
           " is not a kernel level (ref, avx2, avx512, amx)");
    }
    if (wanted > best) {
      fail(ErrorCode::kUnsupported, "LATHE_FORCE_KERNEL=", forced, ": this machine has only ",
           cpu_features_text());
    }
    return wanted;
  }();
  return level;
}

}  // namespace lathe
