#include "kernels/kv_rows/kv_rows_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/kv_rows/coded_blocks_cuda.h"
#include "kernels/kv_rows/kv_rows.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

class KvRowsCudaTest : public testing::Test {
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
  // The product may be what the rows are written over.
  encode_kv_rows_cuda(cuda_format, where, d_rows.as<float>(), d_exact.as<float>(), {d_rows.data()},
                      kRows, nullptr);
  d_memory.to_host(memory.data(), static_cast<int64_t>(memory.size()));
  for (std::size_t i = 0; i < memory.size(); ++i) {
    ASSERT_EQ(static_cast<int>(memory[i]), static_cast<int>(expected[i])) << "byte " << i;
  }
  EXPECT_TRUE(same_numbers(download(d_rows, rows.size()), rows)) << "encoding";
  d_rows = upload(prediction);
  decode_kv_rows_cuda(cuda_format, where, d_rows.as<float>(), {d_rows.data()}, kRows, {}, nullptr);
  EXPECT_TRUE(same_numbers(download(d_rows, rows.size()), rows)) << "decoding";

  // Rows in bf16 are those, rounded once; blocks of codes in any order.
  const std::vector<int32_t> order = {3, 0, 2, 1};
  std::vector<std::byte> shuffled(codes.size());
  for (std::size_t b = 0; b < order.size(); ++b) {
    const auto bytes = static_cast<std::size_t>(kBlockSize * row_size);
    std::memcpy(shuffled.data() + static_cast<std::size_t>(order[b]) * bytes,
                codes.data() + b * bytes, bytes);
  }
  std::vector<float> rounded = rows;
  for (float& x : rounded) x = float_from_bf16(bf16_from_float(x));
  const DeviceBuffer d_order = DeviceBuffer::from_host(order.data(), 16),
                     d_product = upload(prediction);
  DeviceArray<std::byte> d_codes(shuffled);
  const KvCodesCuda blocks = {.data = d_codes.data(),
                              .blocks = d_order.as<int32_t>(),
                              .block_stride = kBlockSize * row_size,
                              .row_bytes = row_size};
  DeviceArray<uint16_t> halves(kRows * width);
  const KvRowsCuda in_bf16{halves.data(), CudaElement::kBF16};
  decode_kv_rows_cuda(cuda_format, blocks, d_product.as<float>(), in_bf16, kRows, {}, nullptr);
  EXPECT_TRUE(same_numbers(from_bf16(halves.host()), rounded)) << "decoding to bf16";
  halves.poison(), d_codes.poison();
  encode_kv_rows_cuda(cuda_format, blocks, d_product.as<float>(), d_exact.as<float>(), in_bf16,
                      kRows, nullptr);
  EXPECT_TRUE(same_numbers(from_bf16(halves.host()), rounded)) << "encoding to bf16";
  EXPECT_EQ(d_codes.host(), shuffled);

