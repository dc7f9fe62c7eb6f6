// The coded cache on a GPU beside the one on the CPU, fed with the same made-up rows.
#include "cache/cuda_coded_kv_cache.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "cache/coded_kv_cache.h"
#include "cache/predictive_codec.h"
#include "formats/kv_codec_examples.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/rope/rope.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

constexpr int64_t kLayers = 5, kMaxTokens = 1024, kHeads = 4;
constexpr RowShape kShape{2, 64};
constexpr int64_t kWidth = 128, kHalf = 32;
const char* const kVariants[] = {"dense",  "low-rank",      "block-diagonal", "star",
                                 "latent", "latent-values", "mean",           "sigma"};

using Rows = std::vector<float>;
using Content = std::vector<Rows>;  // [layer * 2 + is value] of [tokens, width]

ModelConfig config() {
  ModelConfig config;
  config.num_layers = kLayers;
  config.num_heads = kHeads;
  config.num_kv_heads = kShape.num_heads;
  config.head_dim = kShape.head_dim;
  config.rotary_dim = kShape.head_dim;
  return config;
}

// Before RoPE, [kMaxTokens, width], one plane. bf16: rounded, as kernels of a bf16 model make them.
Rows made_up(int64_t layer, bool is_value, bool is_bf16) {
  Rows x = normal_values(kMaxTokens * kWidth, uint64_t(10 + layer * 2 + (is_value ? 1 : 0)));
  if (is_bf16) {
    for (float& v : x) v = float_from_bf16(bf16_from_float(v));
  }
  return x;
}

