#include "quant/scale_swizzle.h"

#include "base/check.h"

namespace lathe {

int64_t swizzled_scale_offset(int64_t r, int64_t c, int64_t num_cols) {
  const int64_t tiles_per_row = (num_cols + 3) / 4;
  return (r / 128 * tiles_per_row + c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4;
}

int64_t swizzled_scale_bytes(int64_t num_rows, int64_t num_cols) {
  return (num_rows + 127) / 128 * 128 * ((num_cols + 3) / 4 * 4);
}

std::vector<uint8_t> swizzle_scales(std::span<const uint8_t> scales, int64_t num_rows,
                                    int64_t num_cols) {
  LATHE_CHECK(static_cast<int64_t>(scales.size()) == num_rows * num_cols);
  std::vector<uint8_t> out(static_cast<std::size_t>(swizzled_scale_bytes(num_rows, num_cols)));
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t c = 0; c < num_cols; ++c) {
      out[static_cast<std::size_t>(swizzled_scale_offset(r, c, num_cols))] =
          scales[static_cast<std::size_t>(r * num_cols + c)];
    }
  }
  return out;
}

std::vector<uint8_t> unswizzle_scales(std::span<const uint8_t> swizzled, int64_t num_rows,
                                      int64_t num_cols) {
  LATHE_CHECK(static_cast<int64_t>(swizzled.size()) == swizzled_scale_bytes(num_rows, num_cols));
  std::vector<uint8_t> out(static_cast<std::size_t>(num_rows * num_cols));
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t c = 0; c < num_cols; ++c) {
      out[static_cast<std::size_t>(r * num_cols + c)] =
          swizzled[static_cast<std::size_t>(swizzled_scale_offset(r, c, num_cols))];
    }
  }
  return out;
}

}  // namespace lathe
