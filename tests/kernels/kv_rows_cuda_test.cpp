#include "kernels/kv_rows/kv_rows_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/kv_rows/kv_rows.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

class KvRowsCuda : public testing::Test {
 protected:
  void SetUp() override { LATHE_NEEDS_GPU(); }
};

DeviceBuffer upload(const std::vector<float>& v) {
  return DeviceBuffer::from_host(v.data(), static_cast<int64_t>(v.size() * 4));
}
std::vector<float> download(const DeviceBuffer& buffer, std::size_t count) {
  std::vector<float> v(count);
  buffer.to_host(v.data(), static_cast<int64_t>(count * 4));
  return v;
}
// NaN in the same places, everything else the same bits.
testing::AssertionResult same_numbers(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::memcmp(&a[i], &b[i], 4) == 0) continue;
    return testing::AssertionFailure() << "element " << i << " is " << a[i] << ", not " << b[i];
  }
  return testing::AssertionSuccess();
}

void expect_the_references_bits(const RowFormat& format, const RowShape& shape, bool with_sigma) {
  SCOPED_TRACE(testing::Message() << format.bits << " bits in " << format.grid_dim << "D, scale "
                                  << row_scale_name(format.scale) << ", hadamard "
                                  << format.hadamard << ", sigma " << with_sigma << ", "
                                  << shape.num_heads << " x " << shape.head_dim);
  constexpr int64_t kRows = 2 * kBlockSize * 2;  // two pieces of two blocks
  const int64_t width = shape.width();
  std::vector<float> exact = normal_values(kRows * width, 1);
  const std::vector<float> prediction = normal_values(kRows * width, 2, 0.6);
  const auto row = [&](int64_t r) { return exact.data() + r * width; };
  std::copy_n(prediction.data(), width, row(0));  // nothing left
  for (int64_t j = 0; j < width; ++j) {
    row(1)[j] *= 1e-30f, row(2)[j] *= 1e30f, row(3)[j] *= 1e-3f;
  }
  row(4)[width / 2] = NAN;
  row(5)[0] = std::numeric_limits<float>::infinity();
  std::vector<float> sigma, inverse_sigma;
  for (int64_t j = 0; j < width && with_sigma; ++j) {
    sigma.push_back(0.25f + 0.01f * static_cast<float>(j % 50));
    inverse_sigma.push_back(1 / sigma.back());
  }
  const int64_t row_size = row_bytes(format, shape);
  std::vector<std::byte> codes(static_cast<std::size_t>(kRows * row_size));
  std::vector<float> rows = prediction;
  OwnedExec owned(1);
  encode_kv_rows_ref({.format = format,
                      .shape = shape,
                      .sigma = with_sigma ? sigma.data() : nullptr,
                      .inverse_sigma = with_sigma ? inverse_sigma.data() : nullptr,
                      .exact = exact.data(),
                      .rows = rows.data(),
                      .codes = codes.data(),
                      .code_stride = row_size,
                      .num_rows = kRows},
                     owned.exec);

  const HiggsGrid& grid = higgs_grid(format.bits, format.grid_dim);
  const auto table = [](const float* from, int64_t count) {
    return upload(std::vector<float>(from, from + count));
  };
  const DeviceBuffer points = table(grid.points, grid.num_points * grid.dim),
                     twice = table(grid.twice_points, grid.num_points * grid.dim),
                     norms = table(grid.minus_norms, grid.num_points), d_exact = upload(exact),
                     d_sigma = with_sigma ? upload(sigma) : DeviceBuffer(),
                     d_inverse = with_sigma ? upload(inverse_sigma) : DeviceBuffer();
  const KvRowsCudaFormat cuda_format = {.scale = format.scale,
                                        .hadamard = format.hadamard,
                                        .num_heads = static_cast<int>(shape.num_heads),
                                        .head_dim = static_cast<int>(shape.head_dim),
                                        .grid_dim = static_cast<int>(grid.dim),
                                        .num_points = static_cast<int>(grid.num_points),
                                        .code_bits = grid.code_bits,
                                        .points = points.as<float>(),
                                        .twice_points = twice.as<float>(),
                                        .minus_norms = norms.as<float>(),
                                        .sigma = d_sigma.as<float>(),
                                        .inverse_sigma = d_inverse.as<float>()};
  // Pieces and blocks with something between them, which stays as it is.
  constexpr int64_t kOffset = 5, kGap = 3;
  const int64_t block_stride = kOffset + kBlockSize * row_size + kGap;
  const int64_t piece_stride = 2 * block_stride + kGap;
  std::vector<std::byte> memory(static_cast<std::size_t>(2 * piece_stride), std::byte{0xa5});
  std::vector<std::byte> expected = memory;
  for (int64_t r = 0; r < kRows; ++r) {
    const int64_t block = r / kBlockSize;
    std::memcpy(expected.data() + block / 2 * piece_stride + block % 2 * block_stride + kOffset +
                    r % kBlockSize * row_size,
                codes.data() + r * row_size, static_cast<std::size_t>(row_size));
  }
  DeviceBuffer d_memory =
      DeviceBuffer::from_host(memory.data(), static_cast<int64_t>(memory.size()));
  const KvCodesCuda where = {.data = d_memory.data(),
                             .piece_stride = piece_stride,
                             .block_stride = block_stride,
                             .piece_blocks = 2,
                             .offset = kOffset,
                             .row_bytes = row_size};
  DeviceBuffer d_rows = upload(prediction);
  encode_kv_rows_cuda(cuda_format, where, true, d_exact.as<float>(), d_rows.as<float>(), kRows,
                      nullptr);
  d_memory.to_host(memory.data(), static_cast<int64_t>(memory.size()));
  for (std::size_t i = 0; i < memory.size(); ++i) {
    ASSERT_EQ(static_cast<int>(memory[i]), static_cast<int>(expected[i])) << "byte " << i;
  }
  EXPECT_TRUE(same_numbers(download(d_rows, rows.size()), rows)) << "encoding";
  d_rows = upload(prediction);
  decode_kv_rows_cuda(cuda_format, where, true, d_rows.as<float>(), kRows, {}, nullptr);
  EXPECT_TRUE(same_numbers(download(d_rows, rows.size()), rows)) << "decoding";

  // Without a product the rows held before do not matter; a bias is what is predicted then.
  std::vector<float> bias(prediction.begin(), prediction.begin() + width);
  const DeviceBuffer d_bias = upload(bias);
  KvRowsCudaFormat with_bias = cuda_format;
  with_bias.bias = d_bias.as<float>();
  d_rows = upload(std::vector<float>(rows.size(), NAN));
  decode_kv_rows_cuda(with_bias, where, false, d_rows.as<float>(), kRows, {}, nullptr);
  std::vector<float> from_bias;
  for (int64_t r = 0; r < kRows; ++r) from_bias.insert(from_bias.end(), bias.begin(), bias.end());
  decode_kv_rows_ref({.format = format,
                      .shape = shape,
                      .sigma = with_sigma ? sigma.data() : nullptr,
                      .rows = from_bias.data(),
                      .codes = codes.data(),
                      .code_stride = row_size,
                      .num_rows = kRows},
                     owned.exec);
  EXPECT_TRUE(same_numbers(download(d_rows, rows.size()), from_bias)) << "with a bias";
}