// Relative root of the mean squared difference of tokens [begin, end).
double difference(const Rows& a, const Rows& b, int64_t begin, int64_t end) {
  double off = 0, size = 0;
  for (auto i = std::size_t(begin * kWidth); i < std::size_t(end * kWidth); ++i) {
    off += std::pow(double{a[i]} - double{b[i]}, 2), size += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(off / size);
}

class CudaCodedKvCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    LATHE_NEEDS_GPU();
    context_ = std::make_unique<CudaContext>(0);
    make_ropes(10000);
  }

  // base 0: nothing is turned, and both caches encode the same keys, bit for bit.
  void make_ropes(double base) {
    std::vector<float> inverse;
    for (int64_t j = 0; j < kHalf; ++j) {
      inverse.push_back(base == 0 ? 0.0f : float(std::pow(base, -double(j) / kHalf)));
    }
    inverse_ = DeviceBuffer::from_host(inverse.data(), kHalf * 4);
    cos_.clear(), sin_.clear();
    for (int64_t p = 0; p < kMaxTokens; ++p) {
      for (const float f : inverse) {
        const double angle = float(p) * f;  // rounded to float
        cos_.push_back(float(std::cos(angle))), sin_.push_back(float(std::sin(angle)));
      }
    }
    d_cos_ = DeviceBuffer::from_host(cos_.data(), int64_t(cos_.size() * 4));
    d_sin_ = DeviceBuffer::from_host(sin_.data(), int64_t(sin_.size() * 4));
  }
  static KvCodecFile codec_file(const std::string& variant, int bits, int64_t window = 64) {
    KvCodecFile file = random_codec(variant, kLayers, kShape, bits);
    file.window = window;
    file.chunk_tokens = 64;
    return file;
  }
  static CodedKvCacheOptions options(KvFormat format) {
    return {.live_format = format,
            .live_tokens = 2048,
            .coded_tokens = 1536,
            .max_sequence_tokens = kMaxTokens};
  }
  std::unique_ptr<CudaCodedKvCache> cuda_cache(const KvCodecFile& file, KvFormat format) {
    const std::vector<KvRopeCuda> ropes(kLayers, KvRopeCuda{inverse_.as<float>(), 1, 2 * kHalf});
    return std::make_unique<CudaCodedKvCache>(config(), file, ropes, options(format), 1, *context_);
  }
  std::unique_ptr<CodedKvCache> host_cache(const KvCodec& codec, KvFormat format) {
    const std::vector<KvRope> ropes(kLayers, KvRope{cos_.data(), sin_.data(), kMaxTokens, 64});
    return std::make_unique<CodedKvCache>(config(), codec, ropes, options(format));
  }
  // Keys of a layer behind RoPE.
  Rows turned(int64_t layer, bool is_bf16) {
    Rows x = made_up(layer, false, is_bf16);
    std::vector<int64_t> positions;
    for (int64_t t = 0; t < kMaxTokens; ++t) positions.push_back(t);
    rope({.x = x.data(),
          .y = x.data(),
          .positions = positions.data(),
          .cos = cos_.data(),
          .sin = sin_.data(),
          .num_positions = kMaxTokens,
          .num_rows = kMaxTokens,
          .num_heads = kShape.num_heads,
          .head_dim = kShape.head_dim,
          .rotary_dim = kShape.head_dim},
         owned_.exec);
    return x;
  }

  // A step of the CPU's cache. Returns what attention sees when it is done.
  Content step(CodedKvCache& cache, KvSequence& sequence, int64_t num_rows) {
    EXPECT_TRUE(cache.reserve(sequence, num_rows));
    const KvRows run{&sequence, 0, num_rows};
    const int64_t begin = sequence.num_tokens, end = begin + num_rows;
    const bool is_bf16 = cache.element() == KvElement::kBF16;
    const LiveBlockShape shape{cache.element(), kLayers, kShape.num_heads, kShape.head_dim};
    cache.begin_step({&run, 1}, owned_.exec);
    Content content;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      cache.append(layer, made_up(layer, false, is_bf16).data() + begin * kWidth,
                   turned(layer, is_bf16).data() + begin * kWidth,
                   made_up(layer, true, is_bf16).data() + begin * kWidth, kWidth, owned_.exec);
      const auto views = cache.views(layer, 0);
      Rows keys(std::size_t(end * kWidth)), values(keys.size());
      for (int64_t t = 0; t < end; ++t) {
        const KvBlockView& view = views[std::size_t(t / kBlockSize)];
        load_key(shape, static_cast<const std::byte*>(view.keys), t % kBlockSize,
                 keys.data() + t * kWidth);
        load_value(shape, static_cast<const std::byte*>(view.values), t % kBlockSize,
                   values.data() + t * kWidth);
      }
      content.push_back(keys), content.push_back(values);
    }
    cache.commit();
    return content;
  }

  struct Run {
    KvSequence* sequence;
    int64_t num_rows;
  };
  struct Seen {
    Content content;  // of the first tokens up to the last row
    Content outputs;  // [layer] of [rows, heads * head_dim]: attention of the rows
  };
  // A step of the GPU's cache, as the decoder takes it: tables, rebuilding, rope_append, attention.
  std::vector<Seen> step(CudaCodedKvCache& cache, const std::vector<Run>& runs) {
    const bool is_bf16 = cache.element() == KvElement::kBF16;
    const CudaElement element = is_bf16 ? CudaElement::kBF16 : CudaElement::kF32;
    std::vector<KvRows> rows;
    std::vector<int32_t> positions, row_sequence, query_begin{0};
    int64_t max_context = 0, max_rows = 0;
    for (std::size_t s = 0; s < runs.size(); ++s) {
      KvSequence& sequence = *runs[s].sequence;
      EXPECT_TRUE(cache.reserve(sequence, runs[s].num_rows));
      rows.push_back({&sequence, int64_t(positions.size()), runs[s].num_rows});
      for (int64_t r = 0; r < runs[s].num_rows; ++r) {
        positions.push_back(int32_t(sequence.num_tokens + r));
        row_sequence.push_back(int32_t(s));
      }
      query_begin.push_back(int32_t(positions.size()));
      max_context = std::max(max_context, sequence.num_tokens + runs[s].num_rows);
      max_rows = std::max(max_rows, runs[s].num_rows);
    }
    cache.begin_step(rows, owned_.exec);
    const int64_t stride = blocks_for(max_context) + 1;
    std::vector<int32_t> table(runs.size() * std::size_t(stride), 0x7fffff00);
    for (std::size_t s = 0; s < runs.size(); ++s) {
      const auto& blocks = runs[s].sequence->blocks;
      for (std::size_t b = 0; b < blocks.size(); ++b) {
        table[s * std::size_t(stride) + b] = cache.table_entry(blocks[b]);
      }
    }
    const auto upload = [](const std::vector<int32_t>& v) {
      return DeviceBuffer::from_host(v.data(), int64_t(v.size() * 4));
    };
    const DeviceBuffer d_positions = upload(positions), d_sequence = upload(row_sequence),
                       d_begin = upload(query_begin), d_table = upload(table);
    const auto num_rows = int64_t(positions.size());
    CudaBatch batch{.positions = d_positions.as<int32_t>(),
                    .row_sequence = d_sequence.as<int32_t>(),
                    .query_begin = d_begin.as<int32_t>(),
                    .block_tables = d_table.as<int32_t>(),
                    .table_stride = stride,
                    .num_rows = num_rows,
                    .num_sequences = int64_t(runs.size()),
                    .max_rows_per_sequence = max_rows,
                    .max_context = max_context};
    DeviceBuffer memory(4 * cache.table_ints(int64_t(table.size())));
    const KvCudaTables tables = cache.start_layers(batch, memory.as<int32_t>());
    const int64_t slots = kHeads + 2 * kShape.num_heads;
    std::vector<float> cos, sin;
    for (const int32_t p : positions) {
      cos.insert(cos.end(), cos_.begin() + p * kHalf, cos_.begin() + (p + 1) * kHalf);
      sin.insert(sin.end(), sin_.begin() + p * kHalf, sin_.begin() + (p + 1) * kHalf);
    }
    const DeviceBuffer d_cos = DeviceBuffer::from_host(cos.data(), int64_t(cos.size() * 4)),
                       d_sin = DeviceBuffer::from_host(sin.data(), int64_t(sin.size() * 4));
    std::vector<Seen> seen(runs.size());
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const Rows keys = made_up(layer, false, is_bf16), values = made_up(layer, true, is_bf16);
      std::vector<float> qkv;
      for (const int32_t p : positions) {
        qkv.insert(qkv.end(), std::size_t(kHeads * kShape.head_dim), 0.25f);
        qkv.insert(qkv.end(), keys.begin() + p * kWidth, keys.begin() + (p + 1) * kWidth);
        qkv.insert(qkv.end(), values.begin() + p * kWidth, values.begin() + (p + 1) * kWidth);
      }
      const std::vector<uint16_t> halves = to_bf16(qkv);
      DeviceBuffer d_qkv =
          DeviceBuffer::from_host(is_bf16 ? static_cast<const void*>(halves.data()) : qkv.data(),
                                  int64_t(qkv.size()) * (is_bf16 ? 2 : 4));
      cache.prepare_layer(layer);
      batch.block_tables = tables.of(layer);
      rope_append_cuda({.qkv = d_qkv.data(),
                        .element = element,
                        .stride = slots * kShape.head_dim,
                        .cos = d_cos.as<float>(),
                        .sin = d_sin.as<float>(),
                        .num_heads = kHeads,
                        .num_kv_heads = kShape.num_heads,
                        .head_dim = kShape.head_dim,
                        .rotary_dim = kShape.head_dim},
                       batch, cache.layer(layer), context_->stream());
      AttentionCudaArgs args{.q = d_qkv.data(),
                             .element = element,
                             .q_stride = slots * kShape.head_dim,
                             .num_heads = kHeads,
                             .num_kv_heads = kShape.num_heads,
                             .head_dim = kShape.head_dim,
                             .scale = 0.125f};
      const int64_t out_size = kHeads * kShape.head_dim, bytes = is_bf16 ? 2 : 4;
      DeviceBuffer out(num_rows * out_size * bytes),
          workspace(attention_cuda_workspace_bytes(args, batch, cache.layer(layer).element));
      EXPECT_EQ(
          cudaMemsetAsync(workspace.data(), 0, std::size_t(workspace.size()), context_->stream()),
          cudaSuccess);
      args.out = out.data(), args.workspace = workspace.data();
      attention_cuda(args, batch, cache.layer(layer), context_->stream());
      context_->synchronize();
      std::vector<std::byte> raw(std::size_t(out.size()));
      out.to_host(raw.data(), out.size());
      for (std::size_t s = 0; s < runs.size(); ++s) {
        const int64_t tokens = runs[s].sequence->num_tokens + runs[s].num_rows;
        for (const bool is_value : {false, true}) {
          DeviceBuffer x(tokens * kWidth * 4);
          load_live_rows_cuda({.layer = cache.layer(layer),
                               .blocks = tables.of(layer) + int64_t(s) * stride,
                               .is_value = is_value},
                              kShape.num_heads, kShape.head_dim, tokens, x.as<float>(),
                              context_->stream());
          context_->synchronize();
          Rows host(std::size_t(tokens * kWidth));
          x.to_host(host.data(), x.size());
          seen[s].content.push_back(host);
        }
        Rows own;
        for (int64_t i = rows[s].row_begin * out_size;
             i < (rows[s].row_begin + runs[s].num_rows) * out_size; ++i) {
          uint16_t half;
          float number;
          std::memcpy(&half, raw.data() + i * bytes, 2);
          if (!is_bf16) std::memcpy(&number, raw.data() + i * bytes, 4);
          own.push_back(is_bf16 ? float_from_bf16(half) : number);
        }
        seen[s].outputs.push_back(own);
      }
    }
    cache.commit();
    return seen;
  }
  Seen step(CudaCodedKvCache& cache, KvSequence& sequence, int64_t num_rows) {
    return step(cache, {{&sequence, num_rows}}).front();
  }

  std::unique_ptr<CudaContext> context_;
  DeviceBuffer inverse_, d_cos_, d_sin_;
  std::vector<float> cos_, sin_;
  OwnedExec owned_{2};
};

