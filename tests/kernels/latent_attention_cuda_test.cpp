#include "kernels/attention/latent_attention_cuda.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "base/error.h"
#include "support/cuda_cases.h"
#include "support/latent_layer.h"

namespace lathe {
namespace {

std::size_t at(int64_t i) { return static_cast<std::size_t>(i); }

DeviceBuffer upload(const std::vector<float>& v) {
  return DeviceBuffer::from_host(v.data(), static_cast<int64_t>(v.size() * 4));
}

// Codes of whole blocks, block b at place order[b].
std::vector<std::byte> shuffled(const std::vector<std::byte>& codes, int64_t row_bytes,
                                const std::vector<int32_t>& order) {
  std::vector<std::byte> result(codes.size());
  const int64_t bytes = kBlockSize * row_bytes;
  for (std::size_t b = 0; b < order.size(); ++b) {
    std::memcpy(result.data() + order[b] * bytes, codes.data() + static_cast<int64_t>(b) * bytes,
                at(bytes));
  }
  return result;
}

// A context: coded blocks, then exact ones; the first tokens may be exact too.
struct Context {
  int64_t num_coded_blocks, num_tokens;
  bool has_sinks;
};

constexpr int64_t kBlocks = 40, kSinks = 4;

// Attention of one row, of codes (latent_attention_ref) and exact tokens, in double.
struct Reference {
  const LatentLayer& layer;
  const std::vector<float>&exact_keys, exact_values;  // [tokens, d], bf16

