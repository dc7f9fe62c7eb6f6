// Which tile of fp4_gemm_sm90.h for which sizes: the one with the least time by a model of three
// numbers per version, so that the choice depends on the sizes alone and can be tested anywhere.
#pragma once
#include <cstdint>
#include <span>

namespace lathe {

struct Fp4GemmVersion {
  int tokens, panels, share, splits;  // fp4_gemm_sm90.h
  // What a stage (128 bytes of x) takes; what a tile takes beside its stages: filling the ring, the
  // exchange between blocks, the epilogue; and a launch. Fitted to an H200 and an H100 with all
  // blocks busy; on the H200's 40 cases that were fitted the choice is 0.7 % (MXFP4) and 0.1 %
  // (NVFP4) slower than the best version on average, at worst 8 % and 5 %.
  int stage_ns, tile_ns, launch_ns;
};

// Index of the fastest version for y[m, n] with a sum over `stages` stages, among those that can
// split it so often. At least one of `versions` has splits = 1.
int choose_fp4_gemm(std::span<const Fp4GemmVersion> versions, int64_t m, int64_t n, int64_t stages,
                    int num_sms);

}  // namespace lathe
