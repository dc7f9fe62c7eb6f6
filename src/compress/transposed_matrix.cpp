#include "compress/transposed_matrix.h"

#include <algorithm>
#include <numeric>

#include "quant/fp4_e2m1.h"

namespace lathe {

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

TransposedMatrix transpose(const QuantizedMatrix& matrix, const float* w, Exec& exec) {
  const int64_t rows = matrix.rows;
  const int64_t cols = matrix.cols;
  const auto bytes = rows * cols * static_cast<int64_t>(sizeof(float));
  TransposedMatrix out{
      .weight = Buffer(bytes), .error = Buffer(bytes), .codes = Buffer(rows * cols)};
  std::vector<int32_t> natural(static_cast<std::size_t>(cols));
  std::iota(natural.begin(), natural.end(), 0);
  gather_columns(w, rows, cols, natural, out.weight.as<float>(), exec);
  Buffer decoded(bytes);
  const bool nibbles = element_bits(matrix.format.element) == 4;
  exec.threads.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
    dequantize_rows(matrix, begin, end, decoded.as<float>() + begin * cols);
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* packed = matrix.codes.as<uint8_t>() + row * matrix.code_row_bytes();
      for (int64_t c = 0; c < cols; ++c) {
        const uint8_t byte = nibbles ? packed[c / 2] : packed[c];
        out.codes.as<uint8_t>()[c * rows + row] =
            !nibbles ? byte : (c % 2 == 0 ? low_nibble(byte) : high_nibble(byte));
      }
    }
  });
  gather_columns(decoded.as<float>(), rows, cols, natural, out.error.as<float>(), exec);
  exec.threads.parallel_for(rows * cols, 1 << 16, [&](int64_t begin, int64_t end, int) {
    const float* weight = out.weight.as<float>();
    float* error = out.error.as<float>();
    for (int64_t i = begin; i < end; ++i) error[i] = weight[i] - error[i];
  });
  return out;
}

}  // namespace lathe
