#include "cache/cuda_kv_cache.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "base/error.h"
#include "kernels/attention/kv_codes.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"
#include "support/kv_codes_cuda_tokens.h"

namespace lathe {
namespace {

constexpr int64_t kHeads = 2, kDim = 64, kLayers = 2;

ModelConfig config() {
  ModelConfig config;
  config.num_layers = kLayers;
  config.num_heads = config.num_kv_heads = kHeads;
  config.head_dim = kDim;
  config.rotary_dim = 0;
  return config;
}

// Queries, keys and values of one token, in one layer: [3 * kHeads * kDim].
std::vector<float> row(int64_t layer, int64_t position, int salt) {
  return normal_values(3 * kHeads * kDim,
                       static_cast<uint64_t>((salt * 1000 + position) * 7 + layer));
}

// Appends rows to a sequence, as a model's step does.
bool append(CudaKvCache& cache, KvSequence& sequence, int64_t num_rows, int salt = 0) {
  if (!cache.reserve(sequence, num_rows)) return false;
  std::vector<int32_t> positions, of_sequence(static_cast<std::size_t>(num_rows), 0);
  for (int64_t t = 0; t < num_rows; ++t) {
    positions.push_back(static_cast<int32_t>(sequence.num_tokens + t));
  }
  const auto upload = [](const auto& v) {
    return DeviceBuffer::from_host(v.data(), static_cast<int64_t>(v.size() * 4));
  };
  const DeviceBuffer d_positions = upload(positions), d_sequence = upload(of_sequence),
                     d_table = upload(sequence.blocks),
                     d_sinks = upload(std::vector<int32_t>{sequence.sink_block});
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    std::vector<float> qkv;
    for (const int32_t position : positions) {
      const auto one = row(layer, position, salt);
      qkv.insert(qkv.end(), one.begin(), one.end());
    }
    DeviceBuffer d_qkv = upload(qkv);
    rope_append_cuda({.qkv = d_qkv.data(),
                      .element = CudaElement::kF32,
                      .stride = 3 * kHeads * kDim,
                      .num_heads = kHeads,
                      .num_kv_heads = kHeads,
                      .head_dim = kDim},
                     {.positions = d_positions.as<int32_t>(),
                      .row_sequence = d_sequence.as<int32_t>(),
                      .block_tables = d_table.as<int32_t>(),
                      .table_stride = static_cast<int64_t>(sequence.blocks.size()),
                      .sink_blocks = d_sinks.as<int32_t>(),
                      .num_rows = num_rows,
                      .num_sequences = 1},
                     cache.layer(layer), nullptr);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  sequence.num_tokens += num_rows;
  return true;
}

// Token t of a sequence is that of row(..., salts[t]): exactly, and as codes.
void expect_sinks(CudaKvCache& cache, const KvSequence& sequence, const std::vector<int>& salts) {
  const int64_t head_bytes = kv_cuda_head_bytes(KvCudaElement::kHiggs4, kDim);
  const auto head_at = [&](const void* plane, BlockId block, int64_t head) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(head_bytes));
    EXPECT_EQ(
        cudaMemcpy(bytes.data(),
                   static_cast<const std::byte*>(plane) + (block * kHeads + head) * head_bytes,
                   bytes.size(), cudaMemcpyDeviceToHost),
        cudaSuccess);
    return bytes;
  };
  std::vector<float> x(kDim), codes(kDim);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const KvCudaLayer planes = cache.layer(layer);
    for (const KvPart part : {KvPart::kKeys, KvPart::kValues}) {
      const void* plane = part == KvPart::kKeys ? planes.keys : planes.values;
      for (int64_t head = 0; head < kHeads; ++head) {
        const auto sinks = head_at(plane, sequence.sink_block, head);
        const auto block = head_at(plane, sequence.blocks[0], head);
        for (std::size_t t = 0; t < salts.size(); ++t) {
          const auto token = static_cast<int64_t>(t);
          const auto numbers = row(layer, token, salts[t]);
          const float* own =
              numbers.data() + ((part == KvPart::kKeys ? kHeads : 2 * kHeads) + head) * kDim;
          std::vector<float> expected(own, own + kDim);
          kv_rotate(expected.data(), kDim);
          for (float& number : expected) number = float_from_bf16(bf16_from_float(number));
          read_kv_sink(kDim, sinks.data(), token, x.data());
          EXPECT_TRUE(same_bits(x, expected)) << "layer " << layer << " token " << t;
          read_kv_codes(part, kDim, block.data(), token, codes.data());
          double off = 0, size = 0;
          for (std::size_t j = 0; j < codes.size(); ++j) {
            off += (codes[j] - x[j]) * (codes[j] - x[j]), size += x[j] * x[j];
          }
          EXPECT_LT(off, 0.05 * size) << "codes, layer " << layer << " token " << t;
        }
      }
    }
  }
}