// Where nothing is multiplied and nothing turned, a rebuilt number is the CPU's.
TEST_F(CudaCodedKvCacheTest, WithoutProductsTheNumbersAreTheCpus) {
  make_ropes(0);
  for (const char* variant : {"none", "mean", "sigma"}) {
    for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16}) {
      for (const int64_t num_sinks : {0, 4, 37}) {
        SCOPED_TRACE(testing::Message()
                     << variant << " " << kv_format_name(format) << ", " << num_sinks << " sinks");
        KvCodecFile file = codec_file(variant, 2);
        file.num_sinks = num_sinks;
        const PredictiveCodec codec(file);
        const auto host = host_cache(codec, format);
        const auto cuda = cuda_cache(file, format);
        EXPECT_GT(cuda->memory_bytes(), 0);
        KvSequence on_host = host->new_sequence(), sequence = cuda->new_sequence();
        for (const int64_t rows : {300, 1, 1, 70, 40}) {
          const Content expected = step(*host, on_host, rows);
          const Content got = step(*cuda, sequence, rows).content;
          EXPECT_EQ(cuda->num_coded_tokens(sequence), host->num_coded_tokens(on_host));
          for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], expected[i]) << i;
        }
        EXPECT_GT(cuda->num_coded_tokens(sequence), 200);
      }
    }
  }
}

