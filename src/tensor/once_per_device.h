// What is set up once for each GPU, not once in a process: a kernel's attributes belong to one
// device's copy of it. Only for files that are built with the toolkit.
#pragma once
#include <atomic>
#include <cstdint>

#include "tensor/cuda_check.h"

namespace lathe {

// A static of the function that needs it. From any number of threads; two that come first at the
// same time both run the body.
class OncePerDevice {
 public:
  // body() unless it has returned before with the current device.
  template <typename Body>
  void operator()(const Body& body) {
    int device = 0;
    cuda_check(cudaGetDevice(&device), "asking for the current GPU");
    const uint64_t bit = uint64_t{1} << (device % 64);
    if (device < 64 && (done_.load(std::memory_order_relaxed) & bit) != 0) return;
    body();
    done_.fetch_or(bit, std::memory_order_relaxed);
  }

 private:
  std::atomic<uint64_t> done_{0};
};

}  // namespace lathe
