#include "kernels/attention/latent_attention_cuda.h"

#include <gtest/gtest.h>

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

struct Tables {
  explicit Tables(const HiggsGrid& grid)
      : points(DeviceBuffer::from_host(grid.points, grid.num_points * grid.dim * 4)) {}
  DeviceBuffer points;
};

void expect_the_reference(LatentLayer layer) {
  constexpr int64_t kBlocks = 20, kSinks = 4;
  layer.num_tokens = kBlocks * kBlockSize;
  layer.make();
  const int64_t d = layer.shape.width(), e = layer.shape.head_dim, rank = layer.rank;
  const int64_t rank_stride = (rank + 15) / 16 * 16;
  SCOPED_TRACE(testing::Message() << layer.num_heads << ":" << layer.shape.num_heads << " heads of "
                                  << e << ", rank " << rank << " of " << layer.latent_bits
                                  << " bits, sigma " << layer.with_sigma << ", values from keys "
                                  << layer.values_from_keys);
  std::vector<int32_t> order;
  for (int64_t b = 0; b < kBlocks; ++b) order.push_back(int32_t((b * 7 + 3) % kBlocks));
  const std::vector<int32_t> lengths = {0, 3, 5, 32, 77, 640};
  const auto num_sequences = static_cast<int64_t>(lengths.size());
  std::vector<int32_t> table;
  for (int64_t s = 0; s < num_sequences; ++s) {
    for (int64_t b = 0; b <= kBlocks; ++b) {  // one more than there are, and wild ones, unread
      table.push_back(b * kBlockSize < lengths[at(s)] ? order[at(b)] : 0x7ffffff0);
    }
  }
  // Every sequence has a query of its own.
  std::vector<float> q = normal_values(num_sequences * layer.num_heads * e, 77);
  q = from_bf16(to_bf16(q));

  std::vector<float> padded(at(d * rank_stride), 0.0f);
  for (int64_t j = 0; j < d; ++j) {
    std::copy_n(layer.key_weight.data() + j * rank, rank, padded.data() + j * rank_stride);
  }
  std::vector<float> absorbed(at(d * rank)), absorbed_bias(at(d)), out(at(layer.num_heads * e)),
      log_sum(at(layer.num_heads));
  LatentAttentionArgs args = layer.args(kSinks, out.data(), log_sum.data());
  absorb_latent_values(args, absorbed.data(), absorbed_bias.data());

  const HiggsGrid& key_grid = higgs_grid(layer.key_format.bits, layer.key_format.grid_dim);
  const HiggsGrid& value_grid = higgs_grid(layer.value_format.bits, layer.value_format.grid_dim);
  const Tables key_tables(key_grid), value_tables(value_grid), latent_tables(higgs_grid(4, 1));
  const DeviceBuffer d_sigma = layer.with_sigma ? upload(layer.sigma) : DeviceBuffer(),
                     d_step = upload(layer.step), d_bias = upload(layer.key_bias),
                     d_absorbed = upload(absorbed), d_absorbed_bias = upload(absorbed_bias),
                     d_cos = upload(layer.cos), d_sin = upload(layer.sin);
  DeviceArray<uint16_t> d_weight(to_bf16(padded)), d_value(to_bf16(layer.value_key_weight)),
      d_q(to_bf16(q));
  DeviceArray<int32_t> d_table(table), d_lengths(lengths);
  const auto format = [&](const RowFormat& own, const HiggsGrid& grid, const Tables& tables) {
    return KvRowsCudaFormat{.scale = own.scale,
                            .hadamard = own.hadamard,
                            .num_heads = static_cast<int>(layer.shape.num_heads),
                            .head_dim = static_cast<int>(e),
                            .grid_dim = static_cast<int>(grid.dim),
                            .num_points = static_cast<int>(grid.num_points),
                            .code_bits = grid.code_bits,
                            .points = tables.points.as<float>(),
                            .sigma = layer.with_sigma ? d_sigma.as<float>() : nullptr};
  };
  const int64_t latent_bytes = rank * layer.latent_bits / 8;
  const int64_t key_bytes = row_bytes(layer.key_format, layer.shape);
  const int64_t value_bytes = row_bytes(layer.value_format, layer.shape);
  DeviceArray<std::byte> d_latents(shuffled(layer.latent_codes, latent_bytes, order)),
      d_keys(shuffled(layer.key_codes, key_bytes, order)),
      d_values(shuffled(layer.value_codes, value_bytes, order));
  const auto codes = [](DeviceArray<std::byte>& data, int64_t bytes) {
    return KvCodesCuda{.data = data.data(), .block_stride = kBlockSize * bytes, .row_bytes = bytes};
  };
  LatentAttentionCudaArgs cuda = {
      .key = format(layer.key_format, key_grid, key_tables),
      .value = format(layer.value_format, value_grid, value_tables),
      .latent = {.rank = static_cast<int>(rank),
                 .bits = layer.latent_bits,
                 .points = latent_tables.points.as<float>(),
                 .step = d_step.as<float>()},
      .rank_stride = rank_stride,
      .key_weight = d_weight.data(),
      .value_key_weight = layer.values_from_keys ? d_value.data() : nullptr,
      .absorbed_latent = d_absorbed.as<float>(),
      .absorbed_bias = d_absorbed_bias.as<float>(),
      .latent_codes = codes(d_latents, latent_bytes),
      .key_codes = codes(d_keys, key_bytes),
      .value_codes = codes(d_values, value_bytes),
      .blocks = d_table.data(),
      .table_stride = kBlocks + 1,
      .num_tokens = d_lengths.data(),
      .num_sequences = num_sequences,
      .max_tokens = kBlocks * kBlockSize,
      .num_sinks = kSinks,
      .cos = d_cos.as<float>(),
      .sin = d_sin.as<float>(),
      .rotary_dim = layer.rotary_dim,
      .q = d_q.data(),
      .q_stride = layer.num_heads * e,
      .num_heads = layer.num_heads,
      .scale = args.scale};
  cuda.key.bias = d_bias.as<float>();
  DeviceArray<float> workspace(latent_attention_workspace_floats(cuda));
  DeviceArray<float> d_out(num_sequences * layer.num_heads * e);
  DeviceArray<float> d_log_sum(num_sequences * layer.num_heads);
  cuda.workspace = workspace.data(), cuda.out = d_out.data(), cuda.log_sum = d_log_sum.data();
  latent_attention_cuda(cuda, nullptr);
  workspace.host();  // guards
  const std::vector<float> got = d_out.host(), got_log_sum = d_log_sum.host();
  // With 8 bits z is exact in bf16, and only sums differ: some hundred terms in fp32, some units
  // large. With 4 bits z is rounded to bf16, 2^-9, and so is what is made of it: keys of size 1
  // give scores off by less than 2^-8, values of size 2 likewise.
  const double limit = layer.latent_bits == 8 ? 2e-4 : 0x1p-6;
  for (int64_t s = 0; s < num_sequences; ++s) {
    SCOPED_TRACE(testing::Message() << lengths[at(s)] << " tokens");
    const auto own = got.begin() + s * layer.num_heads * e;
    const std::vector<float> of_sequence(own, own + layer.num_heads * e);
    if (lengths[at(s)] <= kSinks) {
      EXPECT_EQ(of_sequence, std::vector<float>(of_sequence.size(), 0.0f));
      EXPECT_EQ(got_log_sum[at(s * layer.num_heads)], -INFINITY);
      continue;
    }
    args.num_tokens = lengths[at(s)];
    args.q = q.data() + s * layer.num_heads * e;
    latent_attention_ref(args);
    EXPECT_TRUE(all_close(of_sequence, out, 0, static_cast<float>(limit)));
    const auto own_sums = got_log_sum.begin() + s * layer.num_heads;
    EXPECT_TRUE(all_close(std::vector<float>(own_sums, own_sums + layer.num_heads), log_sum, 0,
                          static_cast<float>(limit)));
  }
}