// Every variant: as near to the exact rows as the CPU's codes are. Predictions differ in their last
// bits, so here and there a neighbouring point is chosen and the layers above are predicted
// otherwise: other codes, as near. Another predictor, or rows other than those encoded from, would
// leave another residual. Sinks and window are exact.
TEST_F(CudaCodedKvCacheTest, RebuildsWhatTheCpuDoes) {
  for (const char* variant : kVariants) {
    for (const int bits : {2, 3, 4}) {
      for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16}) {
        SCOPED_TRACE(testing::Message() << variant << bits << " " << kv_format_name(format));
        const bool is_bf16 = format == KvFormat::kBF16;
        const KvCodecFile file = codec_file(variant, bits);
        const PredictiveCodec codec(file);
        const auto host = host_cache(codec, format);
        const auto cuda = cuda_cache(file, format);
        KvSequence on_host = host->new_sequence(), sequence = cuda->new_sequence();
        step(*host, on_host, 400), step(*cuda, sequence, 400);
        const Content of_host = step(*host, on_host, 1);
        const Content got = step(*cuda, sequence, 1).content;
        const int64_t end = 4 + cuda->num_coded_tokens(sequence);
        ASSERT_EQ(end, 320);
        for (int64_t layer = 0; layer < kLayers; ++layer) {
          for (const bool is_value : {false, true}) {
            const auto i = std::size_t(layer * 2 + (is_value ? 1 : 0));
            Rows exact = is_value ? made_up(layer, true, is_bf16) : turned(layer, is_bf16);
            if (is_bf16) exact = from_bf16(to_bf16(exact));
            // 40,448 numbers: their error is a mean of 20,224 codes' errors, each of which varies
            // by about itself, 0.7 % on either side; bf16 keys are turned back from rounded ones.
            const double wanted = difference(of_host[i], exact, 4, end);
            EXPECT_NEAR(difference(got[i], exact, 4, end), wanted, 0.03 * wanted) << i;
            // One rounding of a bf16 number: the CPU's products and the GPU's may be fused.
            const double slack = is_bf16 ? 0x1p-8 : 0x1p-21;
            EXPECT_LE(difference(got[i], exact, 0, 4), slack) << "sinks " << i;
            EXPECT_LE(difference(got[i], exact, end, 401), slack) << "window " << i;
          }
        }
      }
    }
  }
}

