// The tiles of fp4_tiles.h made on the host, weight by weight: what tests compare with.
#pragma once
#include <cstddef>
#include <vector>

#include "kernels/linear/fp4_tiles.h"
#include "quant/weight_format.h"

namespace lathe {

struct HostFp4Tiles {
  std::vector<std::byte> codes;   // [ceil(n / 64)][k / 64][2048]
  std::vector<std::byte> scales;  // [ceil(n / 64)][k / 64][64 rows x scales of a row's 64 columns]
};

// Any 4-bit format with scales in one or two bytes whose group divides 64: MXFP4, NVFP4, INT4
// (group 32). The global scale is not part of it. Throws kInvalidArgument for other formats and
// when the columns are not a multiple of 64.
HostFp4Tiles pack_fp4_tiles_on_host(const QuantizedMatrix& matrix, Fp4Order order);

}  // namespace lathe
