#include "kernels/linear/linear_mxfp4_sm90.h"

#include "kernels/linear/fp4_gemm_launch.h"

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
  auto* panel = reinterpret_cast<uint8_t*>(scales) + int64_t{row / 64} * k_tiles *
                                                         Decode::kTileScaleBytes;
  const auto scale = [&](int i) -> uint8_t& {
    return panel[int64_t{i / 2} * Decode::kTileScaleBytes + tile_scale_offset(row % 64, i % 2, 2, 1)];
  };
  int largest = 0;
  for (int i = lane; i < 2 * k_tiles; i += 32) largest = max(largest, int{scale(i)});
  for (int i = 16; i > 0; i /= 2) largest = max(largest, __shfl_xor_sync(~0u, largest, i));
  for (int i = lane; i < 2 * k_tiles; i += 32) {
    if (scale(i) < largest - kExponentSpan) scale(i) = static_cast<uint8_t>(largest - kExponentSpan);
  }
  if (lane == 0) exponents[row] = static_cast<uint8_t>(largest);
}

template <int kTokens, int kShare, int kSplits, int kStages>
void launch(const Fp4Tiles& w, const uint8_t* exponents, const CudaLinearInput& x,
            const CudaLinearOutput& y, const Mxfp4Config& config, CudaStream stream) {
  launch_fp4_gemm<Decode, Fp4GemmShape<Decode, kTokens, kShare, kSplits, kStages>>(
      w, exponents, x, y, config.group, stream);
}

struct Version {
  int tokens, share, splits;
  void (*run)(const Fp4Tiles&, const uint8_t*, const CudaLinearInput&, const CudaLinearOutput&,
              const Mxfp4Config&, CudaStream);
};
constexpr Version kVersions[] = {
    {256, 2, 1, launch<256, 2, 1, 4>}, {256, 1, 1, launch<256, 1, 1, 4>},
    {256, 2, 2, launch<256, 2, 2, 2>}, {128, 2, 1, launch<128, 2, 1, 8>},
    {128, 1, 1, launch<128, 1, 1, 8>}, {128, 2, 2, launch<128, 2, 2, 4>},
    {128, 1, 2, launch<128, 1, 2, 4>}, {128, 2, 4, launch<128, 2, 4, 4>},
    {128, 1, 4, launch<128, 1, 4, 4>},
};

}  // namespace

std::string to_string(const Mxfp4Config& config) {
  return str("tokens ", config.tokens, " share ", config.share, " splits ", config.splits,
             " group ", config.group);
}

std::vector<Mxfp4Config> mxfp4_configs(int64_t k) {
  std::vector<Mxfp4Config> configs;
  for (const Version& version : kVersions) {
    if (version.splits <= (k + Decode::kColumns - 1) / Decode::kColumns) {
      configs.push_back({version.tokens, version.share, version.splits});
    }
  }
  return configs;
}

Mxfp4Config choose_mxfp4_config(int64_t m, int64_t n, int64_t k, int num_sms) {
  (void)k;
  const auto waves = [&](int tokens) {
    const int64_t tiles = (m + tokens - 1) / tokens * ((n + 255) / 256) * 2;
    return static_cast<double>((tiles + num_sms - 1) / num_sms) * tokens;
  };
  Mxfp4Config best;
  double least = 1e30;
  for (const int tokens : {256, 128}) {
    const double time = waves(tokens) * (tokens == 256 ? 1.0 : 1.15);
    if (time < least) {
      least = time;
      best.tokens = tokens;
    }
  }
  return best;
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
  for (const Version& version : kVersions) {
    if (version.tokens == config.tokens && version.share == config.share &&
        version.splits == config.splits) {
      return version.run(w, exponents, x, y, config, stream);
    }
  }
  fail(ErrorCode::kInvalidArgument, "linear_mxfp4_sm90 has no version for ", to_string(config));
}

}  // namespace lathe
