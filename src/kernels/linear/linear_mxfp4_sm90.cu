#include "kernels/linear/linear_mxfp4_sm90.h"

#include "kernels/linear/fp4_gemm_launch.h"

namespace lathe {
namespace {

using Decode = DecodeMxfp4ToE5m2;

// A thread per row; scales of a row panel and k tile lie in 128 bytes.
__global__ void row_exponents_kernel(const std::byte* scales, int num_panels, int k_tiles,
                                     uint8_t* exponents) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= num_panels * 64) return;
  const std::byte* panel = scales + int64_t{row / 64} * k_tiles * Decode::kTileScaleBytes;
  uint8_t largest = 0;
  for (int tile = 0; tile < k_tiles; ++tile) {
    for (int group = 0; group < 2; ++group) {
      const auto e = static_cast<uint8_t>(
          panel[tile * Decode::kTileScaleBytes + tile_scale_offset(row % 64, group, 2, 1)]);
      largest = max(largest, e);
    }
  }
  exponents[row] = largest;
}

template <int kTokens, int kCluster, int kStages, int kPromote>
void launch(const Fp4Tiles& w, const uint8_t* exponents, const CudaLinearInput& x,
            const CudaLinearOutput& y, const Mxfp4Config& config, CudaStream stream) {
  launch_fp4_gemm<Decode, Fp4GemmShape<Decode, kTokens, kCluster, kStages, kPromote>>(
      w, exponents, x, y, config.group, stream);
}

struct Version {
  int tokens, cluster, promote;
  void (*run)(const Fp4Tiles&, const uint8_t*, const CudaLinearInput&, const CudaLinearOutput&,
              const Mxfp4Config&, CudaStream);
};
constexpr Version kVersions[] = {
    {256, 2, 0, launch<256, 2, 4, 0>}, {256, 1, 0, launch<256, 1, 4, 0>},
    {192, 2, 0, launch<192, 2, 5, 0>}, {128, 2, 0, launch<128, 2, 7, 0>},
    {128, 1, 0, launch<128, 1, 7, 0>}, {64, 2, 0, launch<64, 2, 8, 0>},
    {64, 1, 0, launch<64, 1, 8, 0>},   {192, 2, 2, launch<192, 2, 5, 2>},
    {128, 2, 1, launch<128, 2, 7, 1>}, {128, 2, 4, launch<128, 2, 7, 4>},
};

}  // namespace

std::string to_string(const Mxfp4Config& config) {
  return str("tokens ", config.tokens, " cluster ", config.cluster, " promote ", config.promote,
             " group ", config.group);
}

std::vector<Mxfp4Config> mxfp4_configs() {
  std::vector<Mxfp4Config> configs;
  for (const Version& version : kVersions) {
    configs.push_back({version.tokens, version.cluster, version.promote});
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
  for (const int tokens : {256, 128, 64}) {
    const double time = waves(tokens) * (tokens == 256 ? 1.0 : tokens == 128 ? 1.15 : 1.5);
    if (time < least) {
      least = time;
      best.tokens = tokens;
    }
  }
  return best;
}

void mxfp4_row_exponents(const Fp4Tiles& w, uint8_t* exponents, CudaStream stream) {
  const int num_panels = static_cast<int>((w.n + 63) / 64);
  row_exponents_kernel<<<num_panels, 64, 0, stream>>>(w.scales, num_panels,
                                                      static_cast<int>(w.k / 64), exponents);
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
    if (version.tokens == config.tokens && version.cluster == config.cluster &&
        version.promote == config.promote) {
      return version.run(w, exponents, x, y, config, stream);
    }
  }
  fail(ErrorCode::kInvalidArgument, "linear_mxfp4_sm90 has no version for ", to_string(config));
}

}  // namespace lathe
