#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/attention/attention_cuda.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"
#include "support/paged_kv_cuda.h"

namespace lathe {
namespace {

class RopeAppendCuda : public testing::Test {
 protected:
  void SetUp() override { LATHE_NEEDS_GPU(); }
};

struct Problem {
  CudaElement element = CudaElement::kBF16;
  KvCudaElement kv_element = KvCudaElement::kBF16;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 64;
  int64_t rotary_dim = 64;
  bool norms = false;
  int64_t padding = 6;  // of a row, in elements
  bool has_offset = false;
  bool has_sinks = false;  // codes: the first tokens go to exact rows too
};

DeviceBuffer upload_floats(const std::vector<float>& v) {
  return DeviceBuffer::from_host(v.data(), static_cast<int64_t>(v.size() * 4));
}
DeviceBuffer upload_ints(const std::vector<int32_t>& v) {
  return DeviceBuffer::from_host(v.data(), static_cast<int64_t>(v.size() * 4));
}

// Codes, as numbers in rotated coordinates, against those that kv_store() makes of x. Where x
// itself is off a little, its scale may be the next bf16 number (2^-8 of all numbers), and a number
// between two points may go to the other one, equally far: so they are compared by how far they are
// from x.
void expect_codes(const std::vector<float>& codes, const float* x, KvPart part, bool equal) {
  const auto head_dim = static_cast<int64_t>(codes.size());
  std::vector<std::byte> head(
      static_cast<std::size_t>(kv_cuda_head_bytes(KvCudaElement::kHiggs4, head_dim)));
  std::vector<float> expected(codes.size());
  write_kv_codes(part, head_dim, x, 7, head.data());
  read_kv_codes(part, head_dim, head.data(), 7, expected.data());
  if (equal) {
    EXPECT_TRUE(same_bits(codes, expected));
    return;
  }
  std::vector<float> rotated(x, x + head_dim);
  kv_rotate(rotated.data(), head_dim);
  double error = 0, expected_error = 0, size = 0;
  for (std::size_t j = 0; j < codes.size(); ++j) {
    error += std::pow(double{codes[j]} - double{rotated[j]}, 2);
    expected_error += std::pow(double{expected[j]} - double{rotated[j]}, 2);
    size += std::pow(double{rotated[j]}, 2);
  }
  EXPECT_LE(std::sqrt(error), std::sqrt(expected_error) + 0x1p-8 * std::sqrt(size));
}

void expect_matches_reference(const Problem& p) {
  SCOPED_TRACE(testing::Message() << "elements " << static_cast<int>(p.element) << " "
                                  << static_cast<int>(p.kv_element) << " heads=" << p.num_heads
                                  << ":" << p.num_kv_heads << " head_dim=" << p.head_dim
                                  << " rotary_dim=" << p.rotary_dim << " norms=" << p.norms
                                  << " offset=" << p.has_offset << " sinks=" << p.has_sinks);
  // Rows: 3 of sequence 0 from position 31 on, padding, 1 of sequence 1 at 64, 2 of sequence 2 at
  // 0.
  const std::vector<int32_t> positions{31, 32, 33, -1, 64, 0, 1};
  const std::vector<int32_t> sequences{0, 0, 0, -1, 1, 2, 2};
  const auto num_rows = static_cast<int64_t>(positions.size());
  const int64_t row_size = (p.num_heads + 2 * p.num_kv_heads) * p.head_dim;
  const int64_t stride = row_size + p.padding;
  std::vector<float> qkv = normal_values(num_rows * stride, 1, 3);
  const bool f32 = p.element == CudaElement::kF32;
  std::vector<uint16_t> halves;
  for (float& x : qkv) {
    halves.push_back(bf16_from_float(x));
    if (!f32) x = float_from_bf16(halves.back());
  }
  const int64_t half = p.rotary_dim / 2;
  const std::vector<float> cos = normal_values(num_rows * half, 2);
  const std::vector<float> sin = normal_values(num_rows * half, 3);
  const std::vector<float> q_norm = normal_values(p.head_dim, 4);
  const std::vector<float> k_norm = normal_values(p.head_dim, 5);

  const PagedKvCuda::Shape shape{.element = p.kv_element,
                                 .num_kv_heads = p.num_kv_heads,
                                 .head_dim = p.head_dim,
                                 .key_scale = p.kv_element == KvCudaElement::kE4M3 ? 0.05f : 1,
                                 .value_scale = p.kv_element == KvCudaElement::kE4M3 ? 0.03f : 1,
                                 .has_sinks = p.has_sinks};
  PagedKvCuda kv(shape, {0, 0, 0}, {34, 65, 2}, 6);
  const int64_t size = f32 ? 4 : 2;
  DeviceBuffer d_qkv =
      DeviceBuffer::from_host(f32 ? static_cast<const void*>(qkv.data()) : halves.data(),
                              static_cast<int64_t>(qkv.size()) * size);
  const DeviceBuffer d_cos = upload_floats(cos), d_sin = upload_floats(sin),
                     d_q_norm = upload_floats(q_norm), d_k_norm = upload_floats(k_norm),
                     d_positions = upload_ints(positions), d_sequences = upload_ints(sequences);
  const float eps = 1e-5f;
  // As large as keys are, so that codes and tolerances stay what they are.
  const std::vector<float> offset = normal_values(p.num_kv_heads * p.head_dim, 7, 3);
  const int64_t num_products = num_rows * p.num_heads * p.head_dim;
  std::vector<float> products(static_cast<std::size_t>(num_products + 8), -7);  // with a guard
  const DeviceBuffer d_offset = upload_floats(offset);
  DeviceBuffer d_products = upload_floats(products);
  rope_append_cuda({.qkv = d_qkv.data(),
                    .element = p.element,
                    .stride = stride,
                    .q_norm = p.norms ? d_q_norm.as<float>() : nullptr,
                    .k_norm = p.norms ? d_k_norm.as<float>() : nullptr,
                    .eps = eps,
                    .cos = d_cos.as<float>(),
                    .sin = d_sin.as<float>(),
                    .num_heads = p.num_heads,
                    .num_kv_heads = p.num_kv_heads,
                    .head_dim = p.head_dim,
                    .rotary_dim = p.rotary_dim,
                    .key_offset = p.has_offset ? d_offset.as<float>() : nullptr,
                    .offset_products = p.has_offset ? d_products.as<float>() : nullptr},
                   {.positions = d_positions.as<int32_t>(),
                    .row_sequence = d_sequences.as<int32_t>(),
                    .block_tables = kv.tables(),
                    .table_stride = kv.table_stride(),
                    .sink_blocks = kv.sink_blocks(),
                    .num_rows = num_rows,
                    .num_sequences = 3},
                   kv.layer(), nullptr);
  std::vector<float> after(qkv.size());
  if (f32) {
    d_qkv.to_host(after.data(), static_cast<int64_t>(after.size() * 4));
  } else {
    d_qkv.to_host(halves.data(), static_cast<int64_t>(after.size() * 2));
    for (std::size_t i = 0; i < after.size(); ++i) after[i] = float_from_bf16(halves[i]);
  }
  kv.read_back();

  OwnedExec owned(1);
  std::vector<float> expected = qkv;
  std::vector<int64_t> row_idx;
  for (int64_t i = 0; i < num_rows; ++i) row_idx.push_back(i);
  const auto rotate = [&](float* x, int64_t num_heads, const std::vector<float>& gain,
                          bool leaves_offset_out) {
    if (p.norms) {
      rms_norm_ref({.x = x,
                    .weight = gain.data(),
                    .y = x,
                    .num_tokens = num_rows,
                    .num_heads = num_heads,
                    .norm_size = p.head_dim,
                    .x_stride = stride,
                    .y_stride = stride,
                    .eps = eps},
                   owned.exec);
    }
    for (int64_t row = 0; row < num_rows && leaves_offset_out; ++row) {
      for (std::size_t j = 0; j < offset.size(); ++j) {
        x[row * stride + static_cast<int64_t>(j)] -= offset[j];
      }
    }
    rope_ref({.x = x,
              .y = x,
              .positions = row_idx.data(),
              .cos = cos.data(),
              .sin = sin.data(),
              .num_positions = num_rows,
              .num_rows = num_rows,
              .num_heads = num_heads,
              .head_dim = p.head_dim,
              .rotary_dim = p.rotary_dim,
              .x_stride = stride,
              .y_stride = stride},
             owned.exec);
  };
  rotate(expected.data(), p.num_heads, q_norm, false);
  rotate(expected.data() + p.num_heads * p.head_dim, p.num_kv_heads, k_norm, p.has_offset);
  const bool coded = kv_cuda_is_coded(p.kv_element);
  std::vector<float> queries = expected;
  if (coded) {
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t head = 0; head < p.num_heads; ++head) {
        kv_rotate(expected.data() + row * stride + head * p.head_dim, p.head_dim);
      }
    }
  }

