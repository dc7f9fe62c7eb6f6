#include "kernels/linear/fp4_gemm_choice.h"

namespace lathe {

int choose_fp4_gemm(std::span<const Fp4GemmVersion> versions, int64_t m, int64_t n, int64_t stages,
                    int num_sms) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int best = -1;
  int64_t least = 0;
  for (std::size_t i = 0; i < versions.size(); ++i) {
    const Fp4GemmVersion& v = versions[i];
    if (stages < v.splits) continue;
    const int64_t tiles = ceil_div(m, v.tokens) * ceil_div(n, int64_t{64} * v.panels * v.share);
    const int64_t clusters = num_sms / (v.share * v.splits);
    const int64_t time = v.launch_ns + ceil_div(tiles, clusters) *
                                           (ceil_div(stages, v.splits) * v.stage_ns + v.tile_ns);
    if (best < 0 || time < least) {
      best = static_cast<int>(i);
      least = time;
    }
  }
  return best;
}

}  // namespace lathe
