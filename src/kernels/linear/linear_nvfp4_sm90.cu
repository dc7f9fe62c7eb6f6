#include "kernels/linear/linear_nvfp4_sm90.h"

#include "kernels/linear/fp4_gemm_launch.h"

namespace lathe {
namespace {

template <class Decode, int kTokens, int kCluster, int kStages>
void launch(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
            const Bf16GemmConfig& config, CudaStream stream) {
  launch_fp4_gemm<Decode, Fp4GemmShape<Decode, kTokens, kCluster, kStages, 0>>(
      w, nullptr, x, y, config.group, stream);
}

struct Version {
  ScaleType scale;
  int tokens, cluster;
  void (*run)(const Fp4Tiles&, const CudaLinearInput&, const CudaLinearOutput&,
              const Bf16GemmConfig&, CudaStream);
};
constexpr Version kVersions[] = {
    {ScaleType::kE4M3, 256, 2, launch<DecodeNvfp4ToBf16, 256, 2, 5>},
    {ScaleType::kE4M3, 128, 2, launch<DecodeNvfp4ToBf16, 128, 2, 8>},
    {ScaleType::kE4M3, 64, 2, launch<DecodeNvfp4ToBf16, 64, 2, 8>},
    {ScaleType::kE8M0, 256, 2, launch<DecodeMxfp4ToBf16, 256, 2, 5>},
    {ScaleType::kE8M0, 128, 2, launch<DecodeMxfp4ToBf16, 128, 2, 8>},
    {ScaleType::kE8M0, 64, 2, launch<DecodeMxfp4ToBf16, 64, 2, 8>},
};

}  // namespace

std::string to_string(const Bf16GemmConfig& config) {
  return str("tokens ", config.tokens, " cluster ", config.cluster, " group ", config.group);
}

std::vector<Bf16GemmConfig> nvfp4_configs() {
  std::vector<Bf16GemmConfig> configs;
  for (const Version& version : kVersions) {
    if (version.scale == ScaleType::kE4M3) configs.push_back({version.tokens, version.cluster});
  }
  return configs;
}

Bf16GemmConfig choose_nvfp4_config(int64_t m, int64_t n, int64_t k, int num_sms) {
  (void)k;
  Bf16GemmConfig best;
  double least = 1e30;
  for (const int tokens : {256, 128, 64}) {
    const int64_t tiles = (m + tokens - 1) / tokens * ((n + 255) / 256) * 2;
    const double time = static_cast<double>((tiles + num_sms - 1) / num_sms) * tokens *
                        (tokens == 256 ? 1.0 : tokens == 128 ? 1.15 : 1.5);
    if (time < least) {
      least = time;
      best.tokens = tokens;
    }
  }
  return best;
}

void linear_nvfp4_sm90(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                       const Bf16GemmConfig& config, CudaStream stream) {
  if (w.element != ElementType::kE2M1) {
    fail(ErrorCode::kInvalidArgument, "linear_nvfp4_sm90 takes E2M1 weights");
  }
  check_fp4_gemm(w, x, y, CudaElement::kBF16);
  if (x.m == 0) return;
  for (const Version& version : kVersions) {
    if (version.scale == w.scale && version.tokens == config.tokens &&
        version.cluster == config.cluster) {
      return version.run(w, x, y, config, stream);
    }
  }
  fail(ErrorCode::kInvalidArgument, "linear_nvfp4_sm90 has no version for ", to_string(config));
}

}  // namespace lathe
