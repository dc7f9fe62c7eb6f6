// choose_scales() on a GPU: every search, format and error norm, with the weights in device memory.
//
// With norm 2 and E2M1 or integer elements the errors are those of the CPU's AVX2 code, bit for
// bit, and so are the scales; where the CPU goes through double precision (other norms, E4M3
// elements, the least-squares refit of a scale) sums are taken in another order, and a scale may
// differ where two candidates are equally good in double precision.
#pragma once
#include <span>

#include "compress/cuda_quantized_matrix.h"
#include "compress/scale_search.h"
#include "tensor/cuda_stream.h"

namespace lathe {

// As ScaleProblem, with everything in device memory, ready on the stream.
struct CudaScaleProblem {
  CudaQuantizedMatrix* matrix = nullptr;
  const float* w = nullptr;               // [rows, cols]
  const float* column_weights = nullptr;  // [cols] or null
};

// Waits. Throws as choose_scales().
ScaleSearchResult cuda_choose_scales(std::span<const CudaScaleProblem> fused,
                                     const ScaleSearchOptions& options, CudaStream stream);

}  // namespace lathe
