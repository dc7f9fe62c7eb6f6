#include "compress/gptq.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "compress/gptq_column.h"
#include "compress/product.h"
#include "compress/transposed_matrix.h"
#include "quant/encode.h"

namespace lathe {
GptqResult gptq(QuantizedMatrix& matrix, const float* w, const HessianFactor& factor, Exec& exec,
                int64_t block, float* targets, CalibrationProfile* profile) {
  const int64_t rows = matrix.rows;
  const int64_t cols = matrix.cols;
  LATHE_CHECK(factor.k == cols && block >= 1);
  const int64_t group_size = matrix.format.group_size == 0 ? cols : matrix.format.group_size;
  const float* r = factor.normalised.as<float>();
  const CalibrationTimer timer(profile, CalibrationStage::kRound,
                               static_cast<double>(rows) * static_cast<double>(cols));
  const ScaleTable scales = transposed_scales(matrix);

  // Everything below is transposed, [columns in visiting order, rows]: a column is contiguous, and
  // rows are lanes. `d` starts as w and becomes D = w - w^ column by column.
  Buffer d_buffer(cols * rows * static_cast<int64_t>(sizeof(float)));
  float* d = d_buffer.as<float>();
  gather_columns(w, rows, cols, factor.order, d, exec);
  Buffer codes(cols * rows);
  Buffer target_buffer(std::min(block, cols) * rows * static_cast<int64_t>(sizeof(float)));
  float* target = target_buffer.as<float>();

  const int64_t num_slabs = (rows + kSlab - 1) / kSlab;
  GptqResult result;
  result.row_errors.assign(static_cast<std::size_t>(rows), 0.0);
  for (int64_t first = 0; first < cols; first += block) {
    const int64_t width = std::min(block, cols - first);
    // t = w + (errors of all earlier columns) R / pivot
    std::memcpy(target, d + first * rows, static_cast<std::size_t>(width * rows) * sizeof(float));
    if (first > 0) {
      const CalibrationTimer compensating(
          profile, CalibrationStage::kCompensate,
          2 * static_cast<double>(width) * static_cast<double>(rows) * static_cast<double>(first));
      add_product({.depth = first,
                   .a = r + first,
                   .a_stride = cols,
                   .b = d,
                   .b_stride = rows,
                   .c = target,
                   .c_stride = rows,
                   .rows = width,
                   .columns = rows,
                   .in_two_terms = true},
                  exec);
    }
    exec.threads.parallel_for(num_slabs, 1, [&](int64_t begin, int64_t end, int) {
      std::vector<float> t(static_cast<std::size_t>(width * kSlab));
      for (int64_t slab = begin; slab < end; ++slab) {
        const int64_t row = slab * kSlab;
        const int64_t n = std::min(kSlab, rows - row);
        for (int64_t i = 0; i < width; ++i) {
          std::memcpy(&t[static_cast<std::size_t>(i * kSlab)], target + i * rows + row,
                      static_cast<std::size_t>(n) * sizeof(float));
        }
        float values[kSlab] = {};
        float column_error[kSlab] = {};  // lanes behind the last row stay 0
        double* row_error = &result.row_errors[static_cast<std::size_t>(row)];
        for (int64_t i = 0; i < width; ++i) {
          const int64_t c = first + i;
          const int64_t group = factor.order[static_cast<std::size_t>(c)] / group_size;
          const float* t_row = &t[static_cast<std::size_t>(i * kSlab)];
          round_column(matrix.format, {.target = t_row,
                                       .scale = scales.stored.data() + group * rows + row,
                                       .effective = scales.effective.data() + group * rows + row,
                                       .global_scale = double{matrix.global_scale},
                                       .n = n,
                                       .codes = codes.as<uint8_t>() + c * rows + row,
                                       .values = values});
          float* d_row = d + c * rows + row;
          const double pivot = double{factor.pivot[static_cast<std::size_t>(c)]};
          for (int64_t j = 0; j < n; ++j) {
            column_error[j] = d_row[j] - values[j];
            // |D R|^2 has the damping in it; take that part out again.
            const double residual = (double{t_row[j]} - double{values[j]}) * pivot;
            row_error[j] += residual * residual -
                            factor.added * double{column_error[j]} * double{column_error[j]};
          }
          std::memcpy(d_row, column_error, static_cast<std::size_t>(n) * sizeof(float));
          add_outer(t.data(), r + c * cols + first, column_error, i + 1, width);
        }
        if (targets != nullptr) {
          for (int64_t j = 0; j < n; ++j) {
            for (int64_t i = 0; i < width; ++i) {
              targets[(row + j) * cols + factor.order[static_cast<std::size_t>(first + i)]] =
                  t[static_cast<std::size_t>(i * kSlab + j)];
            }
          }
        }
      }
    });
  }
  scatter_codes(codes.as<uint8_t>(), factor.order, matrix, exec);

  for (double& error : result.row_errors) {
    error = std::max(error, 0.0);
    result.output_error += error;
  }
  return result;
}

void round_to_nearest(QuantizedMatrix& matrix, const float* w, Exec& exec) {
  exec.threads.parallel_for(matrix.rows, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) encode_row(matrix, row, w + row * matrix.cols);
  });
}

}  // namespace lathe
