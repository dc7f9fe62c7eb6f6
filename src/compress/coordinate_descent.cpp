#include "compress/coordinate_descent.h"

#include <algorithm>
#include <cstring>

#include "compress/blas.h"
#include "compress/gptq_column.h"
#include "compress/transposed_matrix.h"

namespace lathe {
namespace {

constexpr int64_t kBlock = 128;

// One pass over all columns; returns how many codes changed.
int64_t sweep(const QuantizedMatrix& matrix, const float* h, double added, const ScaleTable& scales,
              TransposedMatrix& state, Buffer& gradient, Exec& exec) {
  const int64_t rows = matrix.rows;
  const int64_t cols = matrix.cols;
  const int64_t group_size = matrix.format.group_size == 0 ? cols : matrix.format.group_size;
  float* d = state.error.as<float>();
  float* g = gradient.as<float>();
  const int64_t num_slabs = (rows + kSlab - 1) / kSlab;
  std::vector<int64_t> changed(static_cast<std::size_t>(num_slabs));
  for (int64_t first = 0; first < cols; first += kBlock) {
    const int64_t width = std::min(kBlock, cols - first);
    {
      // g = D H for the columns of this block, with D as it is before the block.
      const BlasThreads threads(exec.threads.num_threads());
      gemm_at_b(width, rows, cols, h + first, cols, d, rows, 0.0f, g, rows);
    }
    exec.threads.parallel_for(num_slabs, 1, [&](int64_t begin, int64_t end, int) {
      std::vector<float> slab_gradient(static_cast<std::size_t>(width * kSlab));
      for (int64_t slab = begin; slab < end; ++slab) {
        const int64_t row = slab * kSlab;
        const int64_t n = std::min(kSlab, rows - row);
        for (int64_t i = 0; i < width; ++i) {
          std::memcpy(&slab_gradient[static_cast<std::size_t>(i * kSlab)], g + i * rows + row,
                      static_cast<std::size_t>(n) * sizeof(float));
        }
        float target[kSlab] = {};
        float values[kSlab] = {};
        float step[kSlab] = {};
        uint8_t fresh[kSlab] = {};
        for (int64_t i = 0; i < width; ++i) {
          const int64_t c = first + i;
          const int64_t group = c / group_size;
          const float curvature = h[c * cols + c];
          float* d_row = d + c * rows + row;
          const float* w_row = state.weight.as<float>() + c * rows + row;
          const float* g_row = &slab_gradient[static_cast<std::size_t>(i * kSlab)];
          const float inverse = 1.0f / (curvature + static_cast<float>(added));
          for (int64_t j = 0; j < n; ++j) {
            target[j] = w_row[j] + (g_row[j] - d_row[j] * curvature) * inverse;
          }
          round_column(matrix.format, {.target = target,
                                       .scale = scales.stored.data() + group * rows + row,
                                       .effective = scales.effective.data() + group * rows + row,
                                       .global_scale = double{matrix.global_scale},
                                       .n = n,
                                       .codes = fresh,
                                       .values = values});
          uint8_t* code_row = state.codes.as<uint8_t>() + c * rows + row;
          int64_t changes = 0;
          for (int64_t j = 0; j < n; ++j) {
            const float after = w_row[j] - values[j];
            step[j] = after - d_row[j];
            d_row[j] = after;
            changes += fresh[j] != code_row[j];
            code_row[j] = fresh[j];
          }
          changed[static_cast<std::size_t>(slab)] += changes;
          if (changes > 0) {
            add_outer(slab_gradient.data(), h + c * cols + first, step, i + 1, width);
          }
        }
      }
    });
  }
  int64_t total = 0;
  for (const int64_t changes : changed) total += changes;
  return total;
}

}  // namespace

int coordinate_descent(QuantizedMatrix& matrix, const float* w, const float* h, double added,
                       int max_sweeps, Exec& exec) {
  if (max_sweeps <= 0) return 0;
  const ScaleTable scales = transposed_scales(matrix);
  TransposedMatrix state = transpose(matrix, w, exec);
  Buffer gradient(std::min(kBlock, matrix.cols) * matrix.rows *
                  static_cast<int64_t>(sizeof(float)));
  int sweeps = 0;
  while (sweeps < max_sweeps) {
    const int64_t changed = sweep(matrix, h, added, scales, state, gradient, exec);
    ++sweeps;
    if (changed * 1000 < matrix.rows * matrix.cols) break;
  }
  std::vector<int32_t> natural(static_cast<std::size_t>(matrix.cols));
  for (std::size_t c = 0; c < natural.size(); ++c) natural[c] = static_cast<int32_t>(c);
  scatter_codes(state.codes.as<uint8_t>(), natural, matrix, exec);
  return sweeps;
}

}  // namespace lathe