  void attend(const Context& context, const float* q, std::vector<float>& out) const {
    const int64_t e = layer.shape.head_dim, d = layer.shape.width();
    const int64_t group = layer.num_heads / layer.shape.num_heads;
    const int64_t first = context.has_sinks ? kSinks : 0;
    const int64_t end = context.num_coded_blocks * kBlockSize;
    std::vector<float> coded(at(layer.num_heads * e), 0.0f),
        log_sum(at(layer.num_heads), -INFINITY);
    if (end > 0) {
      LatentAttentionArgs args = layer.args(first, coded.data(), log_sum.data());
      args.q = q;
      args.num_tokens = end;
      latent_attention_ref(args);
    }
    for (int64_t head = 0; head < layer.num_heads; ++head) {
      std::vector<double> scores;
      std::vector<int64_t> tokens;
      for (int64_t t = 0; t < context.num_tokens; ++t) {
        if (t >= first && t < end) continue;
        double score = 0;
        for (int64_t j = 0; j < e; ++j) {
          score += double{q[head * e + j]} * double{exact_keys[at(t * d + head / group * e + j)]};
        }
        tokens.push_back(t);
        scores.push_back(score / std::sqrt(static_cast<double>(e)));
      }
      double largest = log_sum[at(head)];
      for (const double s : scores) largest = std::max(largest, s);
      double total = std::exp(log_sum[at(head)] - largest);
      std::vector<double> sum(at(e), 0.0);
      for (int64_t j = 0; j < e; ++j) sum[at(j)] = total * double{coded[at(head * e + j)]};
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        const double weight = std::exp(scores[i] - largest);
        total += weight;
        for (int64_t j = 0; j < e; ++j) {
          sum[at(j)] += weight * double{exact_values[at(tokens[i] * d + head / group * e + j)]};
        }
      }
      for (int64_t j = 0; j < e; ++j) {
        out[at(head * e + j)] = static_cast<float>(sum[at(j)] / total);
      }
    }
  }
};

// Rows of tokens as blocks of the cache, token block b at place first + b.
std::vector<uint16_t> plane_of(const std::vector<float>& rows, const RowShape& shape,
                               int64_t num_blocks, int64_t first) {
  const int64_t e = shape.head_dim, block = shape.width() * kBlockSize;
  std::vector<uint16_t> plane(at((first + num_blocks) * block), 0x7fc0);  // NaN, not to be read
  for (int64_t t = 0; t < num_blocks * kBlockSize; ++t) {
    for (int64_t i = 0; i < shape.width(); ++i) {
      const int offset =
          kv_cuda_offset(KvCudaElement::kBF16, int(e), int(t % kBlockSize), int(i % e));
      plane[at((first + t / kBlockSize) * block + i / e * e * kBlockSize + offset)] =
          bf16_from_float(rows[at(t * shape.width() + i)]);
    }
  }
  return plane;
}

void expect_the_reference(LatentLayer layer) {
  layer.values_from_keys = false;
  layer.num_tokens = kBlocks * kBlockSize;
  layer.rotary_dim = layer.shape.head_dim;
  layer.make();
  const int64_t d = layer.shape.width(), e = layer.shape.head_dim, rank = layer.rank;
  SCOPED_TRACE(testing::Message() << layer.num_heads << ":" << layer.shape.num_heads << " heads of "
                                  << e << ", rank " << rank);
  ASSERT_TRUE(can_attend_to_latents({.shape = layer.shape,
                                     .key_format = layer.key_format,
                                     .value_format = layer.value_format,
                                     .rank = rank,
                                     .latent_bits = 4,
                                     .rotary_dim = e,
                                     .num_heads = layer.num_heads}));
  // 0 tokens: padding. Odd numbers of coded blocks, exact ones behind them, all of it one or the
  // other; blocks enough for several parts of a context.
  const std::vector<Context> contexts = {
      {0, 1, false},    {0, 70, false},  {0, 0, false},          {1, 33, false},
      {1, 40, true},    {2, 65, true},   {5, 5 * 32 + 31, true}, {9, 9 * 32 + 1, false},
      {33, 1200, true}, {39, 1280, true}};
  const auto num_sequences = static_cast<int64_t>(contexts.size());
  // Coded block b of every context is at order[b]; its exact twin is block kBlocks + 3 + b.
  std::vector<int32_t> order, table, query_begin = {0}, positions;
  for (int64_t b = 0; b < kBlocks; ++b) order.push_back(int32_t((b * 7 + 3) % kBlocks));
  constexpr int64_t kFirstLive = kBlocks + 3, kSinkBlock = 0;
  for (const Context& context : contexts) {
    for (int64_t b = 0; b <= kBlocks; ++b) {  // one more than there are, and wild ones, unread
      table.push_back(b < context.num_coded_blocks          ? order[at(b)]
                      : b * kBlockSize < context.num_tokens ? int32_t(kFirstLive + b)
                                                            : 0x7ffffff0);
    }
    query_begin.push_back(query_begin.back() + (context.num_tokens > 0 ? 1 : 0));
    if (context.num_tokens > 0) positions.push_back(int32_t(context.num_tokens - 1));
  }
  const auto num_rows = static_cast<int64_t>(positions.size());
  // A context without sinks must find another first block than those with them: a copy of it.
  std::vector<int32_t> sinks(at(kBlocks + 1), -1);
  sinks[at(order[0])] = kSinkBlock;
  for (int64_t s = 0; s < num_sequences; ++s) {
    if (contexts[at(s)].num_coded_blocks > 0 && !contexts[at(s)].has_sinks) {
      table[at(s * (kBlocks + 1))] = int32_t(kBlocks);
    }
  }
  const auto with_copy = [&](const std::vector<std::byte>& codes, int64_t bytes) {
    std::vector<std::byte> all = shuffled(codes, bytes, order);
    all.insert(all.end(), codes.begin(), codes.begin() + kBlockSize * bytes);
    return all;
  };
  const int64_t width = layer.num_heads * e;
  const std::vector<float> q = from_bf16(to_bf16(normal_values(num_rows * width, 77)));
  const std::vector<float> keys = from_bf16(to_bf16(normal_values(layer.num_tokens * d, 78)));
  const std::vector<float> values = from_bf16(to_bf16(normal_values(layer.num_tokens * d, 79)));

  const HiggsGrid &grid = higgs_grid(2, 2), &latent_grid = higgs_grid(4, 1);
  const DeviceBuffer points = DeviceBuffer::from_host(grid.points, 32 * 4),
                     latent_points = DeviceBuffer::from_host(latent_grid.points, 16 * 4),
                     d_key_bias = upload(layer.key_bias), d_value_bias = upload(layer.value_bias),
                     d_cos = upload(layer.cos), d_sin = upload(layer.sin),
                     d_weight = upload(latent_value_weight(
                         layer.shape, rank, layer.value_latent_weight.data(), layer.step.data()));
  DeviceArray<uint16_t> d_image(
      latent_key_image(layer.shape, rank, layer.key_weight.data(), layer.step.data())),
      d_keys(plane_of(keys, layer.shape, kBlocks, kFirstLive)),
      d_values(plane_of(values, layer.shape, kBlocks, kFirstLive)), d_q(to_bf16(q));
  DeviceArray<int32_t> d_table(table), d_begin(query_begin), d_positions(positions), d_sinks(sinks);
  const int64_t latent_bytes = rank / 2, row = row_bytes(layer.key_format, layer.shape);
  DeviceArray<std::byte> latent_codes(with_copy(layer.latent_codes, latent_bytes)),
      key_codes(with_copy(layer.key_codes, row)), value_codes(with_copy(layer.value_codes, row));
  const auto codes = [](DeviceArray<std::byte>& data, int64_t bytes) {
    return KvCodesCuda{.data = data.data(), .block_stride = kBlockSize * bytes, .row_bytes = bytes};
  };
  const LatentKvCuda kv = {.rank = rank,
                           .key_image = d_image.data(),
                           .key_bias = d_key_bias.as<float>(),
                           .value_weight = d_weight.as<float>(),
                           .value_bias = d_value_bias.as<float>(),
                           .points = points.as<float>(),
                           .latent_points = latent_points.as<float>(),
                           .latents = codes(latent_codes, latent_bytes),
                           .keys = codes(key_codes, row),
                           .values = codes(value_codes, row),
                           .num_coded_blocks = kBlocks + 1,
                           .exact = {.keys = d_keys.data(), .values = d_values.data()},
                           .sink_blocks = d_sinks.data(),
                           .first_live = kFirstLive,
                           .num_sinks = kSinks,
                           .cos = d_cos.as<float>(),
                           .sin = d_sin.as<float>()};
  const CudaBatch batch = {.positions = d_positions.data(),
                           .query_begin = d_begin.data(),
                           .block_tables = d_table.data(),
                           .table_stride = kBlocks + 1,
                           .num_rows = num_rows,
                           .num_sequences = num_sequences,
                           .max_rows_per_sequence = 1,
                           .max_context = layer.num_tokens};
  LatentAttentionCudaArgs args = {.q = d_q.data(),
                                  .q_stride = width,
                                  .num_heads = layer.num_heads,
                                  .num_kv_heads = layer.shape.num_heads,
                                  .head_dim = e,
                                  .scale = 1 / std::sqrt(static_cast<float>(e))};
  DeviceArray<float> workspace(latent_attention_workspace_floats(args, batch, kv));
  DeviceArray<uint16_t> d_out(num_rows * width);
  args.workspace = workspace.data(), args.out = d_out.data();
  latent_attention_cuda(args, batch, kv, nullptr);
  workspace.host();  // guards
  const std::vector<float> got = from_bf16(d_out.host());

  // Keys of size 2 are a product of bf16 numbers, 2^-9 each, kept in bf16: scores of size 2 are off
  // by some 2^-8 of a few, weights as much; values of size 2 by 2^-8 of it.
  constexpr float kLimit = 0x1p-5f;
  const Reference reference{layer, keys, values};
  std::vector<float> expected(at(width));
  for (int64_t s = 0; s < num_sequences; ++s) {
    const Context& context = contexts[at(s)];
    if (context.num_tokens == 0) continue;
    SCOPED_TRACE(testing::Message() << context.num_coded_blocks << " coded blocks of "
                                    << context.num_tokens << " tokens");
    const int64_t own = query_begin[at(s)];
    reference.attend(context, q.data() + own * width, expected);
    const std::vector<float> result(got.begin() + own * width, got.begin() + (own + 1) * width);
    EXPECT_TRUE(all_close(result, expected, 0x1p-7f, kLimit));
    double error = 0, size = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      error += std::pow(double{result[i]} - double{expected[i]}, 2);
      size += std::pow(double{expected[i]}, 2);
    }
    EXPECT_LE(std::sqrt(error / size), 0x1p-6) << "on average";
  }
}

