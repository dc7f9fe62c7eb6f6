// Keys and values of many tokens to their codes and back on the GPU (kv_rows.h, quant/row_codes.h),
// between blocks that attention reads and bytes of codes, and the products of predictors.
//
// Given the same prediction, codes and rows have the reference's bits (rows in bf16: those, rounded
// once). Predictions do not: products are cuBLAS's, on inputs rounded to TF32 (2^-11) or kept in
// bf16 (2^-9), with sums in any order. So what one kind of machine parked, another rebuilds a
// little differently: some 2^-11 of a key where a 4-bit code is off by 2^-4 of its residual.
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

// Reconstructed rows, [num_rows, width] dense, in fp32 or bf16. Null: nobody wants them.
struct KvRowsCuda {
  void* data = nullptr;
  CudaElement element = CudaElement::kF32;  // or kBF16
};

// Rows' codes: those of row r (of a block of kBlockSize rows, of a piece of piece_blocks blocks) at
//   data + piece * piece_stride + block in piece * block_stride + offset + row in block *
//   row_bytes
// or, with `blocks`, at data + blocks[r / kBlockSize] * block_stride + ...
// Aligned words are read, up to three bytes around a row: the memory begins and ends at multiples
// of four bytes.
struct KvCodesCuda {
  std::byte* data = nullptr;
  const int32_t* blocks = nullptr;
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
  // Keys: row r is turned by cos, sin [i, rotary_dim / 2] on its way into the cache, and back on
  // its way out; i = r or, with first_positions, first_positions[r / kBlockSize] + r % kBlockSize.
  // Null: as attention reads them.
  const int32_t* first_positions = nullptr;
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t rotary_dim = 0;
  // [width], of keys that are turned: the cache has them without it. Null: it has them whole.
  const float* key_offset = nullptr;
  // Of a cache that keeps sinks, where rows are a sequence's first: the block with its exact rows
  // (kv_codes_cuda.h), which are read instead of their codes and written beside them. -1: not so.
  int32_t sink_block = -1;
};

// rows = product + bias + decoded codes, which also go to the cache, not rounded in between
// (live.blocks null: they do not). product: W x, [num_rows, width]; null: there is none. It may be
// the rows themselves.
void decode_kv_rows_cuda(const KvRowsCudaFormat& format, const KvCodesCuda& codes,
                         const float* product, const KvRowsCuda& rows, int64_t num_rows,
                         const KvLiveRowsCuda& live, CudaStream stream);
// codes = those of exact - (product + bias); rows = what decode_kv_rows_cuda() makes of them.
void encode_kv_rows_cuda(const KvRowsCudaFormat& format, const KvCodesCuda& codes,
                         const float* product, const float* exact, const KvRowsCuda& rows,
                         int64_t num_rows, CudaStream stream);
// Rows of a cache as numbers, less `mean` [width] where there is one, and back.
void load_live_rows_cuda(const KvLiveRowsCuda& live, int64_t num_heads, int64_t head_dim,
                         int64_t num_rows, float* rows, CudaStream stream,
                         const float* mean = nullptr);
void store_live_rows_cuda(const KvLiveRowsCuda& live, int64_t num_heads, int64_t head_dim,
                          int64_t num_rows, const float* rows, CudaStream stream);

// How the latents of a group of layers are stored (cache/kv_layer_coder.h). Pointers are to device
// memory.
struct KvLatentCudaFormat {
  int rank = 0;
  int bits = 4;                         // 4: points of a grid; 8: whole steps
  const float* points = nullptr;        // [16]; 4 bits
  const float* twice_points = nullptr;  // [16]; encoding 4 bits
  const float* minus_norms = nullptr;   // [16]; encoding 4 bits
  const float* step = nullptr;          // [rank]
  const float* inverse_step = nullptr;  // [rank]; encoding only
};
// z = the decoded codes, rows of z_stride >= rank elements; zeros behind the rank.
void decode_kv_latents_cuda(const KvLatentCudaFormat& format, const KvCodesCuda& codes,
                            const KvRowsCuda& z, int64_t z_stride, int64_t num_rows,
                            CudaStream stream);
// codes = those of projected [num_rows, z_stride]; z as above.
void encode_kv_latents_cuda(const KvLatentCudaFormat& format, const KvCodesCuda& codes,
                            const float* projected, const KvRowsCuda& z, int64_t z_stride,
                            int64_t num_rows, CudaStream stream);

// y[m, n] = x[m, k] w[n, k]^T, added to y where `add`; row strides in elements. `count` of them,
// whose x, w and y lie so many elements apart.
struct MultiplyRowsCudaArgs {
  CudaElement element = CudaElement::kF32;  // of x and w: kF32, rounded to TF32 here, or kBF16
  const void* x = nullptr;
  const void* w = nullptr;
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
