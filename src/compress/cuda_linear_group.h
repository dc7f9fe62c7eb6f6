// quantize_group() on a GPU: weights go there once, codes and scales come back. Same choices,
// scales and codes as on the CPU up to what cuda_gptq.h and cuda_scale_search.h say.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "compress/cuda_input_statistics.h"
#include "compress/linear_group.h"
#include "tensor/device_buffer.h"

namespace lathe {

// What calibration knows of the input that the group shares.
struct CudaGroupInput {
  int64_t tokens = 0;
  DeviceBuffer hessian;  // of the un-rotated input, [k, k]; empty: nothing was calibrated
  DeviceBuffer judge;    // the same of held-out tokens; empty: `hessian` judges
};
// Takes the matrices out of the statistics; either may be null.
CudaGroupInput cuda_group_input(CudaInputStatistics* statistics, CudaInputStatistics* held_out);
CudaGroupInput cuda_group_input(InputStatistics* statistics, InputStatistics* held_out, Exec& exec);

// Works on GPU exec.cuda_device. tasks[i].weight stays as it is: only its copy on the GPU is
// rotated. Device memory: 13 bytes per weight of the largest task and 4 per weight of the others,
// 8 k^2 bytes, and 4 k^2 each for `judge` and for a choice of rotations.
std::vector<LinearReport> cuda_quantize_group(std::span<LinearTask> tasks, CudaGroupInput input,
                                              const QuantizeOptions& options, bool use_gptq,
                                              Exec& exec);

}  // namespace lathe
