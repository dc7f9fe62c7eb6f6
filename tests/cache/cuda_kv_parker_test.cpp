#include "cache/cuda_kv_parker.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "cache/kv_parker.h"
#include "cache/predictive_codec.h"
#include "formats/kv_codec_examples.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

constexpr int64_t kLayers = 5, kTokens = 5 * 128 + 40, kPieces = 5;
constexpr RowShape kShape{2, 64};
constexpr int64_t kWidth = 128;

using Pieces = std::vector<std::vector<std::byte>>;

ModelConfig config() {
  ModelConfig config;
  config.num_layers = kLayers;
  config.num_heads = 4;
  config.num_kv_heads = kShape.num_heads;
  config.head_dim = kShape.head_dim;
  config.rotary_dim = kShape.head_dim;
  return config;
}

// The same sequence on the GPU and on the CPU, keys behind RoPE, exact in both.
class CudaKvParkerTest : public testing::Test {
 protected:
  void SetUp() override {
    LATHE_NEEDS_GPU();
    context_ = std::make_unique<CudaContext>(0);
  }

  // base 0: nothing is turned at all, and both sides have the same keys before RoPE, bit for bit.
  void make_ropes(double base) {
    std::vector<float> inverse;
    for (int64_t j = 0; j < 32; ++j) {
      inverse.push_back(base == 0 ? 0.0f : static_cast<float>(std::pow(base, -double(j) / 32)));
    }
    inverse_ = DeviceBuffer::from_host(inverse.data(), 32 * 4);
    cos_.clear(), sin_.clear();
    for (int64_t p = 0; p < 1024; ++p) {
      for (const float f : inverse) {
        const double angle = static_cast<float>(p) * f;  // rounded to float
        cos_.push_back(static_cast<float>(std::cos(angle)) * factor_);
        sin_.push_back(static_cast<float>(std::sin(angle)) * factor_);
      }
    }
  }
  std::vector<KvRope> host_ropes() const {
    return std::vector<KvRope>(kLayers, KvRope{cos_.data(), sin_.data(), 1024, 64});
  }
  std::vector<KvRopeCuda> ropes() const {
    return std::vector<KvRopeCuda>(kLayers, KvRopeCuda{inverse_.as<float>(), factor_, 64});
  }

