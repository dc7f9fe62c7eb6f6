// InputStatistics on a GPU: the inputs of a linear layer come as device memory, the Gram matrix
// stays there. Products and sums in fp32 as on the CPU, in another order.
//
// add() only enqueues work; everything that hands out results waits for the stream of the last one,
// and reports a NaN or an infinity in the inputs.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "compress/input_statistics.h"
#include "tensor/cuda_stream.h"
#include "tensor/device_buffer.h"

namespace lathe {

class CudaInputStatistics {
 public:
  // On the current device. gram: also accumulate X^T X, 4 k^2 bytes. amax_blocks: sizes of rotation
  // blocks (0: none) whose largest rotated magnitude is wanted; those that do not divide k stay 0.
  CudaInputStatistics(int64_t k, bool gram, std::vector<int64_t> amax_blocks = {});

  // x: [tokens, k] in device memory, dense. Only enqueues work.
  void add(const float* x, int64_t tokens, CudaStream stream);

  int64_t k() const { return k_; }
  int64_t tokens() const { return tokens_; }
  bool has_gram() const { return gram_.size() > 0; }

  // Throws kInvalidArgument when an input was a NaN or an infinity.
  void check() const;
  std::vector<float> amax() const;
  std::vector<float> mean_abs() const;
  // One per entry of amax_blocks: the largest magnitude of the rotated inputs.
  std::vector<float> rotated_amax() const;

  // The full symmetric matrix (2 / tokens) X^T X, [k, k], on the device, finished. It is made in
  // place and handed over.
  DeviceBuffer take_hessian();
  // The same in host memory, from which the CPU's code can go on. The object keeps its content.
  InputStatistics to_host() const;

 private:
  std::vector<double> sum_abs() const;

  int64_t k_;
  int64_t tokens_ = 0;
  std::vector<int64_t> amax_blocks_;
  CudaStream stream_ = nullptr;  // of the last add()
  DeviceBuffer gram_;            // upper triangle of X^T X
  DeviceBuffer channels_;        // sums of |x| as double [k], largest |x| as float [k]
  DeviceBuffer rotated_;         // float [amax_blocks]
  DeviceBuffer bad_channel_;     // int64: the last channel found broken, or -1
};

}  // namespace lathe
