// decode_kv_rows_cuda() against the reference, by head, format, product and where rows go: state
// rows and live blocks.
#include "kernels/kv_rows/decode_heads_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/attention/kv_codes_cuda.h"
#include "kernels/kv_rows/kv_rows.h"
#include "quant/fp8.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

class DecodeHeadsCudaTest : public testing::Test {
 protected:
  void SetUp() override { LATHE_NEEDS_GPU(); }
};

// NaN in the same places, everything else the same bits.
testing::AssertionResult same_numbers(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " numbers";
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::memcmp(&a[i], &b[i], 4) == 0) continue;
    return testing::AssertionFailure() << "element " << i << " is " << a[i] << ", not " << b[i];
  }
  return testing::AssertionSuccess();
}

// Two blocks and a part of one, which ends within a warp's rows.
constexpr int64_t kRows = 2 * kBlockSize + 5, kBlocks = 3, kPlaneBlocks = 5;
constexpr float kKeyScale = 0.03125f, kValueScale = 0.0437f;

struct Case {
  RowFormat format;
  RowShape shape;
  bool with_sigma = false;
  bool with_bias = false;
  bool by_pieces = false;  // codes, two blocks each, with something between them
};

// Codes of random rows, some of them zero, NaN and far from one.
class CodedRows {
 public:
  explicit CodedRows(const Case& c)
      : c_(c),
        grid_(higgs_grid(c.format.bits, c.format.grid_dim)),
        row_size_(row_bytes(c.format, c.shape)),
        stride_(kOffset + kBlockSize * row_size_ + kGap),
        product_(normal_values(kRows * c.shape.width(), 2, 0.6)),
        points_(table(grid_.points, grid_.num_points * grid_.dim)),
        d_product_(product_),
        sigma_(numbers(c.with_sigma, 0.25f)),
        bias_(numbers(c.with_bias, -0.3f)),
        d_sigma_(sigma_),
        d_bias_(bias_),
        d_order_(std::vector<int32_t>{3, 0, 2}) {
    const int64_t width = c.shape.width();
    std::vector<float> exact = normal_values(kRows * width, 1);
    const auto row = [&](int64_t r) { return exact.data() + r * width; };
    std::fill_n(row(0), width, 0.0f);
    for (int64_t j = 0; j < width; ++j) row(2)[j] *= 300, row(3)[j] *= 1e-3f;
    row(4)[width / 2] = NAN;
    codes_.resize(static_cast<std::size_t>(kRows * row_size_));
    std::vector<std::byte> memory(static_cast<std::size_t>(4 * stride_ + 2 * kGap),
                                  std::byte{0xa5});
    const std::vector<int32_t> order = d_order_.host();
    for (int64_t r = 0; r < kRows; ++r) {
      encode_row(c.format, c.shape, nullptr, row(r), codes_.data() + r * row_size_);
      const int64_t block = r / kBlockSize;
      const int64_t begin = c.by_pieces ? block / 2 * (2 * stride_ + kGap) + block % 2 * stride_
                                        : order[static_cast<std::size_t>(block)] * stride_;
      std::memcpy(memory.data() + begin + kOffset + r % kBlockSize * row_size_,
                  codes_.data() + r * row_size_, static_cast<std::size_t>(row_size_));
    }
    d_codes_ = std::make_unique<DeviceArray<std::byte>>(memory);
  }

  KvRowsCudaFormat format() {
    return {.scale = c_.format.scale,
            .hadamard = c_.format.hadamard,
            .num_heads = static_cast<int>(c_.shape.num_heads),
            .head_dim = static_cast<int>(c_.shape.head_dim),
            .grid_dim = static_cast<int>(grid_.dim),
            .num_points = static_cast<int>(grid_.num_points),
            .code_bits = grid_.code_bits,
            .points = points_.data(),
            .sigma = sigma_.empty() ? nullptr : d_sigma_.data(),
            .bias = bias_.empty() ? nullptr : d_bias_.data()};
  }
  KvCodesCuda codes() {
    return {.data = d_codes_->data(),
            .blocks = c_.by_pieces ? nullptr : d_order_.data(),
            .piece_stride = 2 * stride_ + kGap,
            .block_stride = stride_,
            .piece_blocks = 2,
            .offset = kOffset,
            .row_bytes = row_size_};
  }
  const std::vector<float>& product() const { return product_; }
  const float* device_product() { return d_product_.data(); }

