// gptq() and round_to_nearest() on a GPU: the same targets up to fp32 rounding, hence the same
// codes but where a target lies within that rounding of the middle between two codes (and, in the
// row where that happens, behind it). Given equal targets, every code is equal: the rounding itself
// is done in double precision as in encode_row().
#pragma once
#include <cstdint>
#include <vector>

#include "compress/cuda_hessian_factor.h"
#include "compress/cuda_quantized_matrix.h"
#include "compress/gptq.h"
#include "tensor/cuda_stream.h"

namespace lathe {

// Fills matrix.codes. w: [rows, cols] in device memory, ready on the stream. targets (optional,
// [rows, cols] in device memory): as in gptq(). Needs 9 bytes of device memory per weight besides.
// Waits.
GptqResult cuda_gptq(CudaQuantizedMatrix& matrix, const float* w, const CudaHessianFactor& factor,
                     CudaStream stream, float* targets = nullptr);

// Codes nearest to w under the scales of the matrix. Only enqueues work.
void cuda_round_to_nearest(CudaQuantizedMatrix& matrix, const float* w, CudaStream stream);

// d = w - decoded matrix, [rows, cols]. Only enqueues work.
void cuda_weight_error(const CudaQuantizedMatrix& matrix, const float* w, float* d,
                       CudaStream stream);

// Codes and scales of the rows with takes[row] != 0 ([rows], host memory) from one matrix into
// another of the same shape. Waits.
void cuda_copy_rows(const CudaQuantizedMatrix& from, const std::vector<uint8_t>& takes,
                    CudaQuantizedMatrix& to, CudaStream stream);

// output_error(): tr(D H D^T) of d [n, k], everything in device memory; h null: the sum of squares
// of d. Waits.
double cuda_output_error(const float* d, int64_t n, const float* h, int64_t k, CudaStream stream);

}  // namespace lathe