TEST_F(KvRowsCuda, CodesAndRowsAreTheReferences) {
  for (const int bits : {2, 3, 4}) {
    for (const int64_t dim : {1, 2, 4}) {
      if (dim == 4 && bits != 2) continue;
      for (const RowScale scale : {RowScale::kLog8, RowScale::kF16, RowScale::kF32}) {
        expect_the_references_bits({.bits = bits, .grid_dim = dim, .scale = scale}, {3, 64}, false);
      }
      expect_the_references_bits({.bits = bits, .grid_dim = dim, .hadamard = false}, {2, 128},
                                 true);
    }
  }
  for (const int64_t head_dim : {8, 24, 80, 96, 128, 256}) {
    expect_the_references_bits({.bits = 2}, {2, head_dim}, false);
    expect_the_references_bits({.bits = 3}, {1, head_dim}, true);
  }
}

TEST_F(KvRowsCuda, Products) {
  CudaContext context(0);
  constexpr int64_t kRows = 37, kK = 48, kN = 24;
  const std::vector<float> x = normal_values(kRows * kK, 1), w = normal_values(kN * kK, 2),
                           start = normal_values(kRows * kN, 3);
  const DeviceBuffer d_x = upload(x), d_w = upload(w);
  for (const bool add : {false, true}) {
    DeviceBuffer d_y = upload(start);
    multiply_rows_cuda({.x = d_x.as<float>(),
                        .w = d_w.as<float>(),
                        .y = d_y.as<float>(),
                        .m = kRows,
                        .n = kN,
                        .k = kK,
                        .x_stride = kK,
                        .w_stride = kK,
                        .y_stride = kN,
                        .add = add},
                       context);
    context.synchronize();
    const std::vector<float> y = download(d_y, start.size());
    for (int64_t t = 0; t < kRows; ++t) {
      for (int64_t j = 0; j < kN; ++j) {
        const auto at = static_cast<std::size_t>(t * kN + j);
        double sum = add ? double{start[at]} : 0, products = std::fabs(sum);
        for (int64_t k = 0; k < kK; ++k) {
          const double p = double{x[static_cast<std::size_t>(t * kK + k)]} *
                           double{w[static_cast<std::size_t>(j * kK + k)]};
          sum += p, products += std::fabs(p);
        }
        // Both factors rounded to TF32, 2^-11 each, and sums in fp32.
        ASSERT_TRUE(std::fabs(double{y[at]} - sum) <= products * (0x1p-10 + 50 * 0x1p-23))
            << t << " " << j << ": " << y[at] << ", expected " << sum;
      }
    }
  }
}

}  // namespace
}  // namespace lathe
