// Left-looking, in blocks of rows: what the finished rows above contribute is subtracted by one
// product, U[0:b, b:b+w]^T U[0:b, b:], then the block is finished strip by strip in the same way,
// first its square, then the columns to the right of it.
#include "compress/cholesky.h"

#include <algorithm>
#include <cmath>

#include "compress/product.h"

namespace lathe {
namespace {

constexpr int64_t kStrip = 24;  // rows that are eliminated one by one

// Elements [begin, end) of `rows` rows from `row` on, less what the rows from `first` to them
// contribute.
void subtract_finished(int64_t k, float* a, int64_t first, int64_t row, int64_t rows, int64_t begin,
                       int64_t end, float* scratch) {
  add_product_block({.depth = row - first,
                     .a = a + first * k + row,
                     .a_stride = k,
                     .b = a + first * k + begin,
                     .b_stride = k,
                     .c = a + row * k + begin,
                     .c_stride = k,
                     .rows = rows,
                     .columns = end - begin,
                     .diagonal = begin - row,
                     .subtract = true},
                    scratch);
}

// Columns [begin, end) of rows [first, first + width), whose square is finished: solves
// U[square]^T X = A.
void solve_columns(int64_t k, float* a, int64_t first, int64_t width, int64_t begin, int64_t end,
                   float* scratch) {
  for (int64_t strip = 0; strip < width; strip += kStrip) {
    const int64_t row = first + strip;
    const int64_t rows = std::min(kStrip, width - strip);
    subtract_finished(k, a, first, row, rows, begin, end, scratch);
    for (int64_t i = row; i < row + rows; ++i) {
      const float inverse = 1.0f / a[i * k + i];
      float* x = a + i * k;
      for (int64_t j = begin; j < end; ++j) x[j] *= inverse;
      for (int64_t below = i + 1; below < row + rows; ++below) {
        const float factor = a[i * k + below];
        float* y = a + below * k;
        for (int64_t j = begin; j < end; ++j) y[j] -= factor * x[j];
      }
    }
  }
}

// The square of rows and columns [first, first + width).
bool factor_square(int64_t k, float* a, int64_t first, int64_t width, float* scratch) {
  const int64_t end = first + width;
  for (int64_t row = first; row < end; row += kStrip) {
    const int64_t rows = std::min(kStrip, end - row);
    subtract_finished(k, a, first, row, rows, row, end, scratch);
    for (int64_t i = row; i < row + rows; ++i) {
      float* x = a + i * k;
      if (!(x[i] > 0)) return false;  // a NaN too
      const float pivot = std::sqrt(x[i]);
      x[i] = pivot;
      const float inverse = 1.0f / pivot;
      for (int64_t j = i + 1; j < end; ++j) x[j] *= inverse;
      for (int64_t below = i + 1; below < row + rows; ++below) {
        float* y = a + below * k;
        const float factor = x[below];
        for (int64_t j = below; j < end; ++j) y[j] -= factor * x[j];
      }
    }
  }
  return true;
}

}  // namespace

bool cholesky_upper(int64_t k, float* a, Exec& exec) {
  const Workspace::Scope scope(exec.workspace);
  float* scratch =
      exec.workspace.allocate_as<float>(exec.threads.num_threads() * product_scratch_floats());
  for (int64_t first = 0; first < k; first += kProductBlock) {
    const int64_t width = std::min(kProductBlock, k - first);
    add_product({.depth = first,
                 .a = a + first,
                 .a_stride = k,
                 .b = a + first,
                 .b_stride = k,
                 .c = a + first * k + first,
                 .c_stride = k,
                 .rows = width,
                 .columns = k - first,
                 .diagonal = 0,
                 .subtract = true},
                exec);
    if (!factor_square(k, a, first, width, scratch)) return false;
    const int64_t right = first + width;
    const int64_t num_pieces = (k - right + kProductBlock - 1) / kProductBlock;
    exec.threads.parallel_for(num_pieces, 1, [&](int64_t begin, int64_t end, int thread_idx) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t column = right + piece * kProductBlock;
        solve_columns(k, a, first, width, column, std::min(k, column + kProductBlock),
                      scratch + thread_idx * product_scratch_floats());
      }
    });
  }
  return true;
}

}  // namespace lathe