// Attention over rebuilt and live blocks, of prompts and of single rows, is that over the numbers
// in them.
TEST_F(CudaCodedKvCacheTest, AttentionReadsRebuiltAndLiveBlocks) {
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16}) {
    SCOPED_TRACE(kv_format_name(format));
    const auto cache = cuda_cache(codec_file("dense", 2), format);
    KvSequence first = cache->new_sequence(), second = cache->new_sequence();
    step(*cache, {{&first, 260}, {&second, 150}});
    const std::vector<Seen> seen = step(*cache, {{&first, 1}, {&second, 40}});
    EXPECT_EQ(cache->num_coded_tokens(first), 192 - 4);
    EXPECT_EQ(cache->num_coded_tokens(second), 64 - 4);
    const int64_t lengths[] = {261, 190}, counts[] = {1, 40};
    for (std::size_t s = 0; s < 2; ++s) {
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        const Rows& keys = seen[s].content[std::size_t(layer * 2)];
        const Rows& values = seen[s].content[std::size_t(layer * 2 + 1)];
        Rows wanted;
        for (int64_t position = lengths[s] - counts[s]; position < lengths[s]; ++position) {
          Rows q(std::size_t(kHeads * kShape.head_dim), 0.25f);
          rope({.x = q.data(),
                .y = q.data(),
                .positions = &position,
                .cos = cos_.data(),
                .sin = sin_.data(),
                .num_positions = kMaxTokens,
                .num_rows = 1,
                .num_heads = kHeads,
                .head_dim = kShape.head_dim,
                .rotary_dim = kShape.head_dim},
               owned_.exec);
          if (format == KvFormat::kBF16) q = from_bf16(to_bf16(q));
          for (int64_t head = 0; head < kHeads; ++head) {
            const int64_t column = head / (kHeads / kShape.num_heads) * kShape.head_dim;
            std::vector<double> weights, sum(std::size_t(kShape.head_dim));
            double total = 0;
            for (int64_t t = 0; t <= position; ++t) {
              double score = 0;
              for (int64_t j = 0; j < kShape.head_dim; ++j) {
                score += double{q[std::size_t(head * kShape.head_dim + j)]} *
                         double{keys[std::size_t(t * kWidth + column + j)]};
              }
              weights.push_back(std::exp(score * 0.125));
              total += weights.back();
            }
            for (int64_t t = 0; t <= position; ++t) {
              for (int64_t j = 0; j < kShape.head_dim; ++j) {
                sum[std::size_t(j)] += weights[std::size_t(t)] / total *
                                       double{values[std::size_t(t * kWidth + column + j)]};
              }
            }
            for (const double x : sum) wanted.push_back(float(x));
          }
        }
        // Sums of numbers of size 1 with weights that add up to 1; bf16: weights and results are
        // rounded to 2^-9, and q by a turn of its own.
        const double limit = format == KvFormat::kF32 ? 1e-4 : 0x1p-6;
        EXPECT_TRUE(all_close(seen[s].outputs[std::size_t(layer)], wanted, 0, float(limit)))
            << "sequence " << s << " layer " << layer;
      }
    }
  }
}