TEST(LatentAttentionCuda, IsTheReference) {
  LATHE_NEEDS_GPU();
  for (const int latent_bits : {8, 4}) {
    for (const bool values_from_keys : {true, false}) {
      LatentLayer layer;
      layer.latent_bits = latent_bits;
      layer.values_from_keys = values_from_keys;
      expect_the_reference(layer);
      layer.with_sigma = true;
      layer.value_format.bits = 3;
      expect_the_reference(layer);
    }
    for (const int64_t num_heads : {2, 6, 16, 32}) {
      LatentLayer layer;
      layer.latent_bits = latent_bits;
      layer.num_heads = num_heads;
      layer.rank = num_heads == 6 ? 6 : 48;
      expect_the_reference(layer);
    }
    LatentLayer wide;  // 4 x 128, as large models have it
    wide.latent_bits = latent_bits;
    wide.shape = {4, 128};
    wide.num_heads = 16;
    wide.rank = 128;
    wide.rotary_dim = 128;
    wide.key_format.bits = 4;
    expect_the_reference(wide);
    LatentLayer odd;  // pieces of 64 and 16, half of it turned
    odd.latent_bits = latent_bits;
    odd.shape = {1, 80};
    odd.num_heads = 5;
    odd.rotary_dim = 40;
    odd.key_format.scale = RowScale::kF16;
    odd.value_format.grid_dim = 1;
    expect_the_reference(odd);
  }
}

TEST(LatentAttentionCuda, RefusesWhatCannotBe) {
  LATHE_NEEDS_GPU();
  const auto code = [](auto&& edit) {
    LatentAttentionCudaArgs args = {.latent = {.rank = 16},
                                    .rank_stride = 16,
                                    .num_sequences = 1,
                                    .max_tokens = 32,
                                    .num_heads = 4};
    args.key.num_heads = args.value.num_heads = 2;
    args.key.head_dim = args.value.head_dim = 64;
    edit(args);
    try {
      latent_attention_workspace_floats(args);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  using Args = LatentAttentionCudaArgs;
  EXPECT_EQ(code([](Args&) {}), ErrorCode::kInternal) << "fine as it is";
  EXPECT_EQ(code([](Args& a) { a.num_heads = 3; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a) { a.num_heads = 34; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a) { a.rank_stride = 24; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a) { a.latent.bits = 2; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a) { a.value.head_dim = 80; }), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace lathe
