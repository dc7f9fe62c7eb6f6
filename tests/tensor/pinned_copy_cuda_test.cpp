#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/rng.h"
#include "support/cuda_cases.h"
#include "tensor/device_buffer.h"
#include "tensor/pinned_copy.h"

namespace lathe {
namespace {

TEST(PinnedCopy, EveryByteOfAnySizeArrives) {
  LATHE_NEEDS_GPU();
  ThreadPool threads(3);
  PinnedCopy copy;
  constexpr int64_t kPiece = PinnedCopy::kMaxPieceBytes;
  // Growing and shrinking; a part of a piece, whole ones, and a little more than two.
  for (const int64_t size :
       {int64_t{1}, int64_t{300'000}, int64_t{5}, kPiece - 1, kPiece, kPiece + 1, 2 * kPiece,
        2 * kPiece + 7, 3 * kPiece + 12'345, int64_t{0}, int64_t{600'000}}) {
    SCOPED_TRACE(size);
    std::vector<uint8_t> expected(static_cast<std::size_t>(size));
    Rng rng(static_cast<uint64_t>(size) + 1);
    for (uint8_t& byte : expected) byte = static_cast<uint8_t>(rng.below(256));
    const DeviceBuffer device = DeviceBuffer::from_host(expected.data(), size);
    std::vector<uint8_t> actual(expected.size() + 16, 0xab);
    copy.to_host(actual.data(), device.data(), size, nullptr, threads);
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), actual.begin()));
    EXPECT_TRUE(std::all_of(actual.begin() + size, actual.end(),
                            [](uint8_t byte) { return byte == 0xab; }));
  }
}

}  // namespace
}  // namespace lathe
