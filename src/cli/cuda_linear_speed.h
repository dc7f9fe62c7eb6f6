// Speed of one linear layer on a GPU, checked first, beside cuBLAS. Only with LATHE_CUDA.
#pragma once
#include <string>
#include <vector>

#include "cli/linear_speed.h"
#include "kernels/cuda_context.h"

namespace lathe {

struct CudaLinearSpeed {
  int64_t rows = 0;
  std::string kernels;         // as CudaLinear says it
  int64_t weight_bytes = 0;    // read once per call
  double seconds = 0;          // median of one product; its input is ready
  double prepare_seconds = 0;  // of rotating and quantizing that input, from bf16
  double cublas_seconds = 0;   // of the same product in BF16
  double difference = 0;       // from exact fp32, root mean square over root mean square
};

// One result for each number of rows, on the context's stream: launches replayed from a CUDA graph,
// weights from memory (options.bytes_of_copies; options.kernel is not for GPUs). Throws
// kInvalidArgument for names and sizes that cannot be, kInternal when a product is wrong: no speed
// is reported then. kOutOfMemory, kDevice.
std::vector<CudaLinearSpeed> measure_cuda_linear_speed(const LinearSpeedOptions& options,
                                                       CudaContext& context);

// Operations per second (a multiply-add counts two) of cuBLAS in BF16 on matrices of 8192.
double measure_cuda_bf16_rate(CudaContext& context);

}  // namespace lathe
