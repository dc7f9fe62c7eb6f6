#include <algorithm>
#include <limits>

#include "kernels/linear/fp4_gemm_check.h"
#include "kernels/linear/linear_w8_small_sm90.h"
#include "kernels/linear/w8_small_sm90.h"

namespace lathe {
namespace {

void check(const W8Matrix& w, const CudaLinearInput& x, const CudaLinearOutput& y,
           const W8SmallConfig& config) {
  constexpr int64_t kMaxSize = std::numeric_limits<int>::max() / 512;
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  if (w.n < 1 || w.k < 32 || w.k % 32 != 0 || w.n > kMaxSize || w.k > kMaxSize) {
    fail(ErrorCode::kInvalidArgument, "an 8-bit weight of ", w.n, " x ", w.k,
         "; the columns must be a multiple of 32");
  }
  const bool is_int8 = w.element == ElementType::kInt8, is_e4m3 = w.element == ElementType::kE4M3;
  const bool is_grouped = w.group_size == 32 && ((is_int8 && w.scale == ScaleType::kBF16) ||
                                                 (is_e4m3 && w.scale == ScaleType::kE8M0));
  const bool is_per_row = w.group_size == 0 && w.scale == ScaleType::kF32 && (is_int8 || is_e4m3);
  if (!is_grouped && !is_per_row) {
    fail(ErrorCode::kInvalidArgument,
         "8-bit weights need scales per 32 columns, bf16 for INT8 and E8M0 for E4M3, or f32 per "
         "row");
  }
  if (x.m < 0 || x.m > kW8SmallMaxRows || x.m > config.rows || x.k != w.k ||
      x.element != CudaElement::kBF16) {
    fail(ErrorCode::kInvalidArgument, "an input of ", x.m, " x ", x.k, " for a weight of ", w.n,
         " x ", w.k, " by a kernel of bf16 and ", config.rows, " rows");
  }
  if (y.element == CudaElement::kE4M3 || y.stride < w.n) {
    fail(ErrorCode::kInvalidArgument, "an output of ", w.n, " columns with row stride ", y.stride,
         "; it must be bf16 or f32");
  }
  if (x.m > 0 &&
      (w.codes == nullptr || w.scales == nullptr || x.data == nullptr || y.data == nullptr ||
       !aligned(w.codes) || !aligned(w.scales) || !aligned(x.data))) {
    fail(ErrorCode::kInvalidArgument, "linear layer: weights and input must be 16-byte aligned");
  }
}

int padded_rows(int64_t m) { return m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : 64; }

}  // namespace

std::string to_string(const W8SmallConfig& config) {
  return str("rows ", config.rows, " split ", config.split, " cluster ", config.cluster, " blocks ",
             config.blocks, " stages ", config.stages);
}

W8SmallConfig w8_small_config(int64_t m, int64_t n, int split, int cluster, int num_sms) {
  W8SmallConfig config;
  config.rows = padded_rows(m);
  config.split = split;
  config.cluster = cluster;
  const int unit_rows = w8_small_unit_rows(config.rows);
  // Larger clusters must fit into groups of 16 or 18 multiprocessors.
  const int available = cluster <= 2 ? num_sms / cluster : num_sms / 16 * 16 / cluster;
  const int64_t clusters =
      std::clamp<int64_t>((n + unit_rows - 1) / unit_rows, 1, std::max(available, 1));
  config.blocks = static_cast<int>(clusters) * cluster;
  const W8SmallLayout layout(config.rows, split, cluster, 2);
  const int shared = config.rows <= 16 ? kW8SmallHalfShared : kW8SmallMaxShared;
  config.stages = std::clamp((shared - layout.bytes(0)) / layout.stage_bytes, 0, kW8SmallMaxStages);
  if (config.stages < 3 || split > w8_small_warps(config.rows)) config.stages = 0;
  return config;
}

// Few parts along k within a block read x few times; more keep all warps busy where a block has few
// rows, and two blocks along k let each have more rows. Clusters of 4 and 8 never came out ahead.
// The constants fit measurements of 64 sizes, formats and cards (H100, H200): on average within 1 %
// of the best choice, at most 9 %.
W8SmallConfig choose_w8_small_config(int64_t m, int64_t n, int64_t k, int num_sms) {
  W8SmallConfig best;
  double best_time = std::numeric_limits<double>::infinity();
  for (const int cluster : {1, 2}) {
    for (const int split : {1, 2, 4, 8}) {
      const W8SmallConfig config = w8_small_config(m, n, split, cluster, num_sms);
      if (config.stages == 0) continue;
      const int unit_rows = w8_small_unit_rows(config.rows);
      const int64_t units = (n + unit_rows - 1) / unit_rows;
      const int64_t clusters = config.blocks / cluster;
      const int64_t cluster_units = (units + clusters - 1) / clusters;
      const int64_t pass_units = w8_small_warps(config.rows) / split;
      const int64_t passes = (cluster_units + pass_units - 1) / pass_units;
      const int64_t all_steps = (k + 128 * split - 1) / (128 * split);
      const int64_t steps = (all_steps + cluster - 1) / cluster;
      // In bytes of W that a block could read in the time: W and x, or what the warps multiply; and
      // the end of a pass.
      const double w_bytes = static_cast<double>(cluster_units * unit_rows * steps * 128 * split);
      const double x_bytes = static_cast<double>(passes * steps * 256 * split * m);
      const double stage = w8_small_warps(config.rows) * unit_rows * 128;
      const double computed =
          0.76 * static_cast<double>(passes * steps) * stage * (1 + config.rows / 77.0);
      const double sums = config.rows / 16.0 * (unit_rows / 16.0);
      const double end = cluster > 1 ? 22016 * sums : split > 1 ? 19968 * sums : 1024;
      const double time =
          std::max(w_bytes + 0.24 * x_bytes, computed) + static_cast<double>(passes) * end;
      if (time < best_time) {
        best_time = time;
        best = config;
      }
    }
  }
  return best;
}

void linear_w8_small_sm90(const W8Matrix& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                          const W8SmallConfig& config, CudaStream stream) {
  check(w, x, y, config);
  if (x.m == 0) return;
  hopper_multiprocessors();
  const W8SmallLayout layout(config.rows, config.split, config.cluster,
                             w.scale == ScaleType::kBF16 ? 2 : 1);
  if (config.stages < 2 || config.stages > kW8SmallMaxStages || config.blocks < 1 ||
      config.split < 1 || config.split > w8_small_warps(config.rows) ||
      (config.split & (config.split - 1)) != 0 || config.cluster < 1 || config.cluster > 8 ||
      config.blocks % config.cluster != 0 || layout.bytes(config.stages) > kW8SmallMaxShared ||
      padded_rows(config.rows) != config.rows) {
    fail(ErrorCode::kInvalidArgument, "8-bit linear layer: ", to_string(config));
  }
  W8SmallArgs args = {};
  args.codes = reinterpret_cast<const uint8_t*>(w.codes);
  const bool is_per_row = w.group_size == 0;
  if (is_per_row) {
    args.scale_of_row = reinterpret_cast<const float*>(w.scales);
  } else {
    args.scales = reinterpret_cast<const uint8_t*>(w.scales);
  }
  args.row_scales = w.row_scales;
  args.bias = w.bias;
  args.x = static_cast<const __nv_bfloat16*>(x.data);
  args.x_scales = x.row_scales;
  args.y = y.data;
  args.y_stride = y.stride;
  args.n = static_cast<int>(w.n);
  args.k = static_cast<int>(w.k);
  args.m = static_cast<int>(x.m);
  const int unit_rows = w8_small_unit_rows(config.rows);
  args.units = (args.n + unit_rows - 1) / unit_rows;
  while (1 << args.split_shift < config.split) ++args.split_shift;
  args.cluster = config.cluster;
  args.stages = config.stages;
  args.y_is_f32 = y.element == CudaElement::kF32;
  if (is_per_row) {
    run_w8_small_row(args, w.element, config, stream);
  } else if (w.scale == ScaleType::kBF16) {
    run_w8_small_bf16(args, config, stream);
  } else {
    run_w8_small_e8m0(args, config, stream);
  }
}

}  // namespace lathe
