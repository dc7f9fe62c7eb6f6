// What the kernel tests share: an execution context, the kernels that this machine can run, and
// outputs between guard bytes.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/registry.h"

namespace lathe {

// Threads and a workspace with one owner. LATHE_TEST_DEVICE=cuda makes models of it run on GPU 0.
struct OwnedExec {
  explicit OwnedExec(int num_threads) : threads(num_threads) {}
  ThreadPool threads;
  Workspace workspace;
  Exec exec{threads, workspace, cuda_device()};

 private:
  static int cuda_device() {
    const char* device = std::getenv("LATHE_TEST_DEVICE");
    return device != nullptr && std::string_view(device) == "cuda" ? 0 : -1;
  }
};

// The rows of a table whose instructions this machine has; the reference is among them.
template <typename Args>
std::vector<Kernel<Args>> runnable(std::span<const Kernel<Args>> table) {
  std::vector<Kernel<Args>> rows;
  for (const Kernel<Args>& row : table) {
    if (machine_has(row.needs)) rows.push_back(row);
  }
  return rows;
}

// Floats with guard values on both sides, starting at an address that is no multiple of 32.
class GuardedFloats {
 public:
  explicit GuardedFloats(int64_t count)
      : values_(static_cast<std::size_t>(count) + 2 * kGuard, kMark), count_(count) {}
  explicit GuardedFloats(const std::vector<float>& content)
      : GuardedFloats(static_cast<int64_t>(content.size())) {
    std::copy(content.begin(), content.end(), data());
  }
  float* data() { return values_.data() + kGuard; }
  std::vector<float> values() { return {data(), data() + count_}; }
  bool guards_intact() const {
    for (std::size_t i = 0; i < kGuard; ++i) {
      if (values_[i] != kMark || values_[values_.size() - 1 - i] != kMark) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 17;
  static constexpr float kMark = -12345.5f;
  std::vector<float> values_;
  int64_t count_;
};

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  // memcmp must not see the null pointer of an empty span, not even for no bytes.
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

}  // namespace lathe
