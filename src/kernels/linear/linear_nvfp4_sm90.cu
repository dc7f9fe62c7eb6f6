#include <iterator>

#include "kernels/linear/fp4_gemm_choice.h"
#include "kernels/linear/fp4_gemm_launch.h"
#include "kernels/linear/linear_nvfp4_sm90.h"

namespace lathe {
namespace {

template <class Decode, int kTokens, int kPanels, int kShare, int kSplits, int kStages>
void launch(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
            const Bf16GemmConfig& config, CudaStream stream) {
  using Shape = Fp4GemmShape<Decode, kTokens, kPanels, kShare, kSplits, kStages>;
  launch_fp4_gemm<Decode, Shape>(w, nullptr, x, y, config.token_group, stream);
}

using Run = void (*)(const Fp4Tiles&, const CudaLinearInput&, const CudaLinearOutput&,
                     const Bf16GemmConfig&, CudaStream);
// Tokens, panels, share, splits; nanoseconds of a stage, a tile and a launch (NVFP4).
constexpr Fp4GemmVersion kVersions[] = {
    {256, 2, 2, 1, 650, 2500, 3000}, {256, 2, 1, 2, 650, 5500, 2000},
    {128, 4, 1, 1, 780, 2500, 2000}, {128, 2, 1, 1, 400, 2500, 2000},
    {128, 2, 1, 2, 410, 4000, 2000}, {64, 4, 1, 1, 570, 2000, 2000},
    {64, 2, 1, 1, 320, 1500, 2000},  {64, 2, 1, 2, 320, 2000, 2000},
};
// The same, with the stages that fit into shared memory.
template <class Decode>
constexpr Run kRuns[] = {
    launch<Decode, 256, 2, 2, 1, 5>, launch<Decode, 256, 2, 1, 2, 3>,
    launch<Decode, 128, 4, 1, 1, 6>, launch<Decode, 128, 2, 1, 1, 8>,
    launch<Decode, 128, 2, 1, 2, 6>, launch<Decode, 64, 4, 1, 1, 12>,
    launch<Decode, 64, 2, 1, 1, 16>, launch<Decode, 64, 2, 1, 2, 15>,
};

Bf16GemmConfig config_of(const Fp4GemmVersion& v) {
  return {v.tokens, v.panels, v.share, v.splits};
}

}  // namespace

std::string to_string(const Bf16GemmConfig& config) {
  return str("tokens ", config.tokens, " panels ", config.panels, " share ", config.share,
             " splits ", config.splits, " token_group ", config.token_group);
}

std::vector<Bf16GemmConfig> nvfp4_configs(int64_t k) {
  std::vector<Bf16GemmConfig> configs;
  for (const Fp4GemmVersion& version : kVersions) {
    if (version.splits <= k / kTileColumns) configs.push_back(config_of(version));
  }
  return configs;
}

Bf16GemmConfig choose_nvfp4_config(int64_t m, int64_t n, int64_t k, int num_sms) {
  return config_of(kVersions[choose_fp4_gemm(kVersions, m, n, k / kTileColumns, num_sms)]);
}

void linear_nvfp4_sm90(const Fp4Tiles& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                       const Bf16GemmConfig& config, CudaStream stream) {
  const bool int4 = w.element == ElementType::kInt4 && w.scale == ScaleType::kBF16;
  const bool e2m1 = w.element == ElementType::kE2M1 &&
                    (w.scale == ScaleType::kE4M3 || w.scale == ScaleType::kE8M0);
  if (!int4 && !e2m1) {
    fail(ErrorCode::kInvalidArgument, "linear_nvfp4_sm90 takes NVFP4, MXFP4 and INT4 weights");
  }
  check_fp4_gemm(w, x, y, CudaElement::kBF16);
  if (x.m == 0) return;
  for (std::size_t i = 0; i < std::size(kVersions); ++i) {
    const Bf16GemmConfig version = config_of(kVersions[i]);
    if (version.tokens == config.tokens && version.panels == config.panels &&
        version.share == config.share && version.splits == config.splits) {
      const Run run = w.scale == ScaleType::kE4M3   ? kRuns<DecodeNvfp4ToBf16>[i]
                      : w.scale == ScaleType::kE8M0 ? kRuns<DecodeMxfp4ToBf16>[i]
                                                    : kRuns<DecodeInt4ToBf16>[i];
      return run(w, x, y, config, stream);
    }
  }
  fail(ErrorCode::kInvalidArgument, "linear_nvfp4_sm90 has no version for ", to_string(config));
}

}  // namespace lathe
