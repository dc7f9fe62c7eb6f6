// The warpgroup matrix product of Hopper (wgmma), as the kernels here use it: A from registers, B
// from shared memory, fp32 accumulators.
//
//   D[64, N] += A[64, K] B[N, K]^T      K = 32 bytes: 32 columns of 8 bits or 16 of 16 bits
//
// B lies in shared memory as the copy engine's 128-byte swizzle leaves it: rows of 128 bytes,
// 1024-byte aligned atoms of 8 rows. Thread `warp * 32 + 4 g + t` of the warpgroup holds
//   A  four words: rows 16 warp + g (words 0 and 2) and 16 warp + g + 8 (words 1 and 3), bytes
//      4t .. 4t + 3 of the first 16 bytes of K (words 0 and 1) and of the last 16 (words 2 and 3)
//   D  d[4 j + i]: row 16 warp + g + 8 (i / 2), column 8 j + 2 t + i % 2
// wgmma runs asynchronously: neither A's registers nor D may be touched between wgmma() and the
// wgmma_wait() that covers it.
// Source: PTX ISA 9.0, "Asynchronous warpgroup level matrix instructions".
#pragma once
#include <cstdint>

namespace lathe {

// Orders earlier register writes (A, D) before the next products. It names the registers of the
// left operands so that the compiler finishes them before, not between the products.
__device__ __forceinline__ void wgmma_fence(uint32_t (&a)[2][4]) {
  asm volatile("wgmma.fence.sync.aligned;"
               : "+r"(a[0][0]), "+r"(a[0][1]), "+r"(a[0][2]), "+r"(a[0][3]), "+r"(a[1][0]),
                 "+r"(a[1][1]), "+r"(a[1][2]), "+r"(a[1][3])::"memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most `kPending` of the committed groups are still running.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Descriptor of B at a shared-memory address: 128-byte swizzle, 1024 bytes between groups of eight
// rows. Add 2 to go on by 32 bytes along K.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address) {
  return uint64_t{(address & 0x3FFFFu) >> 4} | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

// kFp8: left operand E5M2, right operand E4M3.
enum class WgmmaType { kFp8, kBf16 };

template <WgmmaType kType, int N>
struct Wgmma;

#define LATHE_WGMMA_D64                                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LATHE_WGMMA_D128                                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
  "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LATHE_WGMMA_D192                                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
  "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, " \
  "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, " \
  "%87, %88, %89, %90, %91, %92, %93, %94, %95"
#define LATHE_WGMMA_D256                                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "     \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "     \
  "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "     \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "     \
  "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "     \
  "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, " \
  "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, "      \
  "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define LATHE_WGMMA_R4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LATHE_WGMMA_R16(i) \
  LATHE_WGMMA_R4(i), LATHE_WGMMA_R4(i + 4), LATHE_WGMMA_R4(i + 8), LATHE_WGMMA_R4(i + 12)
#define LATHE_WGMMA_R32(i) LATHE_WGMMA_R16(i), LATHE_WGMMA_R16(i + 16)
#define LATHE_WGMMA_R64(i) LATHE_WGMMA_R32(i), LATHE_WGMMA_R32(i + 32)
#define LATHE_WGMMA_R96(i) LATHE_WGMMA_R64(i), LATHE_WGMMA_R32(i + 64)
#define LATHE_WGMMA_R128(i) LATHE_WGMMA_R64(i), LATHE_WGMMA_R64(i + 64)

// accumulate = 0 ignores what D held before.
#define LATHE_WGMMA(TYPE, N, REGISTERS, NAME, NEGATE, A0, A1, A2, A3, B, P)                   \
  template <>                                                                                 \
  struct Wgmma<WgmmaType::TYPE, N> {                                                          \
    static __device__ __forceinline__ void run(float (&d)[N / 2], const uint32_t (&a)[4],     \
                                               uint64_t b, int accumulate) {                  \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P                                     \
                   ", 0;\n"                                                                   \
                   "wgmma.mma_async.sync.aligned." NAME " {" LATHE_WGMMA_D##N                 \
                   "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p, 1, 1" NEGATE ";\n}\n" \
                   : LATHE_WGMMA_R##REGISTERS(0)                                              \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));    \
    }                                                                                         \
  };

LATHE_WGMMA(kFp8, 64, 32, "m64n64k32.f32.e5m2.e4m3", "", "32", "33", "34", "35", "36", "37")
LATHE_WGMMA(kFp8, 128, 64, "m64n128k32.f32.e5m2.e4m3", "", "64", "65", "66", "67", "68", "69")
LATHE_WGMMA(kFp8, 192, 96, "m64n192k32.f32.e5m2.e4m3", "", "96", "97", "98", "99", "100", "101")
LATHE_WGMMA(kFp8, 256, 128, "m64n256k32.f32.e5m2.e4m3", "", "128", "129", "130", "131", "132",
            "133")
LATHE_WGMMA(kBf16, 64, 32, "m64n64k16.f32.bf16.bf16", ", 0", "32", "33", "34", "35", "36", "37")
LATHE_WGMMA(kBf16, 128, 64, "m64n128k16.f32.bf16.bf16", ", 0", "64", "65", "66", "67", "68", "69")
LATHE_WGMMA(kBf16, 192, 96, "m64n192k16.f32.bf16.bf16", ", 0", "96", "97", "98", "99", "100", "101")
LATHE_WGMMA(kBf16, 256, 128, "m64n256k16.f32.bf16.bf16", ", 0", "128", "129", "130", "131", "132",
            "133")

#undef LATHE_WGMMA
#undef LATHE_WGMMA_D64
#undef LATHE_WGMMA_D128
#undef LATHE_WGMMA_D192
#undef LATHE_WGMMA_D256
#undef LATHE_WGMMA_R4
#undef LATHE_WGMMA_R16
#undef LATHE_WGMMA_R32
#undef LATHE_WGMMA_R64
#undef LATHE_WGMMA_R96
#undef LATHE_WGMMA_R128

}  // namespace lathe
