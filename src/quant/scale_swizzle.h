// The layout in which Blackwell's tensor cores read block scales ("128x4 swizzle"): tiles of 128
// rows x 4 scale columns, 512 bytes each; rows r, r+32, r+64, r+96 lie side by side.
// Source: spec/mr-gptq.md 7.3; PTX ISA, tcgen05.mma block scaling.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace lathe {

// Where the byte of row r, scale column c goes, for num_cols scale columns.
int64_t swizzled_scale_offset(int64_t r, int64_t c, int64_t num_cols);
// Bytes of the swizzled array: rows padded to 128, columns to 4.
int64_t swizzled_scale_bytes(int64_t num_rows, int64_t num_cols);
// scales: [num_rows, num_cols] row-major. Padding bytes are 0.
std::vector<uint8_t> swizzle_scales(std::span<const uint8_t> scales, int64_t num_rows,
                                    int64_t num_cols);
// Drops the padding again.
std::vector<uint8_t> unswizzle_scales(std::span<const uint8_t> swizzled, int64_t num_rows,
                                      int64_t num_cols);

}  // namespace lathe