  // Rows [kTokens, width] of one plane.
  static std::vector<float> numbers(int64_t layer, bool is_value) {
    return normal_values(kTokens * kWidth, uint64_t(10 + layer * 2 + (is_value ? 1 : 0)));
  }
  KvLiveRowsCuda rows_of(CudaKvCache& cache, const KvSequence& sequence, int64_t layer,
                         bool is_value) {
    blocks_ = DeviceBuffer::from_host(sequence.blocks.data(),
                                      int64_t(sequence.blocks.size() * sizeof(BlockId)));
    return {.layer = cache.layer(layer),
            .blocks = blocks_.as<int32_t>(),
            .is_value = is_value,
            .sink_block = sequence.sink_block};
  }
  void fill(CudaKvCache& cache, KvSequence& sequence) {
    ASSERT_TRUE(cache.reserve(sequence, kTokens));
    sequence.num_tokens = kTokens;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      for (const bool is_value : {false, true}) {
        const auto x = numbers(layer, is_value);
        const DeviceBuffer device = DeviceBuffer::from_host(x.data(), int64_t(x.size() * 4));
        store_live_rows_cuda(rows_of(cache, sequence, layer, is_value), kShape.num_heads,
                             kShape.head_dim, kTokens, device.as<float>(), context_->stream());
        context_->synchronize();
      }
    }
  }
  void fill(KvCache& cache, KvSequence& sequence) {
    ASSERT_TRUE(cache.reserve(sequence, kTokens));
    const KvRows rows{&sequence, 0, kTokens};
    cache.begin_step({&rows, 1}, owned_.exec);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      cache.append(layer, nullptr, numbers(layer, false).data(), numbers(layer, true).data(),
                   kWidth, owned_.exec);
    }
    cache.commit();
  }
  // As attention reads them.
  std::vector<float> rows(CudaKvCache& cache, const KvSequence& sequence, int64_t layer,
                          bool is_value) {
    DeviceBuffer device(kTokens * kWidth * 4);
    load_live_rows_cuda(rows_of(cache, sequence, layer, is_value), kShape.num_heads,
                        kShape.head_dim, kTokens, device.as<float>(), context_->stream());
    context_->synchronize();
    std::vector<float> x(kTokens * kWidth);
    device.to_host(x.data(), device.size());
    return x;
  }
  static std::vector<float> rows(KvCache& cache, const KvSequence& sequence, int64_t layer,
                                 bool is_value) {
    LiveBlocks& live = *cache.live_blocks();
    std::vector<float> x(kTokens * kWidth);
    for (int64_t t = 0; t < kTokens; ++t) {
      const BlockId block = sequence.blocks[std::size_t(t / kBlockSize)];
      is_value
          ? load_value(live.shape(), live.values(layer, block), t % kBlockSize,
                       x.data() + t * kWidth)
          : load_key(live.shape(), live.keys(layer, block), t % kBlockSize, x.data() + t * kWidth);
    }
    return x;
  }
  Pieces park(PieceParker& parker, const KvSequence& sequence, int64_t begin, int64_t count) {
    Pieces pieces;
    parker.park(sequence, begin, count, owned_.exec,
                [&](int64_t piece, std::span<const std::byte> bytes) {
                  EXPECT_EQ(piece, begin + int64_t(pieces.size()));
                  EXPECT_EQ(int64_t(bytes.size()), parker.piece_bytes(piece));
                  pieces.emplace_back(bytes.begin(), bytes.end());
                });
    return pieces;
  }
  CudaKvCache cuda_cache(KvFormat format) {
    return CudaKvCache(config(), format, 4 * kTokens, kTokens, context_->stream());
  }
  template <typename Cache>
  KvSequence woken(Cache& cache, PieceParker& parker, const Pieces& pieces) {
    KvSequence sequence = cache.new_sequence();
    EXPECT_TRUE(cache.reserve(sequence, kTokens));
    parker.wake(pieces, 0, sequence, owned_.exec);
    sequence.num_tokens = kPieces * 128;
    return sequence;
  }
  // Root of the mean squared difference of tokens [begin, end) over that of b.
  static double difference(const std::vector<float>& a, const std::vector<float>& b, int64_t begin,
                           int64_t end) {
    double off = 0, size = 0;
    for (auto i = std::size_t(begin * kWidth); i < std::size_t(end * kWidth); ++i) {
      off += std::pow(double{a[i]} - double{b[i]}, 2), size += std::pow(double{b[i]}, 2);
    }
    return std::sqrt(off / size);
  }

  const float factor_ = 1.25f;
  std::unique_ptr<CudaContext> context_;
  DeviceBuffer inverse_, blocks_;
  std::vector<float> cos_, sin_;
  OwnedExec owned_{2};
};

// Where nothing is multiplied, the pieces are those of the CPU.
TEST_F(CudaKvParkerTest, WithoutProductsTheBytesAreTheCpus) {
  make_ropes(0);
  for (const char* variant : {"none", "mean", "sigma"}) {
    for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16}) {
      SCOPED_TRACE(testing::Message() << variant << " " << kv_format_name(format));
      const KvCodecFile file = random_codec(variant, kLayers, kShape);
      const PredictiveCodec codec(file);
      const auto host = make_kv_cache(config(), format, 2 * kTokens, kTokens);
      KvSequence on_host = host->new_sequence();
      fill(*host, on_host);
      KvParker host_parker(*host, codec, host_ropes());
      CudaKvCache cache = cuda_cache(format);
      KvSequence sequence = cache.new_sequence();
      fill(cache, sequence);
      CudaKvParker parker(cache, file, ropes(), *context_);
      EXPECT_GT(parker.memory_bytes(), 0);
      const Pieces expected = park(host_parker, on_host, 0, kPieces);
      const Pieces pieces = park(parker, sequence, 0, kPieces);
      // The attention factor leaves (x f^2) / f^2 on both sides; f^2 is exact.
      EXPECT_EQ(pieces, expected);
      EXPECT_EQ(park(parker, sequence, 2, 2), Pieces(expected.begin() + 2, expected.begin() + 4));
    }
  }
}