// As PagedKvCache's test has it for a CPU.
TEST(CudaKvCache, SinksAreExactSharedAndCopiedBeforeTheyAreWritten) {
  LATHE_NEEDS_GPU();
  CudaKvCache cache(config(), KvFormat::kHiggs4, 320, 160, nullptr);
  EXPECT_TRUE(cache.keeps_sinks());
  ASSERT_EQ(cache.num_blocks(), 12);  // 10, and one for each of two sequences
  KvSequence a = cache.new_sequence();
  for (const int64_t num_rows : {1, 2, 40}) ASSERT_TRUE(append(cache, a, num_rows));
  EXPECT_EQ(cache.num_free_blocks(), 9);
  expect_sinks(cache, a, {0, 0, 0, 0});

  // Behind the sinks only the block that is written to is copied.
  KvSequence b = cache.new_sequence();
  cache.fork(a, 40, b);
  ASSERT_TRUE(append(cache, b, 1, /*salt=*/3));
  EXPECT_EQ(cache.num_free_blocks(), 8);
  EXPECT_EQ(b.sink_block, a.sink_block);
  expect_sinks(cache, b, {0, 0, 0, 0});
  cache.release(b);

  // Within them the sinks are, too.
  cache.fork(a, 2, b);
  ASSERT_TRUE(append(cache, b, 5, /*salt=*/3));
  EXPECT_EQ(cache.num_free_blocks(), 7);
  EXPECT_NE(b.sink_block, a.sink_block);
  expect_sinks(cache, b, {0, 0, 3, 3});
  expect_sinks(cache, a, {0, 0, 0, 0});

  // Tokens that were thrown away are written anew.
  cache.truncate(b, 3);
  ASSERT_TRUE(append(cache, b, 4, /*salt=*/5));
  expect_sinks(cache, b, {0, 0, 3, 5});
  cache.release(a);
  cache.release(b);
  EXPECT_EQ(cache.num_free_blocks(), cache.num_blocks());
}

TEST(CudaKvCache, OtherFormatsHaveNoSinks) {
  LATHE_NEEDS_GPU();
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFp8}) {
    CudaKvCache cache(config(), format, 320, 160, nullptr);
    EXPECT_FALSE(cache.keeps_sinks());
    EXPECT_EQ(cache.num_blocks(), 10);
  }
}

// Sizes are refused before anything is allocated, so without a GPU too.
TEST(CudaKvCache, RefusesWhatIsTooLarge) {
  const auto expect_refused = [](KvFormat format, int64_t num_tokens) {
    try {
      CudaKvCache(config(), format, num_tokens, 1, nullptr);
      ADD_FAILURE() << num_tokens;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory) << num_tokens;
    }
  };
  for (const KvFormat format : {KvFormat::kBF16, KvFormat::kHiggs4}) {
    expect_refused(format, std::numeric_limits<int64_t>::max());
    expect_refused(format, int64_t{1} << 36);
  }
  expect_refused(KvFormat::kHiggs4, int64_t{1} << 35);  // blocks enough for tokens, not for sinks
}

}  // namespace
}  // namespace lathe
