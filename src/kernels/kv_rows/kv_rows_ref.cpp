#include <cmath>

#include "kernels/kv_rows/kv_rows.h"

namespace lathe {

void multiply_add_rows_ref(const MultiplyAddRowsArgs& a, Exec&) {
  for (int64_t t = 0; t < a.num_rows; ++t) {
    for (int64_t j = 0; j < a.n; ++j) {
      const float* w =
          a.w + j / kMultiplyAddPanel * kMultiplyAddPanel * a.k + j % kMultiplyAddPanel;
      float sum = a.y[t * a.y_stride + j];
      for (int64_t k = 0; k < a.k; ++k) {
        sum = std::fma(a.x[t * a.x_stride + k], w[k * kMultiplyAddPanel], sum);
      }
      a.y[t * a.y_stride + j] = sum;
    }
  }
}

void encode_kv_rows_ref(const KvRowsArgs& a, Exec& exec) {
  const int64_t width = a.shape.width();
  for (int64_t t = 0; t < a.num_rows; ++t) {
    float residual[kMaxRowWidth];
    for (int64_t j = 0; j < width; ++j) {
      residual[j] = a.exact[t * width + j] - a.rows[t * width + j];
    }
    encode_row(a.format, a.shape, a.inverse_sigma, residual, a.codes + t * a.code_stride);
  }
  decode_kv_rows_ref(a, exec);
}

void decode_kv_rows_ref(const KvRowsArgs& a, Exec&) {
  const int64_t width = a.shape.width();
  for (int64_t t = 0; t < a.num_rows; ++t) {
    float decoded[kMaxRowWidth];
    decode_row(a.format, a.shape, a.sigma, a.codes + t * a.code_stride, decoded);
    for (int64_t j = 0; j < width; ++j) a.rows[t * width + j] += decoded[j];
  }
}

}  // namespace lathe