TEST(LatentAttentionCuda, IsTheReference) {
  LATHE_NEEDS_GPU();
  for (const int64_t rank : {32, 64, 96, 128}) {
    LatentLayer layer;
    layer.rank = rank;
    expect_the_reference(layer);
  }
  for (const int64_t num_heads : {3, 9, 21}) {  // rows of codes at odd addresses
    LatentLayer layer;
    layer.shape = {3, 64};
    layer.num_heads = num_heads;
    layer.rank = 96;
    expect_the_reference(layer);
  }
  for (const int64_t rank : {32, 64, 128, 256}) {
    LatentLayer layer;
    layer.shape = {2, 128};
    layer.num_heads = 12;
    layer.rank = rank;
    expect_the_reference(layer);
  }
  LatentLayer wide;  // as large models have it
  wide.shape = {8, 128};
  wide.num_heads = 32;
  wide.rank = 256;
  expect_the_reference(wide);
}

TEST(LatentAttentionCuda, TakesWhatItHasAKernelFor) {
  const LatentKvShape fine = {
      .shape = {8, 128}, .rank = 256, .latent_bits = 4, .rotary_dim = 128, .num_heads = 32};
  EXPECT_TRUE(can_attend_to_latents(fine));
  const auto with = [&](auto&& edit) {
    LatentKvShape shape = fine;
    edit(shape);
    return can_attend_to_latents(shape);
  };
  using Shape = LatentKvShape;
  EXPECT_FALSE(with([](Shape& s) { s.rank = 512; }));
  EXPECT_FALSE(with([](Shape& s) { s.rank = 0; }));
  EXPECT_FALSE(with([](Shape& s) { s.rank = 96; }));
  EXPECT_FALSE(with([](Shape& s) { s.shape.head_dim = 80; }));
  EXPECT_FALSE(with([](Shape& s) { s.rotary_dim = 64; }));
  EXPECT_FALSE(with([](Shape& s) { s.num_heads = 72; }));
  EXPECT_FALSE(with([](Shape& s) { s.latent_bits = 8; }));
  EXPECT_FALSE(with([](Shape& s) { s.with_sigma = true; }));
  EXPECT_FALSE(with([](Shape& s) { s.value_format.bits = 3; }));
  EXPECT_FALSE(with([](Shape& s) { s.key_format.scale = RowScale::kF16; }));
  EXPECT_FALSE(with([](Shape& s) { s.key_format.method = RowMethod::kUniform; }));
}

