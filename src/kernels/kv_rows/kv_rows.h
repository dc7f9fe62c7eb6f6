// Keys and values of many tokens to their codes and back: the two inner loops of the cache's
// codecs. What the bytes mean is quant/row_codes.h; these are its versions for many rows at once.
// Every version gives the same bits as the reference, since each sum has one order: a cache parked
// by one machine wakes on another, and a row does not depend on its neighbours.
//
// All functions run in the calling thread: who has many rows splits them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/registry.h"
#include "quant/row_codes.h"

namespace lathe {

// y[t, j] = fma(x[t, k - 1], w[j, k - 1], ... fma(x[t, 0], w[j, 0], y[t, j])): a product added to
// what y holds, every element one chain of fused multiply-adds in the order of k. So parts of an
// input vector that lie apart are multiplied one after the other, without being put together.
struct MultiplyAddRowsArgs {
  const float* x = nullptr;  // [num_rows, k], row stride x_stride
  const float* w = nullptr;  // packed by pack_multiply_add_weight
  float* y = nullptr;        // [num_rows, n], row stride y_stride; not x
  int64_t num_rows = 0;
  int64_t k = 0;
  int64_t n = 0;
  int64_t x_stride = 0;
  int64_t y_stride = 0;
};

// Panels of so many output columns; the last one is filled with zeros.
inline constexpr int64_t kMultiplyAddPanel = 32;
constexpr int64_t multiply_add_weight_floats(int64_t n, int64_t k) {
  return (n + kMultiplyAddPanel - 1) / kMultiplyAddPanel * kMultiplyAddPanel * k;
}
// w [n, k] with a row stride, to [panel][k][kMultiplyAddPanel].
void pack_multiply_add_weight(const float* w, int64_t n, int64_t k, int64_t stride, float* packed);

// One set of rows and their codes. `rows` holds the prediction p of each row.
struct KvRowsArgs {
  RowFormat format;
  RowShape shape;
  const float* sigma = nullptr;          // [width], or null
  const float* inverse_sigma = nullptr;  // [width], or null; encoding only
  const float* exact = nullptr;          // [num_rows, width]; encoding only
  float* rows = nullptr;                 // [num_rows, width]
  std::byte* codes = nullptr;            // [num_rows], stride code_stride; decoding only reads
  int64_t code_stride = 0;               // >= row_bytes(format, shape)
  int64_t num_rows = 0;
};

// Chooses the best version. Throw nothing: the caller has checked the format (check_row_format).
void multiply_add_rows(const MultiplyAddRowsArgs& args, Exec& exec);
// codes = encode(exact - p); rows = p + decode(codes).
void encode_kv_rows(const KvRowsArgs& args, Exec& exec);
// rows = p + decode(codes).
void decode_kv_rows(const KvRowsArgs& args, Exec& exec);

std::span<const Kernel<MultiplyAddRowsArgs>> multiply_add_rows_kernels();
std::span<const Kernel<KvRowsArgs>> encode_kv_rows_kernels();
std::span<const Kernel<KvRowsArgs>> decode_kv_rows_kernels();

void multiply_add_rows_ref(const MultiplyAddRowsArgs& args, Exec& exec);
void encode_kv_rows_ref(const KvRowsArgs& args, Exec& exec);
void decode_kv_rows_ref(const KvRowsArgs& args, Exec& exec);
void multiply_add_rows_avx2(const MultiplyAddRowsArgs& args, Exec& exec);
void encode_kv_rows_avx2(const KvRowsArgs& args, Exec& exec);
void decode_kv_rows_avx2(const KvRowsArgs& args, Exec& exec);
void multiply_add_rows_avx512(const MultiplyAddRowsArgs& args, Exec& exec);
void encode_kv_rows_avx512(const KvRowsArgs& args, Exec& exec);
void decode_kv_rows_avx512(const KvRowsArgs& args, Exec& exec);

}  // namespace lathe
