#include "kernels/block_scaled_model.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>

#include "kernels/linear/block_scaled_tiles.h"
#include "quant/fp4_e2m1.h"
#include "quant/fp8.h"

namespace lathe {
namespace {

using namespace block_scaled;

constexpr int kLanes = 32, kWarps = kThreads / kLanes;
template <typename T, int kRegisters>
using WarpRegisters = std::array<std::array<T, kRegisters>, kLanes>;
using Sums = std::array<std::array<WarpRegisters<double, 4>, kTilesOfB>, kTilesOfA>;

// PTX ISA, "ldmatrix", .m8n8.x4.b16: lane 8 j + r gives the address of row r of matrix j; of matrix
// j, lane l gets bytes 4 (l % 4) .. + 3 of row l / 4 as register j.
WarpRegisters<uint32_t, 4> ldmatrix(const std::vector<uint8_t>& shared,
                                    const std::array<int, kLanes>& addresses) {
  WarpRegisters<uint32_t, 4> registers;
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int address = addresses[8 * matrix + lane / 4];
      EXPECT_EQ(address % 16, 0);
      std::memcpy(&registers[lane][matrix], &shared.at(address + 4 * (lane % 4)), 4);
    }
  }
  return registers;
}

double scale_value(uint32_t word, int byte, int group) {
  const auto bits = static_cast<uint8_t>(word >> (8 * byte));
  return group == 32 ? e8m0_to_float(bits) : e4m3_to_float(bits);
}

// mma.m16n8k64 with block scaling, thread-id-a = thread-id-b = 0 and the same byte-id for both. The
// places are the document's: a_i, b_i and d_i of "Matrix fragments for mma.m16n8k64"; scales by
// "Block scaling for mma.sync", A's rows as block_scaled_tiles.h says.
void multiply(WarpRegisters<double, 4>& d, const WarpRegisters<uint32_t, 4>& a,
              const WarpRegisters<uint32_t, 2>& b, const std::array<uint32_t, kLanes>& a_scales,
              const std::array<uint32_t, kLanes>& b_scales, int group, int byte_id) {
  double left[16][64], right[8][64];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group_id = lane / 4, thread_in_group = lane % 4;
    for (int i = 0; i < 32; ++i) {
      const int row = i < 8 || (16 <= i && i < 24) ? group_id : group_id + 8;
      const int column = thread_in_group * 8 + i % 8 + (i < 16 ? 0 : 32);
      left[row][column] = e2m1_to_float(static_cast<uint8_t>(a[lane][i / 8] >> (4 * (i % 8)) & 15));
    }
    for (int i = 0; i < 16; ++i) {
      const int k = thread_in_group * 8 + i % 8 + (i < 8 ? 0 : 32);
      right[group_id][k] =
          e2m1_to_float(static_cast<uint8_t>(b[lane][i / 8] >> (4 * (i % 8)) & 15));
    }
  }
  for (int k = 0; k < 64; ++k) {
    const int byte = byte_id + k / group;
    for (int row = 0; row < 16; ++row) {
      left[row][k] *= scale_value(a_scales[4 * (row % 8) + row / 8], byte, group);
    }
    for (int column = 0; column < 8; ++column) {
      right[column][k] *= scale_value(b_scales[4 * column], byte, group);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? lane / 4 : lane / 4 + 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 64; ++k) d[lane][i] += left[row][k] * right[column][k];
    }
  }
}

// One stage of the ring. Bytes that nobody copies stay 0xff.
class Stage {
 public:
  explicit Stage(int group) : bytes_(stage_bytes(group), 0xff), is_copied_(bytes_.size() / 16) {}
  void copy(const Copy& copy, const std::vector<uint8_t>& from) {
    ASSERT_EQ(copy.target % 16, 0);
    ASSERT_FALSE(is_copied_.at(copy.target / 16)) << "copied twice: " << copy.target;
    is_copied_[copy.target / 16] = true;
    std::memset(&bytes_[copy.target], 0, 16);
    if (!copy.is_inside) return;
    ASSERT_EQ(copy.source % 16, 0);
    ASSERT_GE(copy.source, 0);
    ASSERT_LE(copy.source + 16, static_cast<int64_t>(from.size()));
    std::memcpy(&bytes_[copy.target], &from[copy.source], 16);
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  std::vector<uint8_t> bytes_;
  std::vector<bool> is_copied_;
};

// copy_stage() of the kernel, by all threads.
Stage copied_stage(const BlockScaledHost* const (&operands)[2], const int64_t (&first_rows)[2],
                   int64_t stage) {
  const int group = operands[0]->group;
  const int64_t k = operands[0]->k;
  Stage result(group);
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int operand = 0; operand < 2; ++operand) {
      for (int i = 0; i < kCodeCopies; ++i) {
        result.copy(code_copy(operand, thread, i, first_rows[operand], operands[operand]->rows,
                              k / 2, stage),
                    operands[operand]->codes);
      }
    }
    if (thread < scale_copies(group)) {
      const int operand = scale_copy_operand(thread, group);
      const int64_t columns = kScaleTileColumns * group;
      result.copy(
          scale_copy(thread, group, first_rows[operand], (k + columns - 1) / columns, stage),
          operands[operand]->scales);
    }
  }
  return result;
}

