#include "kernels/linear/fp4_tiles_host.h"

#include <cstring>

#include "base/error.h"
#include "quant/fp4_e2m1.h"

namespace lathe {

HostFp4Tiles pack_fp4_tiles_on_host(const QuantizedMatrix& matrix, Fp4Order order) {
  const WeightFormat& format = matrix.format;
  const int64_t scale_size = scale_bytes(format.scale);
  if (element_bits(format.element) != 4 || scale_size > 2 || format.group_size < 16 ||
      kTileColumns % format.group_size != 0) {
    fail(ErrorCode::kInvalidArgument, "tiles of 4-bit weights cannot hold ",
         weight_format_name(format));
  }
  if (matrix.cols % kTileColumns != 0) {
    fail(ErrorCode::kInvalidArgument, "a matrix of ", matrix.cols,
         " columns; tiles need a multiple of ", kTileColumns);
  }
  const int64_t panels = (matrix.rows + kTileRows - 1) / kTileRows;
  const int64_t k_tiles = matrix.cols / kTileColumns;
  const int groups = static_cast<int>(kTileColumns / format.group_size);
  const int64_t tile_scale_bytes = kTileRows * groups * scale_size;
  HostFp4Tiles tiles;
  tiles.codes.resize(static_cast<std::size_t>(panels * k_tiles * kTileCodeBytes));
  tiles.scales.resize(static_cast<std::size_t>(panels * k_tiles * tile_scale_bytes));

  const auto* codes = reinterpret_cast<const uint8_t*>(matrix.codes.data());
  for (int64_t row = 0; row < matrix.rows; ++row) {
    const int tile_row = static_cast<int>(row % kTileRows);
    const int64_t first_tile = row / kTileRows * k_tiles;
    for (int64_t column = 0; column < matrix.cols; ++column) {
      const uint8_t byte = codes[row * matrix.code_row_bytes() + column / 2];
      const uint32_t code = column % 2 == 0 ? low_nibble(byte) : high_nibble(byte);
      const TilePlace at = tile_place(order, tile_row, static_cast<int>(column % kTileColumns));
      std::byte* word = &tiles.codes[static_cast<std::size_t>(
          (first_tile + column / kTileColumns) * kTileCodeBytes + at.thread * 16 + at.word * 4)];
      uint32_t bits;
      std::memcpy(&bits, word, 4);
      bits |= format.element == ElementType::kE2M1 ? e2m1_word_bits(code, at.index)
                                                   : (code ^ 8u) << (4 * at.index);
      std::memcpy(word, &bits, 4);
    }
    for (int64_t group = 0; group < matrix.num_groups(); ++group) {
      const int64_t tile = first_tile + group / groups;
      const int offset = tile_scale_offset(tile_row, static_cast<int>(group % groups), groups,
                                           static_cast<int>(scale_size));
      std::memcpy(&tiles.scales[static_cast<std::size_t>(tile * tile_scale_bytes + offset)],
                  matrix.scales.data() + (row * matrix.num_groups() + group) * scale_size,
                  static_cast<std::size_t>(scale_size));
    }
  }
  return tiles;
}

}  // namespace lathe
