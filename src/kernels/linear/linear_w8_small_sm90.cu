#include "kernels/linear/linear_w8_small_sm90.h"

#include <algorithm>
#include <limits>

#include "kernels/linear/fp4_gemm_check.h"
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
  const bool is_grouped = w.group_size == 32 &&
                          (w.scale == ScaleType::kBF16 || w.scale == ScaleType::kE8M0);
  const bool is_per_row = w.group_size == 0 && w.scale == ScaleType::kF32;
  if ((w.element != ElementType::kInt8 && w.element != ElementType::kE4M3) ||
      (!is_grouped && !is_per_row)) {
    fail(ErrorCode::kInvalidArgument, "8-bit weights need scales of bf16 or E8M0 per 32 columns or "
                                      "of f32 per row");
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
  if (x.m > 0 && (w.codes == nullptr || w.scales == nullptr || x.data == nullptr ||
                  y.data == nullptr || !aligned(w.codes) || !aligned(w.scales) ||
                  !aligned(x.data))) {
    fail(ErrorCode::kInvalidArgument, "linear layer: weights and input must be 16-byte aligned");
  }
}

int padded_rows(int64_t m) { return m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : 64; }

}  // namespace

std::string to_string(const W8SmallConfig& config) {
  return str("rows ", config.rows, " split ", config.split, " blocks ", config.blocks, " stages ",
             config.stages);
}

W8SmallConfig w8_small_config(int64_t m, int64_t n, int split, int num_sms) {
  W8SmallConfig config;
  config.rows = padded_rows(m);
  config.split = split;
  const int unit_rows = w8_small_unit_rows(config.rows);
  config.blocks = static_cast<int>(std::min<int64_t>((n + unit_rows - 1) / unit_rows, num_sms));
  const W8SmallLayout layout(config.rows, split, 2);
  config.stages = std::clamp((kW8SmallMaxShared - layout.bytes(0)) / layout.stage_bytes, 0,
                             kW8SmallMaxStages);
  if (config.stages < 2 || split > w8_small_warps(config.rows)) config.stages = 0;
  return config;
}

// Fewer parts along k read x fewer times; more keep all warps busy where a block has few rows.
W8SmallConfig choose_w8_small_config(int64_t m, int64_t n, int64_t k, int num_sms) {
  W8SmallConfig best;
  double best_time = std::numeric_limits<double>::infinity();
  for (const int split : {1, 2, 4, 8, 16}) {
    const W8SmallConfig config = w8_small_config(m, n, split, num_sms);
    if (config.stages == 0) continue;
    const int unit_rows = w8_small_unit_rows(config.rows);
    const int64_t units = (n + unit_rows - 1) / unit_rows;
    const int64_t block_units = (units + config.blocks - 1) / config.blocks;
    const int64_t pass_units = w8_small_warps(config.rows) / split;
    const int64_t passes = (block_units + pass_units - 1) / pass_units;
    const int64_t steps = (k + 128 * split - 1) / (128 * split);
    // In stages of 32 KiB of codes: what the memory delivers, and what the warps' time is.
    const double loaded =
        static_cast<double>(block_units * steps) / static_cast<double>(pass_units) +
        0.5 * static_cast<double>(passes * steps) * split * static_cast<double>(m) / 128.0;
    const double computed = 0.6 * static_cast<double>(passes * steps);
    const double time = std::max(loaded, computed) + 0.2 * static_cast<double>(passes);
    if (time < best_time) {
      best_time = time;
      best = config;
    }
  }
  return best;
}

void linear_w8_small_sm90(const W8Matrix& w, const CudaLinearInput& x, const CudaLinearOutput& y,
                          const W8SmallConfig& config, CudaStream stream) {
  check(w, x, y, config);
  if (x.m == 0) return;
  hopper_multiprocessors();
  const W8SmallLayout layout(config.rows, config.split, w.scale == ScaleType::kBF16 ? 2 : 1);
  if (config.stages < 2 || config.stages > kW8SmallMaxStages || config.blocks < 1 ||
      config.split < 1 || config.split > w8_small_warps(config.rows) ||
      (config.split & (config.split - 1)) != 0 || layout.bytes(config.stages) > kW8SmallMaxShared ||
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
  args.stages = config.stages;
  args.y_is_f32 = y.element == CudaElement::kF32;
  if (is_per_row) {
    run_w8_small_row(args, w.element, config, stream);
  } else if (w.scale == ScaleType::kBF16) {
    run_w8_small_bf16(args, w.element, config, stream);
  } else {
    run_w8_small_e8m0(args, w.element, config, stream);
  }
}

}  // namespace lathe
