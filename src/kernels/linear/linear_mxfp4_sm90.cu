#include <iterator>

#include "kernels/linear/fp4_gemm_choice.h"
#include "kernels/linear/fp4_gemm_launch.h"
#include "kernels/linear/linear_mxfp4_sm90.h"

namespace lathe {
namespace {

using Decode = DecodeMxfp4ToE5m2;

// The weight's scale exponents of a row that are lower than the largest by more than this are
// raised: what E5M2's normal numbers hold of E2M1's 2^-1 .. 2^2.
constexpr int kExponentSpan = 26;

// A warp per row; a row's two scales of a tile of 64 columns stand two bytes apart.
__global__ void row_exponents_kernel(std::byte* scales, int num_panels, int k_tiles,
                                     uint8_t* exponents) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (row >= num_panels * 64) return;
  auto* panel =
      reinterpret_cast<uint8_t*>(scales) + int64_t{row / 64} * k_tiles * Decode::kTileScaleBytes;
  const auto scale = [&](int i) -> uint8_t& {
    return panel[int64_t{i / 2} * Decode::kTileScaleBytes +
                 tile_scale_offset(row % 64, i % 2, 2, 1)];
  };
  int largest = 0;
  for (int i = lane; i < 2 * k_tiles; i += 32) largest = max(largest, int{scale(i)});
  for (int i = 16; i > 0; i /= 2) largest = max(largest, __shfl_xor_sync(~0u, largest, i));
  for (int i = lane; i < 2 * k_tiles; i += 32) {
    if (scale(i) < largest - kExponentSpan)
      scale(i) = static_cast<uint8_t>(largest - kExponentSpan);
  }
  if (lane == 0) exponents[row] = static_cast<uint8_t>(largest);
}

template <int kTokens, int kPanels, int kShare, int kSplits, int kStages>
void launch(const Fp4Tiles& w, const uint8_t* exponents, const CudaLinearInput& x,
            const CudaLinearOutput& y, const Mxfp4Config& config, CudaStream stream) {
  using Shape = Fp4GemmShape<Decode, kTokens, kPanels, kShare, kSplits, kStages>;
  launch_fp4_gemm<Decode, Shape>(w, exponents, x, y, config.token_group, stream);
}

using Run = void (*)(const Fp4Tiles&, const uint8_t*, const CudaLinearInput&,
                     const CudaLinearOutput&, const Mxfp4Config&, CudaStream);
// Tokens, panels, share, splits; nanoseconds of a stage, a tile and a launch.
constexpr Fp4GemmVersion kVersions[] = {
    {256, 2, 2, 1, 680, 2500, 3000}, {256, 2, 1, 1, 695, 2500, 2000},
    {256, 2, 1, 2, 695, 6500, 2000}, {128, 4, 1, 1, 800, 2500, 2000},
    {128, 2, 1, 1, 430, 2000, 2000}, {128, 2, 1, 2, 440, 4000, 2000},
    {64, 4, 1, 1, 560, 1500, 2000},  {64, 2, 1, 1, 330, 0, 2000},
    {64, 2, 1, 2, 345, 1400, 2000},
};
// The same, with the stages that fit into shared memory.
constexpr Run kRuns[] = {
    launch<256, 2, 2, 1, 5>, launch<256, 2, 1, 1, 5>, launch<256, 2, 1, 2, 3>,
    launch<128, 4, 1, 1, 6>, launch<128, 2, 1, 1, 8>, launch<128, 2, 1, 2, 6>,
    launch<64, 4, 1, 1, 8>,  launch<64, 2, 1, 1, 12>, launch<64, 2, 1, 2, 12>,
};
static_assert(std::size(kVersions) == std::size(kRuns));

int64_t num_stages(int64_t k) { return (k + Decode::kColumns - 1) / Decode::kColumns; }
Mxfp4Config config_of(const Fp4GemmVersion& v) { return {v.tokens, v.panels, v.share, v.splits}; }

}  // namespace

std::string to_string(const Mxfp4Config& config) {
  return str("tokens ", config.tokens, " panels ", config.panels, " share ", config.share,
             " splits ", config.splits, " token_group ", config.token_group);
}

std::vector<Mxfp4Config> mxfp4_configs(int64_t k) {
  std::vector<Mxfp4Config> configs;
  for (const Fp4GemmVersion& version : kVersions) {
    if (version.splits <= num_stages(k)) configs.push_back(config_of(version));
  }
  return configs;
}

Mxfp4Config choose_mxfp4_config(int64_t m, int64_t n, int64_t k, int num_sms) {
  return config_of(kVersions[choose_fp4_gemm(kVersions, m, n, num_stages(k), num_sms)]);
}

void mxfp4_row_exponents(const Fp4Tiles& w, uint8_t* exponents, CudaStream stream) {
  const int num_panels = static_cast<int>((w.n + 63) / 64);
  row_exponents_kernel<<<num_panels * 8, 256, 0, stream>>>(
      const_cast<std::byte*>(w.scales), num_panels, static_cast<int>(w.k / 64), exponents);
  cuda_check_launch("row_exponents");
}

void linear_mxfp4_sm90(const Fp4Tiles& w, const uint8_t* exponents, const CudaLinearInput& x,
                       const CudaLinearOutput& y, const Mxfp4Config& config, CudaStream stream) {
  if (w.element != ElementType::kE2M1 || w.scale != ScaleType::kE8M0) {
    fail(ErrorCode::kInvalidArgument, "linear_mxfp4_sm90 takes E2M1 weights with E8M0 scales");
  }
  check_fp4_gemm(w, x, y, CudaElement::kE4M3);
  if (x.m == 0) return;
  for (std::size_t i = 0; i < std::size(kVersions); ++i) {
    const Mxfp4Config version = config_of(kVersions[i]);
    if (version.tokens == config.tokens && version.panels == config.panels &&
        version.share == config.share && version.splits == config.splits) {
      return kRuns[i](w, exponents, x, y, config, stream);
    }
  }
  fail(ErrorCode::kInvalidArgument, "linear_mxfp4_sm90 has no version for ", to_string(config));
}

}  // namespace lathe