  // Without a product the rows held before do not matter; a bias is what is predicted then.
  std::vector<float> bias(prediction.begin(), prediction.begin() + width);
  const DeviceBuffer d_bias = upload(bias);
  KvRowsCudaFormat with_bias = cuda_format;
  with_bias.bias = d_bias.as<float>();
  d_rows = upload(std::vector<float>(rows.size(), NAN));
  decode_kv_rows_cuda(with_bias, where, nullptr, {d_rows.data()}, kRows, {}, nullptr);
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

TEST_F(KvRowsCudaTest, CodesAndRowsAreTheReferences) {
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

TEST_F(KvRowsCudaTest, Products) {
  CudaContext context(0);
  constexpr int64_t kRows = 37, kK = 48, kN = 24;
  const std::vector<float> start = normal_values(kRows * kN, 3);
  for (const CudaElement element : {CudaElement::kF32, CudaElement::kBF16}) {
    const bool is_bf16 = element == CudaElement::kBF16;
    std::vector<float> x = normal_values(kRows * kK, 1), w = normal_values(kN * kK, 2);
    if (is_bf16) x = from_bf16(to_bf16(x)), w = from_bf16(to_bf16(w));
    const DeviceBuffer d_x = upload(x), d_w = upload(w);
    for (const bool add : {false, true}) {
      SCOPED_TRACE(testing::Message() << "bf16 " << is_bf16 << ", add " << add);
      DeviceBuffer d_y = upload(start);
      const DeviceBuffer halves_x = DeviceBuffer::from_host(to_bf16(x).data(), kRows * kK * 2),
                         halves_w = DeviceBuffer::from_host(to_bf16(w).data(), kN * kK * 2);
      multiply_rows_cuda({.element = element,
                          .x = is_bf16 ? halves_x.data() : d_x.data(),
                          .w = is_bf16 ? halves_w.data() : d_w.data(),
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
      // TF32: both factors rounded, 2^-11 each; bf16 factors are exact. Sums in fp32.
      const double limit = (is_bf16 ? 0 : 0x1p-10) + 50 * 0x1p-23;
      for (int64_t t = 0; t < kRows; ++t) {
        for (int64_t j = 0; j < kN; ++j) {
          const auto at = static_cast<std::size_t>(t * kN + j);
          double sum = add ? double{start[at]} : 0, products = std::fabs(sum);
          for (int64_t k = 0; k < kK; ++k) {
            const double p = double{x[static_cast<std::size_t>(t * kK + k)]} *
                             double{w[static_cast<std::size_t>(j * kK + k)]};
            sum += p, products += std::fabs(p);
          }
          ASSERT_TRUE(std::fabs(double{y[at]} - sum) <= products * limit)
              << t << " " << j << ": " << y[at] << ", expected " << sum;
        }
      }
    }
  }
}

// As KvLatentCoder has it: nearest points or whole steps of projected / step.
TEST_F(KvRowsCudaTest, LatentsAreTheReferences) {
  const HiggsGrid& grid = higgs_grid(4, 1);
  const auto table = [](const float* from, int64_t count) {
    return upload(std::vector<float>(from, from + count));
  };
  const DeviceBuffer points = table(grid.points, 16), twice = table(grid.twice_points, 16),
                     norms = table(grid.minus_norms, 16);
  constexpr int64_t kRows = 2 * kBlockSize;
  const std::vector<int32_t> order = {1, 0};
  const DeviceBuffer d_order = DeviceBuffer::from_host(order.data(), 8);
  for (const int bits : {4, 8}) {
    for (const int rank : {6, 8, 48}) {
      for (const CudaElement element : {CudaElement::kF32, CudaElement::kBF16}) {
        SCOPED_TRACE(testing::Message() << bits << " bits, rank " << rank);
        const int64_t stride = (rank + 7) / 8 * 8, row_size = rank * bits / 8;
        std::vector<float> projected = normal_values(kRows * stride, 4, bits == 8 ? 20 : 1);
        projected[0] = NAN, projected[1] = INFINITY, projected[2] = -INFINITY, projected[3] = 0;
        std::vector<float> step, inverse;
        for (int j = 0; j < rank; ++j) {
          step.push_back(0.5f + 0.03f * static_cast<float>(j)), inverse.push_back(1 / step.back());
        }
        std::vector<std::byte> codes(static_cast<std::size_t>(kRows * row_size));
        std::vector<float> z(static_cast<std::size_t>(kRows * stride), 0.0f);
        for (int64_t t = 0; t < kRows; ++t) {
          std::vector<uint8_t> row(static_cast<std::size_t>(rank));
          for (std::size_t j = 0; j < row.size(); ++j) {
            const auto at = static_cast<std::size_t>(t * stride) + j;
            const float y = projected[at] * inverse[j];
            const float whole = std::nearbyint(y);
            row[j] = bits == 4 ? static_cast<uint8_t>(nearest_point(grid, &y))
                               : static_cast<uint8_t>(static_cast<int8_t>(
                                     std::isnan(y) ? 0.0f : std::clamp(whole, -127.0f, 127.0f)));
            z[at] =
                step[j] * (bits == 4 ? grid.points[row[j]] : static_cast<float>(int8_t(row[j])));
            if (element == CudaElement::kBF16) z[at] = float_from_bf16(bf16_from_float(z[at]));
          }
          const int64_t place =
              order[static_cast<std::size_t>(t / kBlockSize)] * kBlockSize + t % kBlockSize;
          pack_codes(row.data(), rank, bits, codes.data() + place * row_size);
        }
        const DeviceBuffer d_step = upload(step), d_inverse = upload(inverse),
                           d_projected = upload(projected);
        const KvLatentCudaFormat format = {.rank = rank,
                                           .bits = bits,
                                           .points = points.as<float>(),
                                           .twice_points = twice.as<float>(),
                                           .minus_norms = norms.as<float>(),
                                           .step = d_step.as<float>(),
                                           .inverse_step = d_inverse.as<float>()};
        DeviceArray<std::byte> d_codes(static_cast<int64_t>(codes.size()));
        const KvCodesCuda where = {.data = d_codes.data(),
                                   .blocks = d_order.as<int32_t>(),
                                   .block_stride = kBlockSize * row_size,
                                   .row_bytes = row_size};
        DeviceArray<float> plain(kRows * stride);
        DeviceArray<uint16_t> halves(kRows * stride);
        const bool is_f32 = element == CudaElement::kF32;
        const KvRowsCuda to{is_f32 ? static_cast<void*>(plain.data()) : halves.data(), element};
        const auto result = [&] { return is_f32 ? plain.host() : from_bf16(halves.host()); };
        encode_kv_latents_cuda(format, where, d_projected.as<float>(), to, stride, kRows, nullptr);
        EXPECT_EQ(d_codes.host(), codes);
        EXPECT_TRUE(same_numbers(result(), z)) << "encoding";
        plain.poison(), halves.poison();
        decode_kv_latents_cuda(format, where, to, stride, kRows, nullptr);
        EXPECT_TRUE(same_numbers(result(), z)) << "decoding";
      }
    }
  }
}

// Keys turned by their positions into a cache and back out of it, less a mean.
TEST_F(KvRowsCudaTest, LiveRowsByTheirPositions) {
  constexpr int64_t kHeads = 2, kDim = 24, kHalf = 8, kWidth = kHeads * kDim;
  constexpr int64_t kRows = 2 * kBlockSize;
  const std::vector<int32_t> blocks = {2, 0}, positions = {64, 32};
  std::vector<float> cos, sin;
  for (int64_t i = 0; i < 128 * kHalf; ++i) {
    const double angle = 0.1 * static_cast<double>(i / kHalf) / static_cast<double>(1 + i % kHalf);
    cos.push_back(static_cast<float>(1.25 * std::cos(angle)));
    sin.push_back(static_cast<float>(1.25 * std::sin(angle)));
  }
  const std::vector<float> x = normal_values(kRows * kWidth, 5), mean = normal_values(kWidth, 6);
  const DeviceBuffer d_x = upload(x), d_mean = upload(mean), d_cos = upload(cos),
                     d_sin = upload(sin), d_blocks = DeviceBuffer::from_host(blocks.data(), 8),
                     d_positions = DeviceBuffer::from_host(positions.data(), 8);
  DeviceArray<float> plane(3 * kBlockSize * kWidth), rows(kRows * kWidth);
  KvLiveRowsCuda live = {
      .layer = {.element = KvCudaElement::kF32, .keys = plane.data(), .values = plane.data()},
      .blocks = d_blocks.as<int32_t>(),
      .first_positions = d_positions.as<int32_t>(),
      .cos = d_cos.as<float>(),
      .sin = d_sin.as<float>(),
      .rotary_dim = 2 * kHalf};
  store_live_rows_cuda(live, kHeads, kDim, kRows, d_x.as<float>(), nullptr);
  const std::vector<float> stored = plane.host();
  for (int64_t t = 0; t < kRows; ++t) {
    const auto b = static_cast<std::size_t>(t / kBlockSize);
    const float* own_cos = cos.data() + (positions[b] + t % kBlockSize) * kHalf;
    const float* own_sin = sin.data() + (positions[b] + t % kBlockSize) * kHalf;
    for (int64_t j = 0; j < kWidth; ++j) {
      const int64_t head = j / kDim, dim = j % kDim;
      const float* row = x.data() + t * kWidth + head * kDim;
      double wanted = row[dim];
      if (dim < kHalf) {
        wanted = double{row[dim]} * own_cos[dim] - double{row[dim + kHalf]} * own_sin[dim];
      } else if (dim < 2 * kHalf) {
        wanted = double{row[dim]} * own_cos[dim - kHalf] +
                 double{row[dim - kHalf]} * own_sin[dim - kHalf];
      }
      const int64_t at = (blocks[b] * kHeads + head) * kBlockSize * kDim +
                         kv_cuda_offset(KvCudaElement::kF32, kDim, static_cast<int>(t % kBlockSize),
                                        static_cast<int>(dim));
      // Two products and a sum of numbers below 8, each rounded.
      ASSERT_NEAR(stored[static_cast<std::size_t>(at)], wanted, 3 * 8 * 0x1p-24) << t << " " << j;
    }
  }
  load_live_rows_cuda(live, kHeads, kDim, kRows, rows.data(), nullptr, d_mean.as<float>());
  const std::vector<float> back = rows.host();
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(back[i], x[i] - mean[i % static_cast<std::size_t>(kWidth)], 8 * 8 * 0x1p-24) << i;
  }

  // A cache that has keys without an offset: stored with it they are less by its rotation, which
  // is the offset of zeros; values and keys as they lie have none.
  const std::vector<float> key_offset = normal_values(kWidth, 7);
  const DeviceBuffer d_offset = upload(key_offset);
  std::vector<float> with = x;
  for (std::size_t i = 0; i < with.size(); ++i) with[i] += key_offset[i % std::size_t{kWidth}];
  const DeviceBuffer d_with = upload(with);
  live.key_offset = d_offset.as<float>();
  plane.poison();
  store_live_rows_cuda(live, kHeads, kDim, kRows, d_with.as<float>(), nullptr);
  const std::vector<float> without = plane.host();
  for (const int32_t block : blocks) {
    for (int64_t i = 0; i < kBlockSize * kWidth; ++i) {
      const auto at = static_cast<std::size_t>(block * kBlockSize * kWidth + i);
      ASSERT_NEAR(without[at], stored[at], 8 * 8 * 0x1p-24) << at;
    }
  }
  load_live_rows_cuda(live, kHeads, kDim, kRows, rows.data(), nullptr, d_mean.as<float>());
  const std::vector<float> with_again = rows.host();
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(with_again[i], with[i] - mean[i % std::size_t{kWidth}], 8 * 8 * 0x1p-24) << i;
  }
  live.is_value = true;
  store_live_rows_cuda(live, kHeads, kDim, kRows, d_x.as<float>(), nullptr);
  load_live_rows_cuda(live, kHeads, kDim, kRows, rows.data(), nullptr);
  EXPECT_EQ(rows.host(), x);
}

TEST_F(KvRowsCudaTest, TablesOfLayersAndSinks) {
  // 4 rebuilt blocks, 3 live ones a layer, 2 layers.
  const std::vector<int32_t> entries = {0, 3, 4, 6, 2, 5};
  const DeviceBuffer d_entries = DeviceBuffer::from_host(entries.data(), 24);
  DeviceArray<int32_t> tables(12);
  layer_tables_cuda(d_entries.as<int32_t>(), 6, 2, 4, 3, tables.data(), nullptr);
  EXPECT_EQ(tables.host(), (std::vector<int32_t>{0, 3, 4, 6, 2, 5, 0, 3, 7, 9, 2, 8}));

  constexpr int64_t kHeads = 2, kDim = 64, kBlocks = 6;
  for (const KvCudaElement element : {KvCudaElement::kF32, KvCudaElement::kBF16}) {
    const auto bytes =
        static_cast<std::size_t>(kBlocks * kHeads * kv_cuda_head_bytes(element, kDim));
    std::vector<std::byte> keys(bytes), values(bytes);
    for (std::size_t i = 0; i < bytes; ++i) {
      keys[i] = static_cast<std::byte>(i * 7 % 251),
      values[i] = static_cast<std::byte>(i * 5 % 241);
    }
    DeviceArray<std::byte> d_keys(keys), d_values(values);
    const std::vector<int32_t> count = {2}, from = {0, 1}, to = {2, 0}, tokens = {4, 31};
    const DeviceBuffer d_count = DeviceBuffer::from_host(count.data(), 4),
                       d_from = DeviceBuffer::from_host(from.data(), 8),
                       d_to = DeviceBuffer::from_host(to.data(), 8),
                       d_tokens = DeviceBuffer::from_host(tokens.data(), 8);
    copy_tokens_cuda(
        {.layer = {.element = element, .keys = d_keys.data(), .values = d_values.data()},
         .num_heads = kHeads,
         .head_dim = kDim,
         .first_block = 4,
         .count = d_count.as<int32_t>(),
         .from = d_from.as<int32_t>(),
         .to = d_to.as<int32_t>(),
         .tokens = d_tokens.as<int32_t>()},
        nullptr);
    for (auto* plane : {&keys, &values}) {
      for (std::size_t pair = 0; pair < 2; ++pair) {
        for (int64_t i = 0; i < kHeads * tokens[pair] * kDim; ++i) {
          const int64_t head = i / (tokens[pair] * kDim), rest = i % (tokens[pair] * kDim);
          const auto size = kv_cuda_element_size(element);
          const auto at = [&](int64_t block) {
            return (block * kHeads + head) * kv_cuda_head_bytes(element, kDim) +
                   size * kv_cuda_offset(element, kDim, static_cast<int>(rest / kDim),
                                         static_cast<int>(rest % kDim));
          };
          std::memcpy(plane->data() + at(to[pair]), plane->data() + at(4 + from[pair]),
                      static_cast<std::size_t>(size));
        }
      }
    }
    EXPECT_EQ(d_keys.host(), keys);
    EXPECT_EQ(d_values.host(), values);
  }
}

}  // namespace
}  // namespace lathe