// Codes of the CPU, woken on both. TF32 rounds the inputs of a product by up to 2^-11; predictors
// halve what they get, so a chain of them is off by no more than some of those.
TEST_F(CudaKvParkerTest, WakesWhatTheCpuParked) {
  make_ropes(10000);
  for (const char* variant : {"dense", "low-rank", "block-diagonal", "star", "latent",
                              "latent-values", "mean", "sigma"}) {
    for (const int bits : {2, 3, 4}) {
      SCOPED_TRACE(testing::Message() << variant << " " << bits);
      const KvCodecFile file = random_codec(variant, kLayers, kShape, bits);
      const PredictiveCodec codec(file);
      const auto host = make_kv_cache(config(), KvFormat::kF32, 3 * kTokens, kTokens);
      KvSequence on_host = host->new_sequence();
      fill(*host, on_host);
      KvParker host_parker(*host, codec, host_ropes());
      const Pieces pieces = park(host_parker, on_host, 0, kPieces);
      const KvSequence expected = woken(*host, host_parker, pieces);
      CudaKvCache cache = cuda_cache(KvFormat::kF32);
      CudaKvParker parker(cache, file, ropes(), *context_);
      const KvSequence sequence = woken(cache, parker, pieces);
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        for (const bool is_value : {false, true}) {
          const auto got = rows(cache, sequence, layer, is_value);
          const auto want = rows(*host, expected, layer, is_value);
          EXPECT_LE(difference(got, want, 4, kPieces * 128), 0x1p-10) << layer << " " << is_value;
          EXPECT_EQ(difference(got, want, 0, 4), 0) << "sinks";
        }
      }
    }
  }
}

// Parked and woken here, by any live format: as close to the original as the CPU's codec is.
TEST_F(CudaKvParkerTest, WakesWhatItParked) {
  make_ropes(10000);
  const KvCodecFile file = random_codec("dense", kLayers, kShape, 4);
  for (const KvFormat format :
       {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFp8, KvFormat::kHiggs4}) {
    SCOPED_TRACE(kv_format_name(format));
    CudaKvCache cache = cuda_cache(format);
    KvSequence sequence = cache.new_sequence();
    fill(cache, sequence);
    CudaKvParker parker(cache, file, ropes(), *context_);
    const Pieces pieces = park(parker, sequence, 0, kPieces);
    const KvSequence again = woken(cache, parker, pieces);
    // 4-bit codes of a residual as large as the row or a little larger (random predictors),
    // relative error sqrt(0.0078 * 1.3) with rounded scales; E4M3 adds up to 2^-4, and higgs4 its
    // own 0.09.
    const double limit = format == KvFormat::kF32 || format == KvFormat::kBF16 ? 0.13 : 0.18;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      for (const bool is_value : {false, true}) {
        const auto got = rows(cache, again, layer, is_value);
        const auto want = rows(cache, sequence, layer, is_value);
        EXPECT_LE(difference(got, want, 4, kPieces * 128), limit) << layer << " " << is_value;
        EXPECT_GE(difference(got, want, 4, kPieces * 128), 0.02) << layer << " " << is_value;
        // Rotating back and forth in fp32 may turn a rounding to bf16.
        EXPECT_LE(difference(got, want, 0, 4), format == KvFormat::kHiggs4 ? 0x1p-8 : 0) << "sinks";
      }
    }
    // Piece by piece, in any order: the same blocks, but for the order of sums.
    KvSequence alone = cache.new_sequence();
    ASSERT_TRUE(cache.reserve(alone, kTokens));
    for (const int64_t i : {3, 0, 4, 2, 1}) {
      parker.wake({pieces.data() + i, 1}, i, alone, owned_.exec);
    }
    alone.num_tokens = kPieces * 128;
    const double slack = format == KvFormat::kF32    ? 0x1p-10
                         : format == KvFormat::kBF16 ? 0x1p-8
                                                     : 0.05;
    for (const bool is_value : {false, true}) {
      EXPECT_LE(difference(rows(cache, alone, kLayers - 1, is_value),
                           rows(cache, again, kLayers - 1, is_value), 0, kPieces * 128),
                slack);
    }
  }
}

