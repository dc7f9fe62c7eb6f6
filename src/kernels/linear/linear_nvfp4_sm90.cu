#include "kernels/linear/linear_nvfp4_sm90.h"

#include "kernels/linear/fp4_gemm_launch.h"

namespace lathe {
namespace {

template <class Decode, int kTokens, int kShare, int kSplits, int kStages>
void launch(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
            const Bf16GemmConfig& config, CudaStream stream) {
  launch_fp4_gemm<Decode, Fp4GemmShape<Decode, kTokens, kShare, kSplits, kStages>>(
      w, nullptr, x, y, config.group, stream);
}

struct Version {
  ScaleType scale;
  int tokens, share, splits;
  void (*run)(const Fp4Tiles&, const CudaLinearInput&, const CudaLinearOutput&,
              const Bf16GemmConfig&, CudaStream);
};
constexpr Version kVersions[] = {
    {ScaleType::kE4M3, 256, 2, 1, launch<DecodeNvfp4ToBf16, 256, 2, 1, 4>},
    {ScaleType::kE4M3, 128, 2, 1, launch<DecodeNvfp4ToBf16, 128, 2, 1, 8>},
    {ScaleType::kE4M3, 128, 2, 2, launch<DecodeNvfp4ToBf16, 128, 2, 2, 4>},
    {ScaleType::kE4M3, 128, 2, 4, launch<DecodeNvfp4ToBf16, 128, 2, 4, 4>},
    {ScaleType::kE8M0, 256, 2, 1, launch<DecodeMxfp4ToBf16, 256, 2, 1, 4>},
    {ScaleType::kE8M0, 128, 2, 1, launch<DecodeMxfp4ToBf16, 128, 2, 1, 8>},
    {ScaleType::kE8M0, 128, 2, 2, launch<DecodeMxfp4ToBf16, 128, 2, 2, 4>},
    {ScaleType::kE8M0, 128, 2, 4, launch<DecodeMxfp4ToBf16, 128, 2, 4, 4>},
    {ScaleType::kBF16, 256, 2, 1, launch<DecodeInt4ToBf16, 256, 2, 1, 4>},
    {ScaleType::kBF16, 128, 2, 1, launch<DecodeInt4ToBf16, 128, 2, 1, 8>},
    {ScaleType::kBF16, 128, 2, 2, launch<DecodeInt4ToBf16, 128, 2, 2, 4>},
    {ScaleType::kBF16, 128, 2, 4, launch<DecodeInt4ToBf16, 128, 2, 4, 4>},
};

}  // namespace

std::string to_string(const Bf16GemmConfig& config) {
  return str("tokens ", config.tokens, " share ", config.share, " splits ", config.splits, " group ", config.group);
}

std::vector<Bf16GemmConfig> nvfp4_configs(int64_t k) {
  std::vector<Bf16GemmConfig> configs;
  for (const Version& version : kVersions) {
    if (version.scale == ScaleType::kE4M3 && version.splits <= k / kTileColumns) {
      configs.push_back({version.tokens, version.share, version.splits});
    }
  }
  return configs;
}

Bf16GemmConfig choose_nvfp4_config(int64_t m, int64_t n, int64_t k, int num_sms) {
  (void)k;
  Bf16GemmConfig best;
  double least = 1e30;
  for (const int tokens : {256, 128}) {
    const int64_t tiles = (m + tokens - 1) / tokens * ((n + 255) / 256) * 2;
    const double time = static_cast<double>((tiles + num_sms - 1) / num_sms) * tokens *
                        (tokens == 256 ? 1.0 : 1.15);
    if (time < least) {
      least = time;
      best.tokens = tokens;
    }
  }
  return best;
}

void linear_nvfp4_sm90(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                       const Bf16GemmConfig& config, CudaStream stream) {
  if ((w.element == ElementType::kInt4) != (w.scale == ScaleType::kBF16)) {
    fail(ErrorCode::kInvalidArgument, "linear_nvfp4_sm90 takes NVFP4, MXFP4 and INT4 weights");
  }
  check_fp4_gemm(w, x, y, CudaElement::kBF16);
  if (x.m == 0) return;
  for (const Version& version : kVersions) {
    if (version.scale == w.scale && version.tokens == config.tokens &&
        version.share == config.share && version.splits == config.splits) {
      return version.run(w, x, y, config, stream);
    }
  }
  fail(ErrorCode::kInvalidArgument, "linear_nvfp4_sm90 has no version for ", to_string(config));
}

}  // namespace lathe