  // The reference's rows: (product + bias) + decoded codes.
  std::vector<float> rows(bool with_product) const {
    const int64_t width = c_.shape.width();
    std::vector<float> result(static_cast<std::size_t>(kRows * width));
    for (int64_t r = 0; r < kRows; ++r) {
      float* row = result.data() + r * width;
      decode_row(c_.format, c_.shape, sigma_.empty() ? nullptr : sigma_.data(),
                 codes_.data() + r * row_size_, row);
      for (int64_t j = 0; j < width; ++j) {
        float p = with_product ? product_[static_cast<std::size_t>(r * width + j)] : 0.0f;
        if (!bias_.empty()) p += bias_[static_cast<std::size_t>(j)];
        row[j] = p + row[j];
      }
    }
    return result;
  }

 private:
  static constexpr int64_t kOffset = 5, kGap = 3;
  static std::vector<float> table(const float* from, int64_t count) {
    return std::vector<float>(from, from + count);
  }
  std::vector<float> numbers(bool wanted, float first) const {
    std::vector<float> result;
    for (int64_t j = 0; j < c_.shape.width() && wanted; ++j) {
      result.push_back(first + 0.01f * static_cast<float>(j % 50));
    }
    return result;
  }

  Case c_;
  const HiggsGrid& grid_;
  int64_t row_size_, stride_;
  std::vector<std::byte> codes_;
  std::vector<float> product_;
  DeviceArray<float> points_, d_product_;
  std::vector<float> sigma_, bias_;
  DeviceArray<float> d_sigma_, d_bias_;
  DeviceArray<int32_t> d_order_;
  std::unique_ptr<DeviceArray<std::byte>> d_codes_;
};

void expect_the_references_rows(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.format.bits << " bits in " << c.format.grid_dim
                                  << "D, scale " << row_scale_name(c.format.scale) << ", hadamard "
                                  << c.format.hadamard << ", " << c.shape.num_heads << " x "
                                  << c.shape.head_dim << ", sigma " << c.with_sigma << ", bias "
                                  << c.with_bias << ", pieces " << c.by_pieces);
  CodedRows coded(c);
  for (const bool with_product : {false, true}) {
    SCOPED_TRACE(testing::Message() << "product " << with_product);
    const std::vector<float> wanted = coded.rows(with_product);
    const auto count = static_cast<int64_t>(wanted.size());
    const float* product = with_product ? coded.device_product() : nullptr;
    DeviceArray<float> rows(count);
    decode_kv_rows_cuda(coded.format(), coded.codes(), product, {rows.data()}, kRows, {}, nullptr);
    EXPECT_TRUE(same_numbers(rows.host(), wanted));
    if (with_product) {  // over the product
      DeviceArray<float> over(coded.product());
      decode_kv_rows_cuda(coded.format(), coded.codes(), over.data(), {over.data()}, kRows, {},
                          nullptr);
      EXPECT_TRUE(same_numbers(over.host(), wanted)) << "over the product";
    }
    std::vector<float> rounded = wanted;
    for (float& x : rounded) x = float_from_bf16(bf16_from_float(x));
    DeviceArray<uint16_t> halves(count);
    decode_kv_rows_cuda(coded.format(), coded.codes(), product, {halves.data(), CudaElement::kBF16},
                        kRows, {}, nullptr);
    EXPECT_TRUE(same_numbers(from_bf16(halves.host()), rounded)) << "in bf16";
  }
}

