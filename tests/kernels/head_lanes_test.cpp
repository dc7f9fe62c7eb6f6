// A head decoded in the registers of a warp, with a thread for each of its lanes.
#include "kernels/kv_rows/head_lanes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <cstring>
#include <thread>
#include <vector>

#include "quant/row_codes.h"
#include "support/all_close.h"

namespace lathe {
namespace {

struct SharedHead {
  explicit SharedHead(int num_lanes) : barrier(num_lanes) {}
  std::barrier<> barrier;
  std::array<float, 32> numbers;
};

class HostLane {
 public:
  HostLane(int id, SharedHead& head) : id_(id), head_(head) {}
  int id() const { return id_; }
  float exchange(float x, int mask) const {
    head_.numbers[static_cast<std::size_t>(id_)] = x;
    head_.barrier.arrive_and_wait();
    const float other = head_.numbers[static_cast<std::size_t>(id_ ^ mask)];
    head_.barrier.arrive_and_wait();
    return other;
  }

 private:
  int id_;
  SharedHead& head_;
};

// Both runs of codes of a lane, as the kernel reads them.
template <int kHeadDim>
std::array<uint32_t, 2> words_of(const std::byte* packed, int bits, int lane) {
  std::array<uint32_t, 2> words = {};
  for (int run = 0; run < 2; ++run) {
    std::memcpy(&words[static_cast<std::size_t>(run)],
                packed + HeadLanes<kHeadDim>::dim(lane, 8 * run) * bits / 8,
                static_cast<std::size_t>(bits));
  }
  return words;
}

template <int kHeadDim, int kGridDim, int kCodeBits>
void expect_the_references_bits(RowScale scale_format, bool hadamard) {
  using Heads = HeadLanes<kHeadDim>;
  constexpr int kBits = kCodeBits / kGridDim;
  SCOPED_TRACE(testing::Message() << kHeadDim << ", " << kGridDim << "D, " << kBits
                                  << " bits, scale " << row_scale_name(scale_format)
                                  << ", hadamard " << hadamard);
  const RowFormat format = {
      .bits = kBits, .grid_dim = kGridDim, .scale = scale_format, .hadamard = hadamard};
  const RowShape shape = {1, kHeadDim};
  const HiggsGrid& grid = higgs_grid(kBits, kGridDim);
  ASSERT_EQ(grid.code_bits, kCodeBits);
  std::vector<GridPoint<kGridDim>> points(static_cast<std::size_t>(grid.num_points));
  std::memcpy(points.data(), grid.points, points.size() * sizeof points[0]);
  for (const float size : {1.0f, 0.0f, NAN}) {
    std::vector<float> x = normal_values(kHeadDim, 1 + static_cast<uint64_t>(kCodeBits));
    for (float& number : x) number *= size;
    std::vector<std::byte> code(static_cast<std::size_t>(row_bytes(format, shape)));
    encode_row(format, shape, nullptr, x.data(), code.data());
    std::vector<float> wanted(kHeadDim), got(kHeadDim);
    decode_row(format, shape, nullptr, code.data(), wanted.data());

    const auto scale_size = static_cast<std::size_t>(row_scale_bytes(format, shape));
    uint32_t bits = 0;
    std::memcpy(&bits, code.data(), scale_size);
    const float factor = product_rn(row_scale_value(scale_format, bits),
                                    decode_factor(kHeadDim, hadamard ? kHeadDim : 1, 1));
    SharedHead head(Heads::kLanes);
    std::vector<std::thread> lanes;
    for (int id = 0; id < Heads::kLanes; ++id) {
      lanes.emplace_back([&, id] {
        const auto words = words_of<kHeadDim>(code.data() + scale_size, kBits, id);
        float own[Heads::kNumbers];
        Heads::template decode<kGridDim, kCodeBits>(HostLane(id, head), {words[0], words[1]},
                                                    points.data(), hadamard, factor, own);
        for (int i = 0; i < Heads::kNumbers; ++i) {
          got[static_cast<std::size_t>(Heads::dim(id, i))] = own[i];
        }
      });
    }
    for (std::thread& lane : lanes) lane.join();
    for (std::size_t j = 0; j < wanted.size(); ++j) {
      if (std::isnan(wanted[j]) && std::isnan(got[j])) continue;
      ASSERT_EQ(std::memcmp(&wanted[j], &got[j], 4), 0)
          << "number " << j << " is " << got[j] << ", not " << wanted[j];
    }
  }
}

template <int kHeadDim>
void expect_the_references_bits() {
  for (const RowScale scale : {RowScale::kLog8, RowScale::kF16, RowScale::kF32}) {
    expect_the_references_bits<kHeadDim, 2, 4>(scale, true);
  }
  expect_the_references_bits<kHeadDim, 2, 4>(RowScale::kLog8, false);
  expect_the_references_bits<kHeadDim, 1, 2>(RowScale::kLog8, true);
  expect_the_references_bits<kHeadDim, 1, 3>(RowScale::kLog8, true);
  expect_the_references_bits<kHeadDim, 1, 4>(RowScale::kLog8, true);
  expect_the_references_bits<kHeadDim, 2, 6>(RowScale::kLog8, true);
  expect_the_references_bits<kHeadDim, 2, 8>(RowScale::kLog8, true);
  expect_the_references_bits<kHeadDim, 4, 8>(RowScale::kLog8, true);
}

TEST(HeadLanes, DecodeTheReferencesBits) {
  expect_the_references_bits<64>();
  expect_the_references_bits<128>();
  expect_the_references_bits<256>();
}

TEST(HeadLanes, EveryNumberHasItsPlace) {
  std::vector<int> seen(128);
  for (int lane = 0; lane < HeadLanes<128>::kLanes; ++lane) {
    for (int i = 0; i < HeadLanes<128>::kNumbers; ++i) {
      ++seen[static_cast<std::size_t>(HeadLanes<128>::dim(lane, i))];
    }
  }
  EXPECT_EQ(seen, std::vector<int>(128, 1));
}

TEST(HeadLanes, PairsAreTurned) {
  using Heads = HeadLanes<64>;
  const std::vector<float> numbers = normal_values(64, 3), angles = normal_values(32, 4);
  for (int lane = 0; lane < Heads::kLanes; ++lane) {
    float x[Heads::kNumbers], cos[Heads::kRun], sin[Heads::kRun];
    for (int i = 0; i < Heads::kNumbers; ++i) {
      x[i] = numbers[static_cast<std::size_t>(Heads::dim(lane, i))];
    }
    for (int i = 0; i < Heads::kRun; ++i) {
      const float angle = angles[static_cast<std::size_t>(Heads::dim(lane, i))];
      cos[i] = std::cos(angle), sin[i] = std::sin(angle);
    }
    Heads::rope(cos, sin, x);
    for (int i = 0; i < Heads::kRun; ++i) {
      const double a = numbers[static_cast<std::size_t>(Heads::dim(lane, i))];
      const double b = numbers[static_cast<std::size_t>(Heads::dim(lane, i) + 32)];
      // A product and a fused sum, each rounded; numbers below 8.
      EXPECT_NEAR(x[i], a * double{cos[i]} - b * double{sin[i]}, 2 * 8 * 0x1p-24);
      EXPECT_NEAR(x[i + Heads::kRun], b * double{cos[i]} + a * double{sin[i]}, 2 * 8 * 0x1p-24);
    }
  }
}

TEST(HeadLanes, Log8ScalesAreTheReferences) {
  float steps[8];  // 2^(0 / 8), ..., as the reference has them
  for (uint32_t i = 0; i < 8; ++i) steps[i] = row_scale_value(RowScale::kLog8, 127 + i);
  for (uint32_t code = 1; code < 255; ++code) {
    const int eighths = static_cast<int>(code) - 127;
    EXPECT_EQ(log8_from_step(steps[eighths & 7], eighths), row_scale_value(RowScale::kLog8, code))
        << code;
  }
}

}  // namespace
}  // namespace lathe
