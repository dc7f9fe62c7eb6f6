#include "kernels/features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lathe {
#if defined(__x86_64__)
namespace {

// By hand: __builtin_cpu_supports() of clang 14 does not know the name.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// The tiles are 8 KiB of state per thread, which Linux saves only for processes that asked.
bool may_use_amx() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kNeeded = 1u << 24 | 1u << 22;  // AMX-TILE, AMX-BF16
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kNeeded) != kNeeded) {
    return false;
  }
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

uint32_t cpu_features() {
  static const uint32_t features = [] {
    uint32_t found = 0;
#if defined(__x86_64__)
    const auto has = [](bool present, uint32_t bit) { return present ? bit : 0u; };
    found |=
        has(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(), kAvx2);
    found |= has(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"),
                 kAvx512);
    if (found & kAvx512) {
      found |= has(__builtin_cpu_supports("avx512vnni"), kAvx512Vnni);
      found |= has(__builtin_cpu_supports("avx512vbmi"), kAvx512Vbmi);
      found |= has(__builtin_cpu_supports("avx512bf16"), kAvx512Bf16);
      found |= has(may_use_amx(), kAmxBf16);
    }
#endif
    return found;
  }();
  return features;
}

std::string cpu_features_text() {
  std::string text;
  const auto add = [&](uint32_t bit, const char* name) {
    if (cpu_features() & bit) text += (text.empty() ? "" : " ") + std::string(name);
  };
  add(kAvx2, "avx2");
  add(kAvx512, "avx512");
  add(kAvx512Vnni, "avx512_vnni");
  add(kAvx512Vbmi, "avx512_vbmi");
  add(kAvx512Bf16, "avx512_bf16");
  add(kAmxBf16, "amx_bf16");
  return text.empty() ? "none" : text;
}

}  // namespace lathe
