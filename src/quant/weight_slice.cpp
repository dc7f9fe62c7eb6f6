#include "quant/weight_slice.h"

#include <cstring>

#include "base/error.h"

namespace lathe {
namespace {

void check_range(const char* what, int64_t begin, int64_t end, int64_t size) {
  if (begin >= 0 && begin < end && end <= size) return;
  fail(ErrorCode::kInvalidArgument, what, " ", begin, " to ", end, " of a matrix with ", size);
}

QuantizedMatrix empty_part(const QuantizedMatrix& matrix, int64_t rows, int64_t cols) {
  QuantizedMatrix part = make_quantized_matrix(matrix.format, rows, cols);
  part.global_scale = matrix.global_scale;
  part.log_alpha = matrix.log_alpha;
  part.log_beta = matrix.log_beta;
  return part;
}

// `rows` runs of part_bytes, from the middle of rows of row_bytes.
void copy_runs(const Buffer& from, int64_t row_bytes, int64_t offset, int64_t rows,
               int64_t part_bytes, Buffer& to) {
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to.data() + row * part_bytes, from.data() + row * row_bytes + offset,
                static_cast<std::size_t>(part_bytes));
  }
}

}  // namespace

QuantizedMatrix slice_rows(const QuantizedMatrix& matrix, int64_t begin, int64_t end) {
  check_range("rows", begin, end, matrix.rows);
  QuantizedMatrix part = empty_part(matrix, end - begin, matrix.cols);
  copy_runs(matrix.codes, part.codes.size(), begin * matrix.code_row_bytes(), 1, part.codes.size(),
            part.codes);
  const int64_t scale_row = matrix.num_groups() * scale_bytes(matrix.format.scale);
  copy_runs(matrix.scales, part.scales.size(), begin * scale_row, 1, part.scales.size(),
            part.scales);
  return part;
}

QuantizedMatrix slice_columns(const QuantizedMatrix& matrix, int64_t begin, int64_t end) {
  check_range("columns", begin, end, matrix.cols);
  const int64_t group_size = matrix.format.group_size;
  const int64_t bits = element_bits(matrix.format.element);
  const int64_t unit = group_size > 0 ? group_size : 8 / bits;
  if (begin % unit != 0 || end % unit != 0) {
    fail(ErrorCode::kInvalidArgument, "columns ", begin, " to ", end, " of ",
         weight_format_name(matrix.format), " weights cut ",
         group_size > 0 ? "a group" : "a byte's codes", " of ", unit);
  }
  QuantizedMatrix part = empty_part(matrix, matrix.rows, end - begin);
  copy_runs(matrix.codes, matrix.code_row_bytes(), begin * bits / 8, matrix.rows,
            part.code_row_bytes(), part.codes);
  const int64_t bytes = scale_bytes(matrix.format.scale);
  const int64_t first_group = group_size > 0 ? begin / group_size : 0;  // 0: one for the whole row
  copy_runs(matrix.scales, matrix.num_groups() * bytes, first_group * bytes, matrix.rows,
            part.num_groups() * bytes, part.scales);
  return part;
}

}  // namespace lathe
