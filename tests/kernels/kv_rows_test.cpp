#include "kernels/kv_rows/kv_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

// All versions give the bits of the reference: there is no tolerance.

TEST(MultiplyAddRows, EveryKernelHasTheBitsOfTheReference) {
  OwnedExec owned(1);
  for (const auto& kernel : runnable(multiply_add_rows_kernels())) {
    for (const int64_t n : {1, 8, 31, 32, 33, 48, 64, 192}) {
      for (const int64_t k : {1, 3, 16, 64, 192}) {
        for (const int64_t num_rows : {1, 2, 5, 6, 7, 11, 12, 13, 30}) {
          SCOPED_TRACE(testing::Message()
                       << kernel.name << " " << num_rows << "x" << n << "x" << k);
          const int64_t x_stride = k + 3;
          const int64_t y_stride = n + 5;
          const auto x = normal_values(num_rows * x_stride, 1);
          const auto w = normal_values(n * k, 2);
          const auto y = normal_values(num_rows * y_stride, 3);
          std::vector<float> packed(std::size_t(multiply_add_weight_floats(n, k)));
          pack_multiply_add_weight(w.data(), n, k, k, packed.data());
          GuardedFloats actual(y);
          MultiplyAddRowsArgs args{.x = x.data(),
                                   .w = packed.data(),
                                   .y = actual.data(),
                                   .num_rows = num_rows,
                                   .k = k,
                                   .n = n,
                                   .x_stride = x_stride,
                                   .y_stride = y_stride};
          kernel.run(args, owned.exec);
          std::vector<float> expected = y;
          args.y = expected.data();
          multiply_add_rows_ref(args, owned.exec);
          EXPECT_TRUE(same_bits(actual.values(), expected));
          EXPECT_TRUE(actual.guards_intact());
        }
      }
    }
  }
}

// The reference against a product in double: k roundings of sums whose terms are below 30.
TEST(MultiplyAddRows, TheReferenceIsAProduct) {
  OwnedExec owned(1);
  const auto x = normal_values(4 * 40, 1);
  const auto w = normal_values(35 * 40, 2);
  std::vector<float> packed(std::size_t(multiply_add_weight_floats(35, 40)));
  pack_multiply_add_weight(w.data(), 35, 40, 40, packed.data());
  std::vector<float> y(4 * 35, 0.5f), expected;
  multiply_add_rows_ref({.x = x.data(),
                         .w = packed.data(),
                         .y = y.data(),
                         .num_rows = 4,
                         .k = 40,
                         .n = 35,
                         .x_stride = 40,
                         .y_stride = 35},
                        owned.exec);
  for (std::size_t t = 0; t < 4; ++t) {
    for (std::size_t j = 0; j < 35; ++j) {
      double sum = 0.5;
      for (std::size_t i = 0; i < 40; ++i) sum += double{x[t * 40 + i]} * w[j * 40 + i];
      expected.push_back(float(sum));
    }
  }
  EXPECT_TRUE(all_close(y, expected, 0, 40 * 30 * 0x1p-24));
}

std::vector<RowFormat> formats(const RowShape& shape) {
  std::vector<RowFormat> all;
  for (const HiggsGrid* grid : higgs_grids()) {
    for (const RowScale scale : {RowScale::kLog8, RowScale::kF16, RowScale::kF32}) {
      for (const bool hadamard : {true, false}) {
        all.push_back(
            {.bits = grid->bits(), .grid_dim = grid->dim, .scale = scale, .hadamard = hadamard});
      }
    }
  }
  for (const int bits : {2, 3, 4, 8}) {
    all.push_back({.method = RowMethod::kUniform, .bits = bits, .group = shape.head_dim});
  }
  return all;
}

struct Result {
  std::vector<std::byte> codes;
  std::vector<float> encoded, decoded;
};

