#include "compress/gptq.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "compress/blas.h"
#include "compress/gptq_column.h"
#include "quant/encode.h"
#include "quant/fp4_e2m1.h"

namespace lathe {
namespace {

// Scales by group, one per row side by side.
struct ScaleTable {
  std::vector<double> stored;    // [groups, rows]
  std::vector<float> effective;  // [groups, rows]
};

ScaleTable transposed_scales(const QuantizedMatrix& matrix) {
  ScaleTable table;
  const int64_t groups = matrix.num_groups();
  table.stored.resize(static_cast<std::size_t>(groups * matrix.rows));
  table.effective.resize(table.stored.size());
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      const auto i = static_cast<std::size_t>(group * matrix.rows + row);
      table.stored[i] = stored_scale(matrix, row, group);
      table.effective[i] = effective_scale(matrix, row, group);
    }
  }
  return table;
}

// out[c, row] = w[row, order[c]]
void gather_columns(const float* w, int64_t rows, int64_t cols, const std::vector<int32_t>& order,
                    float* out, Exec& exec) {
  constexpr int64_t kRows = 16;  // one cache line of the output
  exec.threads.parallel_for((rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t first = begin * kRows; first < std::min(rows, end * kRows); first += kRows) {
      const int64_t last = std::min(rows, first + kRows);
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t col = order[static_cast<std::size_t>(c)];
        for (int64_t row = first; row < last; ++row) out[c * rows + row] = w[row * cols + col];
      }
    }
  });
}

// codes[c, row] of the visiting order -> the packed matrix.
void scatter_codes(const uint8_t* codes, const std::vector<int32_t>& order, QuantizedMatrix& matrix,
                   Exec& exec) {
  std::vector<int32_t> place(order.size());  // place[col]: when col was visited
  for (std::size_t c = 0; c < order.size(); ++c) {
    place[static_cast<std::size_t>(order[c])] = static_cast<int32_t>(c);
  }
  const bool nibbles = element_bits(matrix.format.element) == 4;
  exec.threads.parallel_for(matrix.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      uint8_t* out = matrix.codes.as<uint8_t>() + row * matrix.code_row_bytes();
      const auto code = [&](int64_t col) {
        return codes[int64_t{place[static_cast<std::size_t>(col)]} * matrix.rows + row];
      };
      if (nibbles) {
        for (int64_t i = 0; i < matrix.cols / 2; ++i) {
          out[i] = pack_nibbles(code(2 * i), code(2 * i + 1));
        }
      } else {
        for (int64_t i = 0; i < matrix.cols; ++i) out[i] = code(i);
      }
    }
  });
}

}  // namespace

GptqResult gptq(QuantizedMatrix& matrix, const float* w, const HessianFactor& factor, Exec& exec,
                int64_t block) {
  const int64_t rows = matrix.rows;
  const int64_t cols = matrix.cols;
  LATHE_CHECK(factor.k == cols && block >= 1);
  const int64_t group_size = matrix.format.group_size == 0 ? cols : matrix.format.group_size;
  const float* r = factor.normalised.as<float>();
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
  std::vector<double> errors(static_cast<std::size_t>(num_slabs), 0.0);
  for (int64_t first = 0; first < cols; first += block) {
    const int64_t width = std::min(block, cols - first);
    // t = w + (errors of all earlier columns) R / pivot
    std::memcpy(target, d + first * rows, static_cast<std::size_t>(width * rows) * sizeof(float));
    if (first > 0) {
      const BlasThreads threads(exec.threads.num_threads());
      gemm_at_b(width, rows, first, r + first, cols, d, rows, 1.0f, target, rows);
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
        double error = 0;
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
            error += residual * residual -
                     factor.added * double{column_error[j]} * double{column_error[j]};
          }
          std::memcpy(d_row, column_error, static_cast<std::size_t>(n) * sizeof(float));
          add_outer(t.data(), r + c * cols + first, column_error, i + 1, width);
        }
        errors[static_cast<std::size_t>(slab)] += error;
      }
    });
  }
  scatter_codes(codes.as<uint8_t>(), factor.order, matrix, exec);

  GptqResult result;
  for (const double error : errors) result.output_error += error;
  result.output_error = std::max(result.output_error, 0.0);
  return result;
}

void round_to_nearest(QuantizedMatrix& matrix, const float* w, Exec& exec) {
  exec.threads.parallel_for(matrix.rows, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) encode_row(matrix, row, w + row * matrix.cols);
  });
}

}  // namespace lathe
