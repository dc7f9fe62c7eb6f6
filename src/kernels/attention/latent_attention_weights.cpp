#include <bit>

#include "kernels/attention/latent_attention_cuda.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

// Which of n numbers stands in row `row` of an operand: a lane's quarter of them is consecutive in
// memory, two a code or byte, and a step of 16 rows takes two codes or bytes of each quarter.
int64_t number_in_row(int64_t row, int64_t n) {
  const int64_t step = row / 16, second = row % 16 / 8, quarter = row % 8 / 2;
  return quarter * (n / 4) + step * 4 + second * 2 + row % 2;
}

}  // namespace

bool can_attend_to_latents(const LatentKvShape& s) {
  for (const RowFormat* format : {&s.key_format, &s.value_format}) {
    if (format->method != RowMethod::kHiggs || format->bits != 2 || format->grid_dim != 2 ||
        format->scale != RowScale::kLog8 || !format->hadamard) {
      return false;
    }
  }
  const int64_t e = s.shape.head_dim;
  const bool has_rank = e == 64    ? s.rank % 32 == 0 && s.rank > 0 && s.rank <= 128
                        : e == 128 ? s.rank == 32 || s.rank == 64 || s.rank == 128 || s.rank == 256
                                   : false;
  return has_rank && !s.with_sigma && s.latent_bits == 4 && s.rotary_dim == e &&
         s.num_heads % s.shape.num_heads == 0 && s.num_heads / s.shape.num_heads <= 8;
}

// [head][group of 64 columns][row], the 16-byte units of a row's 128 bytes permuted as wgmma wants
// it.
std::vector<uint16_t> latent_key_image(const RowShape& shape, int64_t rank, const float* weight,
                                       const float* step) {
  const int64_t e = shape.head_dim, rows = e + rank;
  std::vector<uint16_t> image(static_cast<std::size_t>(shape.num_heads * rows * e));
  for (int64_t head = 0; head < shape.num_heads; ++head) {
    uint16_t* const of_head = image.data() + head * rows * e;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t k = row < e ? number_in_row(row, e) : number_in_row(row - e, rank);
      for (int64_t n = 0; n < e; ++n) {
        const float sign = std::popcount(static_cast<uint64_t>(k & n)) % 2 == 0 ? 1.0f : -1.0f;
        const float x = row < e ? sign : weight[(head * e + n) * rank + k] * step[k];
        const int64_t unit = n % 64 / 8 ^ row % 8;
        of_head[(n / 64 * rows + row) * 64 + unit * 8 + n % 8] = bf16_from_float(x);
      }
    }
  }
  return image;
}

std::vector<float> latent_value_weight(const RowShape& shape, int64_t rank, const float* weight,
                                       const float* step) {
  const int64_t d = shape.width();
  std::vector<float> turned(static_cast<std::size_t>(rank * d));
  for (int64_t n = 0; n < d; ++n) {
    for (int64_t k = 0; k < rank; ++k) {
      turned[static_cast<std::size_t>(k * d + n)] = weight[n * rank + k] * step[k];
    }
  }
  return turned;
}

}  // namespace lathe
