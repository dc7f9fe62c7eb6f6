// Parts of a quantized matrix: same numbers, smaller matrix. dequantize_rows() of a part equals
// that part of the whole, bit for bit.
#pragma once
#include <cstdint>

#include "quant/weight_format.h"

namespace lathe {

// Rows [begin, end). Throws kInvalidArgument unless 0 <= begin < end <= rows.
QuantizedMatrix slice_rows(const QuantizedMatrix& matrix, int64_t begin, int64_t end);

// Columns [begin, end). Throws kInvalidArgument unless 0 <= begin < end <= cols, and where an end
// would cut a group of columns that share a scale, or two codes of a byte.
QuantizedMatrix slice_columns(const QuantizedMatrix& matrix, int64_t begin, int64_t end);

}  // namespace lathe