  // fp32: the norm's sum of head_dim squares is good to head_dim eps / 2, the rest to some eps of
  // the terms; |x|, |cos|, |sin| and gains stay below 20, 5, 5 and 5. Then one rounding: 2^-8 of
  // the result for bf16, 2^-4 for E4M3 or, below its normal numbers, half of 2^-9 (times the
  // scale).
  // Codes: the Hadamard matrix adds head_dim numbers times +-head_dim^-1/2 (or, in pieces, fewer):
  // that much more at most.
  const double f32_error = (static_cast<double>(p.head_dim) / 2 + 8) * 0x1p-24 *
                           (p.norms ? 2 * 5 * 5 * 20 : 2 * 5 * 20) *
                           (coded ? std::sqrt(static_cast<double>(p.head_dim)) : 1);
  const auto expect_near = [&](float actual, float want, double relative, double absolute) {
    const double tolerance = f32_error + relative * std::fabs(double{want}) + absolute;
    return std::fabs(double{actual} - double{want}) <= tolerance;
  };
  const bool e4m3 = p.kv_element == KvCudaElement::kE4M3;
  const double kv_relative = e4m3 ? 0x1p-4 : p.kv_element == KvCudaElement::kBF16 ? 0x1p-8 : 0;
  int failures = 0;
  const auto check = [&](bool ok, const char* what, int64_t row, int64_t head, int64_t dim,
                         float actual, float want) {
    if (!ok && failures++ < 5) {
      ADD_FAILURE() << what << " of row " << row << " head " << head << " dim " << dim << " is "
                    << actual << ", expected " << want;
    }
  };
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* got = after.data() + row * stride;
    const float* want = expected.data() + row * stride;
    const float* input = qkv.data() + row * stride;
    const bool padding = sequences[static_cast<std::size_t>(row)] < 0;
    for (int64_t i = 0; i < stride; ++i) {
      const int64_t head = i / p.head_dim, dim = i % p.head_dim;
      if (padding || i >= p.num_heads * p.head_dim) {
        check(got[i] == input[i], "an untouched element", row, head, dim, got[i], input[i]);
      } else {
        check(expect_near(got[i], want[i], f32 ? 0 : 0x1p-8, 0), "q", row, head, dim, got[i],
              want[i]);
      }
    }
    if (padding) continue;
    const auto s = static_cast<std::size_t>(sequences[static_cast<std::size_t>(row)]);
    const int64_t t = positions[static_cast<std::size_t>(row)];
    for (int64_t head = 0; head < p.num_kv_heads && coded; ++head) {
      const float* key = want + (p.num_heads + head) * p.head_dim;
      const float* value = input + (p.num_heads + p.num_kv_heads + head) * p.head_dim;
      expect_codes(kv.stored_codes(KvPart::kKeys, s, t, head), key, KvPart::kKeys, false);
      // v is the same number on both sides, and so are its codes.
      expect_codes(kv.stored_codes(KvPart::kValues, s, t, head), value, KvPart::kValues, true);
      if (!p.has_sinks || t >= kLiveSinks) continue;
      std::vector<float> rotated(key, key + p.head_dim);
      kv_rotate(rotated.data(), p.head_dim);
      const auto exact_key = kv.stored_sink(KvPart::kKeys, s, t, head);
      const auto exact_value = kv.stored_sink(KvPart::kValues, s, t, head);
      std::vector<float> rotated_value(value, value + p.head_dim);
      kv_rotate(rotated_value.data(), p.head_dim);
      for (int64_t dim = 0; dim < p.head_dim; ++dim) {
        const auto i = static_cast<std::size_t>(dim);
        check(expect_near(exact_key[i], rotated[i], 0x1p-8, 0), "an exact k", row, head, dim,
              exact_key[i], rotated[i]);
        const float want_value = float_from_bf16(bf16_from_float(rotated_value[i]));
        check(exact_value[i] == want_value, "an exact v", row, head, dim, exact_value[i],
              want_value);
      }
    }
    for (int64_t head = 0; head < p.num_kv_heads && !coded; ++head) {
      for (int64_t dim = 0; dim < p.head_dim; ++dim) {
        const int64_t k_at = (p.num_heads + head) * p.head_dim + dim;
        const int64_t v_at = k_at + p.num_kv_heads * p.head_dim;
        const float key = kv.stored_key(s, t, head, dim) * shape.key_scale;
        const float largest_key = 448 * shape.key_scale;
        const float want_key =
            e4m3 ? std::clamp(want[k_at], -largest_key, largest_key) : want[k_at];
        check(expect_near(key, want_key, kv_relative, e4m3 ? 0x1p-10 * shape.key_scale : 0), "k",
              row, head, dim, key, want_key);
        // v is only rounded, so that is exact.
        const float value = kv.stored_value(s, t, head, dim);
        std::byte bytes[4];
        write_kv_element(p.kv_element, bytes, 0, input[v_at] / shape.value_scale);
        const float want_value = read_kv_element(p.kv_element, bytes, 0);
        check(value == want_value, "v", row, head, dim, value, want_value);
      }
    }
  }
  // Sums of two products, or of the dims that do not turn, of queries good to f32_error before they
  // were rotated; offsets stay below 15.
  d_products.to_host(products.data(), static_cast<int64_t>(products.size() * 4));
  for (int64_t i = 0; i < num_products + 8; ++i) {
    const float got = products[static_cast<std::size_t>(i)];
    const int64_t row = i / p.head_dim / p.num_heads, head = i / p.head_dim % p.num_heads;
    if (!p.has_offset || i >= num_products || sequences[static_cast<std::size_t>(row)] < 0) {
      check(got == -7, "an untouched product", row, head, i % p.head_dim, got, -7);
      continue;
    }
    const float* q = queries.data() + row * stride + head * p.head_dim;
    const float* b = offset.data() + head / (p.num_heads / p.num_kv_heads) * p.head_dim;
    const int64_t j = i % p.head_dim % (p.head_dim / 2);
    const bool is_s = i % p.head_dim >= p.head_dim / 2;
    double want = 0, magnitude = 0;
    const auto add = [&](double x) { want += x, magnitude += std::fabs(x); };
    if (j < half) {
      add(double{q[is_s ? j + half : j]} * double{b[j]});
      add(double{q[is_s ? j : j + half]} * double{b[j + half]} * (is_s ? -1 : 1));
    } else if (j == half && !is_s) {
      for (int64_t dim = p.rotary_dim; dim < p.head_dim; ++dim)
        add(double{q[dim]} * double{b[dim]});
    }
    const double tolerance =
        static_cast<double>(p.head_dim) * (15 * f32_error + 0x1p-23 * magnitude);
    check(std::fabs(double{got} - want) <= tolerance, "a product", row, head, i % p.head_dim, got,
          static_cast<float>(want));
  }
  // A position that this step does not write keeps what it had.
  for (int64_t t = 0; t < kLiveSinks && p.has_sinks; ++t) {
    EXPECT_EQ(kv.stored_sink(KvPart::kKeys, 0, t, 0)[3], kv.key(0, t)[3]);
    EXPECT_EQ(kv.stored_sink(KvPart::kValues, 1, t, 0)[3], kv.value(1, t)[3]);
  }
  if (coded) {
    EXPECT_EQ(kv.stored_codes(KvPart::kKeys, 1, 63, 0)[3], kv.key(1, 63)[3]);
  } else {
    EXPECT_EQ(kv.stored_key(1, 63, 0, 3) * shape.key_scale, kv.key(1, 63)[3]);
  }
}