TEST_F(DecodeHeadsCudaTest, RowsAreTheReferences) {
  for (const int64_t head_dim : {64, 80, 96, 128, 256}) {
    for (const int bits : {2, 3, 4}) {
      for (const int64_t dim : {1, 2, 4}) {
        if (dim == 4 && bits != 2) continue;
        const RowFormat format = {.bits = bits, .grid_dim = dim};
        RowFormat plain = format;
        plain.hadamard = false;
        expect_the_references_rows({.format = format, .shape = {3, head_dim}, .with_bias = true});
        expect_the_references_rows(
            {.format = plain, .shape = {2, head_dim}, .with_sigma = true, .by_pieces = true});
      }
    }
    for (const RowScale scale : {RowScale::kF16, RowScale::kF32}) {
      expect_the_references_rows(
          {.format = {.bits = 2, .scale = scale}, .shape = {3, head_dim}, .by_pieces = true});
      expect_the_references_rows({.format = {.bits = 3, .scale = scale},
                                  .shape = {1, head_dim},
                                  .with_sigma = true,
                                  .with_bias = true});
    }
  }
}

// A plane of blocks, of which some take the rows.
class Plane {
 public:
  Plane(KvCudaElement element, const RowShape& shape)
      : element_(element),
        shape_(shape),
        bytes_(kPlaneBlocks * shape.num_heads * kv_cuda_head_bytes(element, shape.head_dim)),
        grid_(sizeof(KvCudaGrid)) {
    if (kv_cuda_is_coded(element)) {
      grid_ = DeviceBuffer::from_host(make_kv_cuda_grid(element).get(), sizeof(KvCudaGrid));
    }
  }
  KvCudaLayer layer() {
    return {.element = element_,
            .keys = bytes_.data(),
            .values = bytes_.data(),
            .key_scale = kKeyScale,
            .value_scale = kValueScale,
            .grid = grid_.as<KvCudaGrid>()};
  }
  std::vector<std::byte> host() const { return bytes_.host(); }
  // Where a number that is no code lies.
  int64_t place(int64_t block, int64_t row, int64_t column) const {
    const int64_t head = column / shape_.head_dim;
    return (block * shape_.num_heads + head) * kv_cuda_head_bytes(element_, shape_.head_dim) +
           kv_cuda_element_size(element_) *
               kv_cuda_offset(element_, static_cast<int>(shape_.head_dim),
                              static_cast<int>(row % kBlockSize),
                              static_cast<int>(column % shape_.head_dim));
  }

 private:
  KvCudaElement element_;
  RowShape shape_;
  DeviceArray<std::byte> bytes_;
  DeviceBuffer grid_;
};

