// Keys and values of many tokens to their codes and back on the GPU (kv_rows.h, quant/row_codes.h),
// between a cache of live blocks and bytes that a piece is made of, and the products of predictors.
//
// Given the same prediction, codes and rows have the reference's bits. Predictions do not: products
// are cuBLAS's, on inputs rounded to TF32 (2^-11), with sums in any order. So what one kind of
// machine parked, another rebuilds a little differently: some 2^-11 of a key where a 4-bit code is
// off by 2^-4 of its residual.
//
// All functions only enqueue work on a stream.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda_context.h"
#include "quant/row_codes.h"

namespace lathe {

// How the rows of one plane (keys or values of a layer) are stored: HIGGS. Pointers are to device
// memory.
struct KvRowsCudaFormat {
  RowScale scale = RowScale::kLog8;
  bool hadamard = true;
  int num_heads = 0;
  int head_dim = 0;  // a multiple of 8, up to 256
  int grid_dim = 0;
  int num_points = 0;
  int code_bits = 0;
  const float* points = nullptr;         // [num_points][grid_dim]
  const float* twice_points = nullptr;   // [grid_dim][num_points]; encoding only
  const float* minus_norms = nullptr;    // [num_points]; encoding only
  const float* sigma = nullptr;          // [num_heads * head_dim], or null
  const float* inverse_sigma = nullptr;  // the same; encoding only
  const float* bias = nullptr;           // [num_heads * head_dim], or null
};

// Rows' codes: those of row r (of a block of kBlockSize rows, of a piece of piece_blocks blocks) at
//   data + piece * piece_stride + block in piece * block_stride + offset + row in block *
//   row_bytes.
struct KvCodesCuda {
  std::byte* data = nullptr;
  int64_t piece_stride = 0;
  int64_t block_stride = 0;
  int64_t piece_blocks = 1;
  int64_t offset = 0;
  int64_t row_bytes = 0;
};

// Where rows lie in a cache: row r is token r % kBlockSize of block blocks[r / kBlockSize].
struct KvLiveRowsCuda {
  KvCudaLayer layer;
  const int32_t* blocks = nullptr;
  bool is_value = false;
  // Keys: row r is turned by cos, sin [r, rotary_dim / 2] on its way into the cache, and back on
  // its way out. Null: as attention reads them.
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t rotary_dim = 0;
};

// rows [num_rows, width] hold W x (has_product) or anything; then rows = W x + bias + decoded,
// which also goes to the cache (live.blocks null: it does not).
void decode_kv_rows_cuda(const KvRowsCudaFormat& format, const KvCodesCuda& codes, bool has_product,
                         float* rows, int64_t num_rows, const KvLiveRowsCuda& live,
                         CudaStream stream);
// codes = those of exact - (W x + bias); rows = what decode_kv_rows_cuda() makes of them.
void encode_kv_rows_cuda(const KvRowsCudaFormat& format, const KvCodesCuda& codes, bool has_product,
                         const float* exact, float* rows, int64_t num_rows, CudaStream stream);
// Rows of a cache as numbers, and back.
void load_live_rows_cuda(const KvLiveRowsCuda& live, int64_t num_heads, int64_t head_dim,
                         int64_t num_rows, float* rows, CudaStream stream);
void store_live_rows_cuda(const KvLiveRowsCuda& live, int64_t num_heads, int64_t head_dim,
                          int64_t num_rows, const float* rows, CudaStream stream);

// y[m, n] = x[m, k] w[n, k]^T, added to y where `add`; row strides in elements. `count` of them,
// whose x, w and y lie so many elements apart.
struct MultiplyRowsCudaArgs {
  const float* x = nullptr;
  const float* w = nullptr;
  float* y = nullptr;
  int64_t m = 0, n = 0, k = 0;
  int64_t x_stride = 0, w_stride = 0, y_stride = 0;
  bool add = false;
  int64_t count = 1;
  int64_t x_step = 0, w_step = 0, y_step = 0;
};
// Throws kDevice.
void multiply_rows_cuda(const MultiplyRowsCudaArgs& args, CudaContext& context);

}  // namespace lathe