TEST_F(RopeAppendCuda, MatchesTheReferences) {
  for (const auto element : {CudaElement::kBF16, CudaElement::kF32}) {
    for (const auto kv : {KvCudaElement::kBF16, KvCudaElement::kE4M3, KvCudaElement::kF32,
                          KvCudaElement::kHiggs4}) {
      for (const bool norms : {false, true}) {
        for (const int64_t padding : {6, 8}) {  // rows 16-byte aligned or not
          expect_matches_reference({element, kv, 4, 2, 64, 64, norms, padding});
          expect_matches_reference({element, kv, 32, 8, 128, 128, norms, padding});
          expect_matches_reference({element, kv, 4, 1, 256, 256, norms, padding});
        }

        expect_matches_reference({element, kv, 3, 3, 96, 96, norms});

        expect_matches_reference({element, kv, 9, 3, 80, 32, norms});  // a part of each head
        expect_matches_reference({element, kv, 2, 1, 24, 6, norms});   // an odd half
        expect_matches_reference({element, kv, 2, 1, 8, 0, norms});
        if (kv_cuda_is_coded(kv)) continue;
        expect_matches_reference({element, kv, 4, 2, 12, 12, norms});
      }
    }
  }
}

TEST_F(RopeAppendCuda, KeysWithoutAnOffset) {
  for (const auto element : {CudaElement::kBF16, CudaElement::kF32}) {
    const auto check = [&](int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                           int64_t rotary_dim) {
      for (const bool norms : {false, true}) {
        expect_matches_reference({.element = element,
                                  .kv_element = KvCudaElement::kHiggs4,
                                  .num_heads = num_heads,
                                  .num_kv_heads = num_kv_heads,
                                  .head_dim = head_dim,
                                  .rotary_dim = rotary_dim,
                                  .norms = norms,
                                  .has_offset = true,
                                  .has_sinks = norms});
      }
    };
    check(14, 2, 64, 64);
    check(7, 1, 128, 128);
    check(4, 1, 256, 256);
    check(3, 3, 96, 96);
    check(9, 3, 80, 32);  // a part of each head
    check(2, 1, 24, 6);   // an odd half
    check(2, 1, 8, 0);
  }
}

