#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "base/rng.h"
#include "support/cuda_cases.h"
#include "tensor/copy_to_device.h"
#include "tensor/device_buffer.h"

namespace lathe {
namespace {

// A copy of at most 64 KB is sent without waiting for it, and other streams do not wait for the
// default one: here that one is held up for milliseconds.
TEST(CopyToDevice, IsThereForEveryStream) {
  LATHE_NEEDS_GPU();
  cudaStream_t made = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), cudaSuccess);
  struct Destroy {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  };
  const std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Destroy> stream(made);
  DeviceBuffer large(int64_t{256} << 20);
  Rng rng(1);
  for (const int64_t size : {1, 1000, 10'368, 65'536, 65'537, 300'000}) {
    SCOPED_TRACE(size);
    std::vector<uint8_t> expected(static_cast<std::size_t>(size));
    for (uint8_t& byte : expected) byte = static_cast<uint8_t>(1 + rng.below(255));
    DeviceBuffer target(size);
    void* pinned = nullptr;
    ASSERT_EQ(cudaMallocHost(&pinned, expected.size()), cudaSuccess);
    const std::unique_ptr<void, decltype(&cudaFreeHost)> actual(pinned, cudaFreeHost);
    ASSERT_EQ(cudaMemset(target.data(), 0, expected.size()), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);

    for (int i = 0; i < 64; ++i) {
      ASSERT_EQ(cudaMemsetAsync(large.data(), i, static_cast<std::size_t>(large.size()), nullptr),
                cudaSuccess);
    }
    copy_to_device(target.data(), expected.data(), size);
    ASSERT_EQ(cudaMemcpyAsync(pinned, target.data(), expected.size(), cudaMemcpyDeviceToHost,
                              stream.get()),
              cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
    EXPECT_EQ(0, std::memcmp(pinned, expected.data(), expected.size()));
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
}

}  // namespace
}  // namespace lathe