// multiply_step() of the kernel, by one warp.
void multiply_step(Sums& sums, const std::vector<uint8_t>& shared, int warp, int step, int group) {
  const int tile = scale_tile_of_step(step, group);
  std::array<std::array<uint32_t, kLanes>, 4> a_scales, b_scales;  // [tile][lane]
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      std::memcpy(&a_scales[i][lane], &shared.at(a_scales_at(warp, lane, tile, group) + 4 * i), 4);
      std::memcpy(&b_scales[i][lane], &shared.at(b_scales_at(warp, lane, tile, group) + 4 * i), 4);
    }
  }
  std::array<WarpRegisters<uint32_t, 2>, kTilesOfB> b;
  for (int pair = 0; pair < kTilesOfB / 2; ++pair) {
    std::array<int, kLanes> addresses;
    for (int lane = 0; lane < kLanes; ++lane) {
      addresses[lane] = b_matrix_row_at(warp, lane, pair, step);
    }
    const auto loaded = ldmatrix(shared, addresses);
    for (int lane = 0; lane < kLanes; ++lane) {
      b[2 * pair][lane] = {loaded[lane][0], loaded[lane][1]};
      b[2 * pair + 1][lane] = {loaded[lane][2], loaded[lane][3]};
    }
  }
  for (int i = 0; i < kTilesOfA; ++i) {
    std::array<int, kLanes> addresses;
    for (int lane = 0; lane < kLanes; ++lane) {
      addresses[lane] = a_matrix_row_at(warp, lane, i, step);
    }
    const auto a = ldmatrix(shared, addresses);
    for (int j = 0; j < kTilesOfB; ++j) {
      multiply(sums[i][j], a, b[j], a_scales[i], b_scales[j], group,
               scale_byte_of_step(step, group));
    }
  }
}

}  // namespace

std::vector<float> block_scaled_model(const BlockScaledHost& w, const BlockScaledHost& x) {
  const BlockScaledHost* const operands[2] = {&x, &w};
  std::vector<float> y(static_cast<std::size_t>(x.rows * w.rows), NAN);
  std::vector<bool> is_written(y.size());
  for (int64_t first_x = 0; first_x < x.rows; first_x += kBlockRows) {
    for (int64_t first_w = 0; first_w < w.rows; first_w += kBlockRows) {
      std::vector<Sums> sums(kWarps, Sums{});
      for (int64_t stage = 0; stage * kStageColumns < x.k; ++stage) {
        const Stage shared = copied_stage(operands, {first_x, first_w}, stage);
        for (int warp = 0; warp < kWarps; ++warp) {
          for (int step = 0; step < kSteps; ++step) {
            multiply_step(sums[warp], shared.bytes(), warp, step, x.group);
          }
        }
      }
      for (int thread = 0; thread < kThreads; ++thread) {
        const int warp = thread / kLanes, lane = thread % kLanes;
        for (int i = 0; i < kTilesOfA; ++i) {
          for (int j = 0; j < kTilesOfB; ++j) {
            for (int r = 0; r < 4; ++r) {
              const int64_t row = first_x + y_row(warp, lane, i, r);
              const int64_t column = first_w + y_column(warp, lane, j, r);
              if (row >= x.rows || column >= w.rows) continue;
              const auto at = static_cast<std::size_t>(row * w.rows + column);
              EXPECT_FALSE(is_written[at]) << "written twice: " << row << ", " << column;
              is_written[at] = true;
              y[at] = static_cast<float>(sums[warp][i][j][lane][r]);
            }
          }
        }
      }
    }
  }
  return y;
}

}  // namespace lathe