template <typename T>
T load_as(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct Live {
  KvCudaElement element;
  bool is_value;
  int64_t rotary_dim;
  bool with_product;
  bool with_state;
};

void expect_live_rows(const Case& c, const Live& l) {
  SCOPED_TRACE(testing::Message() << c.shape.num_heads << " x " << c.shape.head_dim << ", element "
                                  << static_cast<int>(l.element) << ", value " << l.is_value
                                  << ", rotary " << l.rotary_dim << ", product " << l.with_product
                                  << ", state " << l.with_state);
  CodedRows coded(c);
  const int64_t width = c.shape.width(), head_dim = c.shape.head_dim, half = l.rotary_dim / 2;
  const std::vector<float> rows = coded.rows(l.with_product);
  const std::vector<int32_t> blocks = {4, 1, 2}, positions = {64, 0, 96};
  std::vector<float> cos, sin;
  for (int64_t i = 0; i < 128 * half; ++i) {
    const double angle = 0.1 * static_cast<double>(i / half) / static_cast<double>(1 + i % half);
    cos.push_back(static_cast<float>(1.25 * std::cos(angle)));
    sin.push_back(static_cast<float>(1.25 * std::sin(angle)));
  }
  DeviceArray<int32_t> d_blocks(blocks), d_positions(positions);
  DeviceArray<float> d_cos(cos), d_sin(sin), d_rows(rows);
  const auto live_in = [&](Plane& plane) {
    return KvLiveRowsCuda{.layer = plane.layer(),
                          .blocks = d_blocks.data(),
                          .is_value = l.is_value,
                          .first_positions = d_positions.data(),
                          .cos = half > 0 ? d_cos.data() : nullptr,
                          .sin = half > 0 ? d_sin.data() : nullptr,
                          .rotary_dim = l.rotary_dim};
  };
  Plane plane(l.element, c.shape), stored(l.element, c.shape);
  DeviceArray<float> state(kRows * width);
  decode_kv_rows_cuda(coded.format(), coded.codes(),
                      l.with_product ? coded.device_product() : nullptr,
                      {l.with_state ? state.data() : nullptr}, kRows, live_in(plane), nullptr);
  store_live_rows_cuda(live_in(stored), c.shape.num_heads, head_dim, kRows, d_rows.data(), nullptr);
  const std::vector<std::byte> got = plane.host(), other = stored.host();
  if (l.with_state) {
    EXPECT_TRUE(same_numbers(state.host(), rows));
  }
  // What is not turned is stored as any rows are, byte for byte; codes always.
  if (l.is_value || half == 0 || kv_cuda_is_coded(l.element)) {
    // NaN has many bit patterns in fp32 alone: nearness below is of numbers.
    EXPECT_TRUE(l.element == KvCudaElement::kF32 || got == other);
    if (kv_cuda_is_coded(l.element)) return;
  }
  std::vector<bool> written(got.size());
  for (int64_t r = 0; r < kRows; ++r) {
    const auto block = static_cast<std::size_t>(r / kBlockSize);
    const int64_t position = positions[block] + r % kBlockSize;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t dim = j % head_dim;
      const float* head = rows.data() + r * width + j - dim;
      double wanted = head[dim], size = std::fabs(wanted);
      if (!l.is_value && dim < 2 * half) {
        const auto angle = static_cast<std::size_t>(position * half + dim % half);
        const double sign = dim < half ? -1 : 1;
        const double first = double{head[dim]} * double{cos[angle]};
        const double second =
            double{head[dim < half ? dim + half : dim - half]} * double{sin[angle]};
        wanted = first + sign * second, size = std::fabs(first) + std::fabs(second);
      }
      const int64_t at = plane.place(blocks[block], r, j);
      // Two products and a sum, each rounded, then the element's own rounding; the subnormals of
      // fp8 are 2^-9 apart.
      double limit = 3 * 0x1p-24 * size, number = 0;
      if (l.element == KvCudaElement::kF32) {
        number = load_as<float>(got.data() + at);
      } else if (l.element == KvCudaElement::kBF16) {
        number = float_from_bf16(load_as<uint16_t>(got.data() + at));
        limit += 0x1p-8 * (std::fabs(wanted) + limit) * 1.01;
      } else {
        const double scale = double{l.is_value ? kValueScale : kKeyScale};
        number = double{e4m3_to_float(load_as<uint8_t>(got.data() + at))} * scale;
        wanted = std::clamp(wanted, -448 * scale, 448 * scale);
        limit += 0x1p-4 * (std::fabs(wanted) + limit) * 1.01 + 0x1p-10 * scale;
      }
      for (int64_t b = 0; b < kv_cuda_element_size(l.element); ++b) {
        written[static_cast<std::size_t>(at + b)] = true;
      }
      if (std::isnan(wanted)) {
        ASSERT_TRUE(std::isnan(number)) << r << " " << j;
      } else {
        ASSERT_TRUE(std::fabs(number - wanted) <= limit)
            << r << " " << j << ": " << number << ", expected " << wanted;
      }
    }
  }
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(written[i] || got[i] == std::byte{0xff}) << "byte " << i;
  }
}

TEST_F(DecodeHeadsCudaTest, LiveBlocksTakeTheRows) {
  for (const int64_t head_dim : {64, 80, 96, 128, 256}) {
    for (const KvCudaElement element : {KvCudaElement::kF32, KvCudaElement::kBF16,
                                        KvCudaElement::kE4M3, KvCudaElement::kHiggs4}) {
      for (const bool with_product : {false, true}) {
        const Case c = {.format = {.bits = 2}, .shape = {3, head_dim}, .with_bias = true};
        expect_live_rows(c, {element, true, head_dim, with_product, with_product});
        expect_live_rows(c, {element, false, head_dim, with_product, !with_product});
      }
      const Case c = {.format = {.bits = 4}, .shape = {2, head_dim}, .by_pieces = true};
      expect_live_rows(c,
                       {element, false, head_dim / 2 / 16 * 16, true, true});  // a part is turned
      expect_live_rows(c, {element, false, 0, false, true});
    }
  }
}