// Live codes are of keys without an offset that parked ones have: an exact cache wakes them with
// it.
TEST_F(CudaKvParkerTest, KeysWithoutAnOffsetAreParkedWithIt) {
  make_ropes(0);  // only multiplies by the factor
  const std::vector<float> offset = normal_values(kWidth, 50, 5);
  const DeviceBuffer d_offset = DeviceBuffer::from_host(offset.data(), kWidth * 4);
  std::vector<KvRopeCuda> without = ropes();
  for (KvRopeCuda& rope : without) rope.key_offset = d_offset.as<float>();
  const KvCodecFile file = random_codec("none", kLayers, kShape, 4);
  CudaKvCache cache = cuda_cache(KvFormat::kHiggs4), exact = cuda_cache(KvFormat::kF32);
  KvSequence sequence = cache.new_sequence();
  fill(cache, sequence);
  CudaKvParker parker(cache, file, without, *context_);
  CudaKvParker exact_parker(exact, file, without, *context_);
  const Pieces pieces = park(parker, sequence, 0, kPieces);
  const KvSequence again = woken(cache, parker, pieces);
  const KvSequence whole = woken(exact, exact_parker, pieces);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const auto was = rows(cache, sequence, layer, false);
    const auto got = rows(cache, again, layer, false);
    auto with = rows(exact, whole, layer, false);
    for (std::size_t i = 0; i < with.size(); ++i) with[i] -= factor_ * offset[i % kWidth];
    // higgs4's own 0.09.
    EXPECT_LE(difference(got, with, 4, kPieces * 128), 0.13) << layer;
    // The codec's 0.09 of keys that the offset makes sqrt(1 + (1.25 * 5)^2) times as large, and
    // higgs4's: an offset that was left out on one way would be 6.25.
    EXPECT_LE(difference(with, was, 4, kPieces * 128), 0.9) << layer;
    EXPECT_LE(difference(got, was, 0, 4), 0x1p-8) << "sinks, parked as they are live";
    EXPECT_LE(difference(rows(cache, again, layer, true), rows(cache, sequence, layer, true), 4,
                         kPieces * 128),
              0.18)
        << "values";
  }
}

// The exact rows of a live format are what is parked of its sinks, and come back as such beside
// their codes; those that the codec has as codes come back as what it makes of them.
TEST_F(CudaKvParkerTest, ExactSinksStayExact) {
  make_ropes(10000);
  CudaKvCache cache = cuda_cache(KvFormat::kHiggs4);
  KvSequence sequence = cache.new_sequence();
  fill(cache, sequence);
  for (const int64_t num_sinks : {4, 1}) {
    KvCodecFile file = random_codec("dense", kLayers, kShape, 4);
    file.num_sinks = num_sinks;
    CudaKvParker parker(cache, file, ropes(), *context_);
    KvSequence again = woken(cache, parker, park(parker, sequence, 0, kPieces));
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      for (const bool is_value : {false, true}) {
        const auto x = numbers(layer, is_value), want = rows(cache, sequence, layer, is_value);
        const auto got = rows(cache, again, layer, is_value);
        // Rounded to bf16 once.
        EXPECT_LE(difference(want, x, 0, 4), 0x1p-9) << layer << " " << is_value;
        EXPECT_LE(difference(got, want, 0, num_sinks), 0x1p-8) << layer << " " << is_value;
        KvSequence coded = again;
        coded.sink_block = -1;
        const auto codes = rows(cache, coded, layer, is_value);
        // higgs4's 0.09 of what was woken.
        EXPECT_GE(difference(codes, got, 0, 4), 0.02) << layer << " " << is_value;
        EXPECT_LE(difference(codes, got, 0, 4), 0.13) << layer << " " << is_value;
        if (num_sinks == 4) continue;
        // As in WakesWhatItParked.
        EXPECT_GE(difference(got, want, 1, 4), 0.02) << layer << " " << is_value;
        EXPECT_LE(difference(got, want, 1, 4), 0.18) << layer << " " << is_value;
      }
    }
    cache.release(again);
  }
}

TEST_F(CudaKvParkerTest, RefusesWhatCannotBe) {
  make_ropes(10000);
  CudaKvCache cache = cuda_cache(KvFormat::kBF16);
  const auto code = [&](const KvCodecFile& file, std::vector<KvRopeCuda> rope) {
    try {
      CudaKvParker(cache, file, std::move(rope), *context_);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(code(random_codec("int", kLayers, kShape), ropes()), ErrorCode::kUnsupported);
  EXPECT_EQ(code(random_codec("dense", kLayers, kShape), {}), ErrorCode::kInvalidArgument);
  CudaKvParker parker(cache, random_codec("dense", kLayers, kShape), ropes(), *context_);
  KvSequence sequence = cache.new_sequence();
  ASSERT_TRUE(cache.reserve(sequence, 128));
  Pieces pieces(1);
  for (const int64_t wrong : {int64_t{0}, parker.piece_bytes(0) - 1, parker.piece_bytes(1)}) {
    pieces[0].resize(std::size_t(wrong));
    try {
      parker.wake(pieces, 0, sequence, owned_.exec);
      ADD_FAILURE() << wrong;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruptData);
    }
  }
}

}  // namespace
}  // namespace lathe
