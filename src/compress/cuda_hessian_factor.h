// factor_hessian() on a GPU: the same order, damping and escalation from the same Hessian, the
// factor up to the rounding of an fp32 Cholesky factorisation. A Hessian so close to singular that
// its pivots drown in that rounding may need one escalation on one side only.
#pragma once
#include <cstdint>
#include <vector>

#include "compress/hessian_factor.h"
#include "tensor/cuda_stream.h"
#include "tensor/device_buffer.h"

namespace lathe {

struct CudaHessianFactor {
  int64_t k = 0;
  std::vector<int32_t> order;  // as in HessianFactor
  std::vector<float> pivot;
  double damping = 0;
  double added = 0;
  int escalations = 0;
  int64_t dead_columns = 0;
  DeviceBuffer device_order;  // int32 [k]
  DeviceBuffer device_place;  // int32 [k]: place[order[c]] = c
  DeviceBuffer device_pivot;  // float [k]
  DeviceBuffer normalised;    // float [k, k], above the diagonal
};

// h: [k, k] in device memory, ready on the stream; not changed. Waits. Throws as factor_hessian().
CudaHessianFactor cuda_factor_hessian(const float* h, int64_t k, ColumnOrder order, double damping,
                                      CudaStream stream);

// A factor that the CPU made, on the device.
CudaHessianFactor upload_factor(const HessianFactor& factor);

// The diagonal of a [k, k] matrix. Waits.
std::vector<float> cuda_diagonal(const float* h, int64_t k, CudaStream stream);

}  // namespace lathe