TEST_F(RopeAppendCuda, ExactRowsOfTheFirstTokens) {
  for (const auto element : {CudaElement::kBF16, CudaElement::kF32}) {
    for (const int64_t head_dim : {8, 24, 64, 80, 128, 256}) {
      expect_matches_reference({.element = element,
                                .kv_element = KvCudaElement::kHiggs4,
                                .head_dim = head_dim,
                                .rotary_dim = head_dim,
                                .has_sinks = true});
    }
  }
}

TEST_F(RopeAppendCuda, TablesAtAnyPosition) {
  std::vector<float> inverse;
  for (int j = 0; j < 64; ++j) inverse.push_back(static_cast<float>(std::pow(500000.0, -j / 64.0)));
  const std::vector<int32_t> positions{0, 1, 31, 4097, 131071, 1048575, 2000000000, -1};
  const auto num_rows = static_cast<int64_t>(positions.size());
  const float factor = 1.25f;
  const DeviceBuffer d_inverse = upload_floats(inverse), d_positions = upload_ints(positions);
  DeviceBuffer d_cos(num_rows * 64 * 4), d_sin(num_rows * 64 * 4);
  rope_tables_cuda(d_inverse.as<float>(), factor, 64, d_positions.as<int32_t>(), num_rows,
                   d_cos.as<float>(), d_sin.as<float>(), nullptr);
  std::vector<float> cos(static_cast<std::size_t>(num_rows) * 64), sin(cos.size());
  d_cos.to_host(cos.data(), d_cos.size());
  d_sin.to_host(sin.data(), d_sin.size());
  for (std::size_t i = 0; i < cos.size(); ++i) {
    const int32_t position = positions[i / 64];
    const double angle = static_cast<float>(position) * inverse[i % 64];  // rounded to float
    const double known = position < 0 ? 0 : 1;
    // Two roundings to float of numbers up to the factor.
    EXPECT_NEAR(cos[i], known * std::cos(angle) * factor, 2 * 0x1p-24) << position << " " << i % 64;
    EXPECT_NEAR(sin[i], known * std::sin(angle) * factor, 2 * 0x1p-24) << position << " " << i % 64;
  }
}

}  // namespace
}  // namespace lathe
