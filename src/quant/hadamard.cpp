#include "quant/hadamard.h"

#include <bit>
#include <cmath>

#include "base/error.h"

namespace lathe {

void check_hadamard(int64_t block, int64_t cols) {
  if (block == 0) return;
  if (block != 16 && block != 32 && block != 64 && block != 128) {
    fail(ErrorCode::kInvalidArgument, "Hadamard block ", block,
         " is not one of 0 (none), 16, 32, 64, 128");
  }
  if (cols % block != 0) {
    fail(ErrorCode::kInvalidArgument, "Hadamard block ", block, " does not divide the ", cols,
         " input features; choose a smaller block or 0");
  }
}

void hadamard_rows(float* x, int64_t rows, int64_t cols, int64_t block) {
  check_hadamard(block, cols);
  if (block == 0) return;
  const float normalisation = 1.0f / std::sqrt(static_cast<float>(block));
  for (float* chunk = x; chunk != x + rows * cols; chunk += block) {
    for (int64_t distance = 1; distance < block; distance *= 2) {
      for (int64_t pair = 0; pair < block; pair += 2 * distance) {
        for (int64_t i = pair; i < pair + distance; ++i) {
          const float a = chunk[i];
          const float b = chunk[i + distance];
          chunk[i] = a + b;
          chunk[i + distance] = a - b;
        }
      }
    }
    for (int64_t i = 0; i < block; ++i) chunk[i] *= normalisation;
  }
}

float hadamard_entry(int64_t block, int64_t i, int64_t j) {
  const float magnitude = 1.0f / std::sqrt(static_cast<float>(block));
  return (std::popcount(static_cast<uint64_t>(i & j)) & 1) != 0 ? -magnitude : magnitude;
}

}  // namespace lathe
