// Errors of the CUDA runtime as Error(kDevice) or Error(kOutOfMemory), one line each. Only for
// files that are built with the toolkit.
#pragma once
#include <cuda_runtime_api.h>

#include "base/error.h"

namespace lathe {

// Throws unless status is cudaSuccess. `what` says what was tried: "copying weights to the device".
template <typename... Parts>
void cuda_check(cudaError_t status, const Parts&... what) {
  if (status == cudaSuccess) return;
  const ErrorCode code =
      status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kDevice;
  fail(code, what..., ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
}

// After a launch: a bad configuration shows at once; what fails while running shows at the next
// synchronisation.
template <typename... Parts>
void cuda_check_launch(const Parts&... what) {
  cuda_check(cudaGetLastError(), "launching ", what...);
}

}  // namespace lathe