// A row's bits do not depend on how many rows there are, nor on how heads are shared out.
TEST_F(DecodeHeadsCudaTest, ARowAloneIsTheRowInABatch) {
  const Case c = {.format = {.bits = 2}, .shape = {8, 128}};
  CodedRows coded(c);
  const std::vector<float> wanted = coded.rows(true);
  DeviceArray<float> one(c.shape.width());
  decode_kv_rows_cuda(coded.format(), coded.codes(), coded.device_product(), {one.data()}, 1, {},
                      nullptr);
  EXPECT_TRUE(same_numbers(one.host(),
                           std::vector<float>(wanted.begin(), wanted.begin() + c.shape.width())));
  // The same codes for many rows: all of a row's heads in one thread.
  constexpr int64_t kMany = 1 << 15;
  ASSERT_EQ(heads_per_thread(kMany, 8, 128), 8);
  ASSERT_LT(heads_per_thread(kRows, 8, 128), 8);
  DeviceArray<int32_t> blocks(std::vector<int32_t>(kMany / kBlockSize, 0));
  KvCodesCuda codes = coded.codes();
  codes.blocks = blocks.data();
  DeviceArray<uint16_t> few(kBlockSize * c.shape.width()), many(kMany * c.shape.width());
  decode_kv_rows_cuda(coded.format(), codes, nullptr, {few.data(), CudaElement::kBF16}, kBlockSize,
                      {}, nullptr);
  decode_kv_rows_cuda(coded.format(), codes, nullptr, {many.data(), CudaElement::kBF16}, kMany, {},
                      nullptr);
  const std::vector<uint16_t> first = few.host(), all = many.host();
  for (std::size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], first[i % first.size()]) << i;
}

TEST(DecodesHeads, UsualOnesOnly) {
  alignas(16) float numbers[8] = {};
  const int32_t block = 0;
  KvRowsCudaFormat format = {.num_heads = 2, .grid_dim = 2, .code_bits = 4};
  const KvLiveRowsCuda keys = {
      .layer = {}, .blocks = &block, .cos = numbers, .sin = numbers, .rotary_dim = 128};
  for (const int head_dim : {8, 64, 80, 96, 128, 256}) {
    format.head_dim = head_dim;
    EXPECT_EQ(decodes_heads_cuda(format, nullptr, {}, {}),
              head_dim == 64 || head_dim == 128 || head_dim == 256);
    EXPECT_EQ(decodes_heads_cuda(format, numbers, {}, keys), head_dim == 128);
  }
  format.head_dim = 128;
  EXPECT_FALSE(decodes_heads_cuda(format, numbers + 1, {}, keys));
  EXPECT_FALSE(decodes_heads_cuda(format, numbers, {numbers + 2}, keys));
  KvLiveRowsCuda other = keys;
  other.layer.element = KvCudaElement::kHiggs4;
  EXPECT_FALSE(decodes_heads_cuda(format, numbers, {}, other));
  other = keys, other.cos = numbers + 1;
  EXPECT_FALSE(decodes_heads_cuda(format, numbers, {}, other));
  other.is_value = true;  // not turned
  EXPECT_TRUE(decodes_heads_cuda(format, numbers, {}, other));
}

TEST(HeadsPerThread, DividesTheHeads) {
  for (const int num_heads : {1, 2, 3, 6, 8, 32}) {
    for (const int64_t rows : {1, 100, 8192, 262144}) {
      const int heads = heads_per_thread(rows, num_heads, 128);
      EXPECT_EQ(num_heads % heads, 0);
      EXPECT_TRUE(rows < 100000 || heads == num_heads);
      EXPECT_TRUE(rows > 100 || heads == 1);
    }
  }
}

}  // namespace
}  // namespace lathe