// Two sequences with the same beginning read it once, and both right.
TEST_F(CudaCodedKvCacheTest, ForksShareRebuiltBlocks) {
  const auto cache = cuda_cache(codec_file("dense", 2), KvFormat::kF32);
  KvSequence first = cache->new_sequence(), second = cache->new_sequence();
  step(*cache, first, 300);
  step(*cache, first, 1);
  ASSERT_EQ(cache->num_coded_tokens(first), 192 - 4);
  cache->fork(first, 256, second);
  const std::vector<Seen> seen = step(*cache, {{&first, 1}, {&second, 2}});
  EXPECT_EQ(cache->num_rebuilt_blocks(), 6) << "192 tokens, once";
  const Content alone = step(*cache, second, 1).content;
  for (std::size_t i = 0; i < alone.size(); ++i) {
    const auto shared = std::size_t(256 * kWidth);
    EXPECT_EQ(Rows(seen[0].content[i].begin(), seen[0].content[i].begin() + int64_t(shared)),
              Rows(seen[1].content[i].begin(), seen[1].content[i].begin() + int64_t(shared)));
    // Other numbers of rows may take other products: the last bits.
    EXPECT_LE(difference(alone[i], seen[1].content[i], 0, 256), 0x1p-10) << i;
  }
  cache->release(first), cache->release(second);
  EXPECT_EQ(cache->num_free_blocks(), cache->num_blocks());
  EXPECT_EQ(cache->num_free_coded_blocks(), 1536 / kBlockSize);
}

// Blocks that become live again, all of them or the one that is written into, hold what was
// rebuilt.
TEST_F(CudaCodedKvCacheTest, WokenBlocksAreTheRebuiltOnes) {
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16}) {
    for (const char* variant : {"dense", "latent"}) {
      SCOPED_TRACE(testing::Message() << variant << " " << kv_format_name(format));
      const auto cache = cuda_cache(codec_file(variant, 3), format);
      KvSequence sequence = cache->new_sequence();
      step(*cache, sequence, 300);
      const Content before = step(*cache, sequence, 1).content;
      // TF32 or bf16 inputs, in another order of sums: a bf16 rounding may fall the other way.
      const double slack = format == KvFormat::kF32 ? 0x1p-10 : 0x1p-8;
      const auto expect_same = [&](const Content& after, int64_t end) {
        for (std::size_t i = 0; i < after.size(); ++i) {
          EXPECT_LE(difference(after[i], before[i], 0, end), slack) << i;
          EXPECT_EQ(difference(after[i], before[i], 0, 4), 0) << "sinks " << i;
        }
      };
      KvSequence fork = cache->new_sequence();
      cache->fork(sequence, 150, fork);
      ASSERT_EQ(cache->num_coded_tokens(fork), 150 - 4);
      const Content of_fork = step(*cache, fork, 3).content;  // into its last block, now live
      EXPECT_EQ(cache->num_coded_tokens(fork), 128 - 4);
      expect_same(of_fork, 150);
      ASSERT_TRUE(cache->wake(sequence, owned_.exec));
      EXPECT_EQ(cache->num_coded_tokens(sequence), 0);
      ASSERT_TRUE(cache->park(sequence, owned_.exec));  // its codes were kept
      const Content again = step(*cache, sequence, 1).content;
      expect_same(again, 192);
    }
  }
}

constexpr int64_t kBlocks = 3;

