// Descriptions of matrices for Hopper's copy engine. Only for files that are built with the
// toolkit.
#pragma once
#include <cuda.h>

#include <cstdint>

namespace lathe {

// A row-major matrix [rows, columns] of 1-, 2- or 4-byte elements, `stride_bytes` between its rows,
// copied in boxes of box_rows x box_columns that lie in shared memory with the 128-byte swizzle
// (box_columns elements are 128 bytes). Outside the matrix, loads give zeros and stores are
// dropped. data and stride_bytes are multiples of 16.
// Throws kInvalidArgument where the driver refuses, kDevice when it lacks the call.
CUtensorMap make_tensor_map(const void* data, int element_bytes, int64_t rows, int64_t columns,
                            int64_t stride_bytes, int box_rows);

// Rows [rows, pieces, bytes] of bytes, contiguous; boxes of box_rows x box_pieces x bytes lie in
// shared memory one after the other. bytes: a multiple of 16, at most 2048; rows and pieces that
// stand outside are zeros. data is 16-byte aligned. Errors as above.
CUtensorMap make_pieces_map(const void* data, int64_t rows, int64_t pieces, int bytes, int box_rows,
                            int box_pieces);

}  // namespace lathe
