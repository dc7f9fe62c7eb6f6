// Weights, codes and scales with rows as lanes: [columns, rows], so that a piece of one column is
// contiguous. What the column loops of GPTQ and coordinate descent work on.
#pragma once
#include <cstdint>
#include <vector>

#include "quant/weight_format.h"
#include "tensor/exec.h"

namespace lathe {

struct ScaleTable {
  std::vector<double> stored;    // [groups, rows], stored_scale()
  std::vector<float> effective;  // [groups, rows], effective_scale()
};
ScaleTable transposed_scales(const QuantizedMatrix& matrix);

// out[c, row] = w[row, order[c]]
void gather_columns(const float* w, int64_t rows, int64_t cols, const std::vector<int32_t>& order,
                    float* out, Exec& exec);

// codes[c, row], column order[c] of the matrix, one code a byte -> packed codes.
void scatter_codes(const uint8_t* codes, const std::vector<int32_t>& order, QuantizedMatrix& matrix,
                   Exec& exec);

struct TransposedMatrix {
  Buffer weight;  // [cols, rows] f32
  Buffer error;   // [cols, rows] f32, weight minus decoded weight
  Buffer codes;   // [cols, rows] u8, one code a byte
};
TransposedMatrix transpose(const QuantizedMatrix& matrix, const float* w, Exec& exec);

}  // namespace lathe
