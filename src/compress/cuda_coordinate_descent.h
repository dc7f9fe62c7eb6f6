// coordinate_descent() on a GPU: the same steps, with fp32 sums in another order.
#pragma once
#include <cstdint>

#include "compress/cuda_quantized_matrix.h"
#include "tensor/cuda_stream.h"

namespace lathe {

// Changes matrix.codes. w: [rows, cols], h: [cols, cols], in device memory, ready on the stream.
// Returns the number of sweeps made. Waits.
int cuda_coordinate_descent(CudaQuantizedMatrix& matrix, const float* w, const float* h,
                            double added, int max_sweeps, CudaStream stream);

}  // namespace lathe