// The CPU's codes of some blocks, rebuilt here.
TEST_F(CudaCodedKvCacheTest, CodesOfTheCpuMeanTheSame) {
  class Exact final : public KvExactRows {
   public:
    void load(int64_t layer, KvLayerRows rows) const override {
      for (const bool is_value : {false, true}) {
        const Rows x = made_up(layer, is_value, false);
        std::copy_n(x.begin(), kBlocks * kBlockSize * kWidth, is_value ? rows.values : rows.keys);
      }
    }
  };
  constexpr int64_t kRows = kBlocks * kBlockSize;
  for (const char* variant : kVariants) {
    for (const CudaElement element : {CudaElement::kF32, CudaElement::kBF16}) {
      const bool is_bf16 = element == CudaElement::kBF16;
      SCOPED_TRACE(testing::Message() << variant << ", bf16 " << is_bf16);
      const KvCodecFile file = codec_file(variant, 3);
      const PredictiveCodec codec(file);
      const int64_t block_bytes = codec.bytes_per_block();
      std::vector<std::byte> codes(std::size_t(kBlocks * block_bytes));
      std::vector<std::byte*> of_block;
      for (int64_t b = 0; b < kBlocks; ++b) of_block.push_back(codes.data() + b * block_bytes);
      std::vector<float> state(std::size_t(codec.state_floats(kBlocks)));
      std::vector<float> scratch(std::size_t(codec.scratch_floats(kBlocks)));
      codec.encode(Exact(), kBlocks, of_block.data(), state.data(), scratch.data(), owned_.exec);

      CudaKvCoder coder(file, element, *context_);
      EXPECT_GT(coder.weight_bytes(), 0);
      DeviceArray<std::byte> d_codes(codes);
      // In the middle of a larger state.
      DeviceArray<std::byte> d_state(coder.state_bytes(kRows + 64));
      DeviceArray<float> d_scratch(coder.scratch_floats(kRows));
      const CudaKvCoder::Run run = {.state = d_state.data(),
                                    .state_rows = kRows + 64,
                                    .first_row = 32,
                                    .num_rows = kRows,
                                    .scratch = d_scratch.data()};
      DeviceArray<float> plane(kRows * kWidth);  // as blocks of an f32 cache
      const std::vector<int32_t> order = {2, 0, 1};
      const DeviceBuffer d_order = DeviceBuffer::from_host(order.data(), 12);
      const KvCudaLayer to = {
          .element = KvCudaElement::kF32, .keys = plane.data(), .values = plane.data()};
      int64_t offset = 0;
      const auto where = [&](int64_t row_bytes) {
        const KvCodesCuda place = {.data = d_codes.data(),
                                   .piece_stride = block_bytes,
                                   .block_stride = block_bytes,
                                   .piece_blocks = 1,
                                   .offset = offset,
                                   .row_bytes = row_bytes};
        offset += kBlockSize * row_bytes;
        return place;
      };
      std::vector<KvCodesCuda> planes;
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        planes.push_back(where(coder.row_bytes(layer, false)));
        planes.push_back(where(coder.row_bytes(layer, true)));
      }
      std::vector<KvCodesCuda> latents;
      for (const auto& latent : coder.latents()) latents.push_back(where(latent.row_bytes));
      ASSERT_EQ(offset, block_bytes);
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        for (std::size_t group = 0; group < latents.size(); ++group) {
          if (coder.latents()[group].layers.front() != layer) continue;
          coder.decode_latent(int64_t(group), run, latents[group]);
        }
        const KvLayerRows wanted = codec.decode_layer(layer, of_block.data(), kBlocks, state.data(),
                                                      scratch.data(), owned_.exec);
        for (const bool is_value : {false, true}) {
          const KvLiveRowsCuda live = {
              .layer = to, .blocks = d_order.as<int32_t>(), .is_value = is_value};
          coder.decode(layer, is_value, run, planes[std::size_t(2 * layer + (is_value ? 1 : 0))],
                       live);
          DeviceArray<float> rows(kRows * kWidth);
          load_live_rows_cuda(live, kShape.num_heads, kShape.head_dim, kRows, rows.data(),
                              context_->stream());
          const float* of_cpu = is_value ? wanted.values : wanted.keys;
          // The inputs of a product are off by up to 2^-11 as TF32, and by 2^-9 as bf16, and the
          // predictors halve what they get; a value has two such inputs and a chain below it.
          EXPECT_LE(difference(rows.host(), Rows(of_cpu, of_cpu + kRows * kWidth), 0, kRows),
                    is_bf16 ? 0x1p-8 : 0x1p-10)
              << layer << " " << is_value;
        }
      }
    }
  }
}

TEST_F(CudaCodedKvCacheTest, RefusesWhatCannotBe) {
  const auto code = [&](const KvCodecFile& file, std::size_t num_ropes, KvFormat format) {
    const std::vector<KvRopeCuda> ropes(num_ropes, KvRopeCuda{inverse_.as<float>(), 1, 64});
    try {
      CudaCodedKvCache(config(), file, ropes, options(format), 1, *context_);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(code(codec_file("int", 2), kLayers, KvFormat::kBF16), ErrorCode::kUnsupported);
  EXPECT_EQ(code(codec_file("dense", 2), kLayers, KvFormat::kFp8), ErrorCode::kUnsupported);
  EXPECT_EQ(code(codec_file("dense", 2), 1, KvFormat::kBF16), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(random_codec("dense", kLayers - 1, kShape), kLayers, KvFormat::kBF16),
            ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace lathe
