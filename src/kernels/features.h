// What this CPU can do, detected once.
#pragma once
#include <cstdint>
#include <string>

namespace lathe {

enum CpuFeature : uint32_t {
  kAvx2 = 1u << 0,    // with FMA and F16C
  kAvx512 = 1u << 1,  // F, BW, VL, DQ
  kAvx512Vnni = 1u << 2,
  kAvx512Vbmi = 1u << 3,
  kAvx512Bf16 = 1u << 4,
  kAmxBf16 = 1u << 5,  // tiles, bf16 products, and the system lets this process use them
};

uint32_t cpu_features();
std::string cpu_features_text();  // "avx2 avx512 avx512_vnni"

}  // namespace lathe