// A lane's quarter of the numbers is consecutive, and every number stands in one row.
TEST(LatentKeyImage, HasEveryNumberOnce) {
  constexpr int64_t kRank = 64, kDim = 64;
  const RowShape shape{1, kDim};
  std::vector<float> weight(at(kDim * kRank)), step(at(kRank), 1.0f);
  for (int64_t n = 0; n < kDim; ++n) {
    for (int64_t k = 0; k < kRank; ++k) weight[at(n * kRank + k)] = static_cast<float>(k + 2);
  }
  const std::vector<uint16_t> image = latent_key_image(shape, kRank, weight.data(), step.data());
  ASSERT_EQ(image.size(), at((kDim + kRank) * kDim));
  std::vector<int> seen(at(kRank), 0);
  for (int64_t row = 0; row < kDim + kRank; ++row) {
    for (int64_t n = 0; n < kDim; ++n) {
      const int64_t unit = n / 8 ^ row % 8;
      const float x = float_from_bf16(image[at(row * kDim + unit * 8 + n % 8)]);
      if (row < kDim) {
        EXPECT_EQ(std::abs(x), 1.0f);
        EXPECT_TRUE(n > 0 || x == 1);
      } else if (n == 5) {
        ++seen[at(static_cast<int64_t>(x) - 2)];
      }
    }
  }
  EXPECT_EQ(seen, std::vector<int>(at(kRank), 1));
  // Row 16 of the latent's: the second step of quarter 0, latents 4 and 5.
  const auto number = [&](int64_t row) {
    return float_from_bf16(image[at((kDim + row) * kDim + row % 8 * 8)]) - 2;
  };
  EXPECT_EQ(number(16), 4);
  EXPECT_EQ(number(2), kRank / 4);
  EXPECT_EQ(number(8), 2);
}

}  // namespace
}  // namespace lathe
