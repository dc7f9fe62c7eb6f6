#include "kernels/linear/small_linear.h"

#include "base/error.h"

namespace lathe {

std::string to_string(const SmallLinearConfig& config) {
  return str("rows ", config.rows, " strips ", config.strips, " blocks ", config.blocks);
}

SmallLinearConfig small_linear_config(int64_t m, int64_t n, int strips, int num_sms) {
  SmallLinearConfig config;
  config.rows = m <= 8 ? 8 : 16;
  config.strips = strips;
  const int64_t panels = (n + 16 * strips - 1) / (16 * strips);
  const int64_t residents = int64_t{num_sms} * kSmallLinearResidents;
  // Every block has the same number of panels, but for the last ones.
  const int64_t rounds = (panels + residents - 1) / residents;
  config.blocks = static_cast<int>((panels + rounds - 1) / rounds);
  return config;
}

SmallLinearConfig choose_small_linear_config(int64_t m, int64_t n, int num_sms) {
  // Wide panels read x less often, narrow ones keep more multiprocessors busy.
  for (const int strips : {4, 2}) {
    if ((n + 16 * strips - 1) / (16 * strips) >= num_sms * 6 / 5) {
      return small_linear_config(m, n, strips, num_sms);
    }
  }
  return small_linear_config(m, n, 1, num_sms);
}

}  // namespace lathe
