// Linear layers: y[m, n] = x[m, k] * w[n, k]^T + bias[n], for dense and quantized weights.
//
// Two steps, so that layers which share an input share its preparation:
//   prepare_input()  rotates (block Hadamard) and quantizes x once      -> LinearInput
//   linear()         multiplies with one packed weight                  -> y
//
// CPU arithmetic for 4-bit and int8 weights with quantized activations (design section 4): codes
// times two (E2M1) or as they are (INT4, INT8) are small integers, products are summed exactly in
// int32 inside a group, the two scales are applied in fp32. So W4A8 and W4A4 are one kernel. With
// floating-point activations the weights are decoded on the way and multiplied in fp32, or by AMX
// as numbers of bf16 that add up to them (docs/decisions/0022-amx.md).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/registry.h"
#include "quant/weight_format.h"
#include "tensor/tensor.h"

namespace lathe {

// How the CPU computes a layer whose activations the checkpoint does not quantize.
enum class ComputeType {
  kAuto,  // 4-bit and int8 weights: int8 activations per group (fast, W4A8); dense: fp32
          // activations
  kF32,   // floating-point activations everywhere (the definition of W4A16)
  // The same, but 2^-15 of every product may be left out where that is faster (AMX; so may kAuto
  // for dense weights): for calibration. As kF32 on a GPU.
  kNearF32,
};

// A weight in the layout of the kernel that will run it. Immutable; shared by threads.
class PackedLinear {
 public:
  virtual ~PackedLinear() = default;
  int64_t n = 0;  // output features (rows of all stacked parts)
  int64_t k = 0;  // input features
  LinearScheme scheme;
  int64_t weight_bytes = 0;  // what one pass over the weight reads from memory
  std::string kernel;        // "fp4 avx2", "dense bf16 avx512", ... for inspect and bench
};

// Packs one weight, or several that share their input stacked along n (q/k/v, gate/up). All parts
// must have the same k, format and scheme (kInvalidArgument otherwise; NVFP4 global scales may
// differ, they become row scales). Throws kUnsupported for a format without a kernel.
struct LinearPart {
  const Tensor* dense = nullptr;               // [n, k], f32 / bf16 / f16
  const QuantizedMatrix* quantized = nullptr;  // exactly one of the two
  const float* bias = nullptr;                 // [n] or null
};
std::unique_ptr<PackedLinear> pack_linear(std::span<const LinearPart> parts,
                                          const LinearScheme& scheme, ComputeType compute,
                                          Exec& exec);

// x after rotation and quantization, in the workspace; valid until the enclosing scope ends (where
// nothing had to be done to x, `f32` is x itself). Fits every PackedLinear with the same k, scheme,
// group size and compute type ("same input class": same_input_class() below), whatever kernel level
// it was packed for.
struct LinearInput {
  int64_t m = 0;
  int64_t k = 0;
  const float* f32 = nullptr;  // [m, k], rotated; set for floating-point kernels
  // Set for integer kernels. Rows stand in blocks of block_rows (the last may have fewer): a block
  // of r rows is [k / group, r, group], so that a kernel which holds one group of a weight panel in
  // registers walks the rows of the block in one stream.
  const int8_t* codes = nullptr;  // E2M1 activations: value * 2
  const float* scales = nullptr;  // [k / group, r] per block; NaN for a group with NaN or infinity
  const int32_t* corrections = nullptr;  // like scales (see quantize_activations.h)
  int64_t group = 0;
  int64_t block_rows = 0;

  int64_t block_size(int64_t block_begin) const {
    return m - block_begin < block_rows ? m - block_begin : block_rows;
  }
  // Index of the first code of a row's group.
  int64_t code_offset(int64_t row, int64_t group_idx) const {
    const int64_t begin = row / block_rows * block_rows;
    return begin * k + (group_idx * block_size(begin) + row - begin) * group;
  }
  int64_t scale_offset(int64_t row, int64_t group_idx) const {
    const int64_t begin = row / block_rows * block_rows;
    return begin * (k / group) + group_idx * block_size(begin) + row - begin;
  }
};

// Whether an input prepared for one of the two fits the other.
bool same_input_class(const PackedLinear& a, const PackedLinear& b);

// x: [m, k], row-major. Allocates from exec.workspace.
LinearInput prepare_input(const float* x, int64_t m, const PackedLinear& weight, Exec& exec);

// y: [m, n] row-major with row stride y_stride >= n. Rows of x are independent: a row alone gives
// the same bits as the row in a batch (for every kernel level).
void linear(const LinearInput& input, const PackedLinear& weight, float* y, int64_t y_stride,
            Exec& exec);

}  // namespace lathe