Result run(const Kernel<KvRowsArgs>& encode, const Kernel<KvRowsArgs>& decode,
           const RowFormat& format, const RowShape& shape, const std::vector<float>& exact,
           const std::vector<float>& prediction, const std::vector<float>* sigma) {
  OwnedExec owned(1);
  const int64_t width = shape.width();
  const auto num_rows = int64_t(exact.size()) / width;
  const int64_t stride = row_bytes(format, shape) + 3;
  std::vector<float> inverse;
  if (sigma != nullptr) {
    for (const float s : *sigma) inverse.push_back(1 / s);
  }
  Result result;
  result.codes.assign(std::size_t(num_rows * stride), std::byte{0x5a});
  GuardedFloats rows(prediction);
  KvRowsArgs args{.format = format,
                  .shape = shape,
                  .sigma = sigma == nullptr ? nullptr : sigma->data(),
                  .inverse_sigma = sigma == nullptr ? nullptr : inverse.data(),
                  .exact = exact.data(),
                  .rows = rows.data(),
                  .codes = result.codes.data(),
                  .code_stride = stride,
                  .num_rows = num_rows};
  encode.run(args, owned.exec);
  result.encoded = rows.values();
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t i = stride - 3; i < stride; ++i) {
      EXPECT_EQ(result.codes[std::size_t(t * stride + i)], std::byte{0x5a}) << "behind the row";
    }
  }
  GuardedFloats again(prediction);
  args.rows = again.data();
  args.exact = args.inverse_sigma = nullptr;
  decode.run(args, owned.exec);
  result.decoded = again.values();
  EXPECT_TRUE(rows.guards_intact() && again.guards_intact());
  return result;
}

TEST(KvRows, EveryKernelHasTheBitsOfTheReference) {
  const auto encoders = runnable(encode_kv_rows_kernels());
  const auto decoders = runnable(decode_kv_rows_kernels());
  for (std::size_t i = 0; i + 1 < encoders.size(); ++i) {
    for (const RowShape shape :
         {RowShape{3, 64}, RowShape{2, 128}, RowShape{1, 8}, RowShape{5, 8}, RowShape{3, 16},
          RowShape{2, 80}, RowShape{1, 120}, RowShape{1, 256}, RowShape{2, 512}}) {
      for (const RowFormat& format : formats(shape)) {
        SCOPED_TRACE(testing::Message() << encoders[i].name << " " << shape.num_heads << "x"
                                        << shape.head_dim << " " << format.bits << " bits dim "
                                        << format.grid_dim << " hadamard " << format.hadamard);
        const int64_t num_rows = 3;
        auto exact = normal_values(num_rows * shape.width(), 5, 2);
        const auto prediction = normal_values(num_rows * shape.width(), 6);
        auto sigma = normal_values(shape.width(), 7);
        for (float& s : sigma) s = std::fabs(s) + 0.1f;
        // A row that is predicted exactly, and one with a number that is not finite.
        std::copy_n(prediction.begin() + shape.width(), shape.head_dim,
                    exact.begin() + shape.width());
        exact[std::size_t(2 * shape.width())] = NAN;
        for (const auto* s : {static_cast<const std::vector<float>*>(nullptr),
                              static_cast<const std::vector<float>*>(&sigma)}) {
          if (s != nullptr && format.method != RowMethod::kHiggs) continue;
          const Result expected =
              run(encoders.back(), decoders.back(), format, shape, exact, prediction, s);
          const Result actual = run(encoders[i], decoders[i], format, shape, exact, prediction, s);
          EXPECT_EQ(actual.codes, expected.codes);
          // NaN is NaN: which bits it has is not part of the definition.
          const auto comparable = [](std::vector<float> x) {
            for (float& v : x) {
              if (std::isnan(v)) v = 12345;
            }
            return x;
          };
          EXPECT_TRUE(same_bits(comparable(actual.encoded), comparable(expected.encoded)));
          EXPECT_TRUE(same_bits(comparable(actual.decoded), comparable(actual.encoded)));
        }
      }
    }
  }
}

}  // namespace
}  // namespace lathe
