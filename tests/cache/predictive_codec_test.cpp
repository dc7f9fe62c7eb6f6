#include "cache/predictive_codec.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "formats/expect_error.h"
#include "formats/kv_codec_examples.h"
#include "kernels/attention/kv_layout.h"
#include "support/all_close.h"
#include "support/kernel_cases.h"

namespace lathe {
namespace {

constexpr int64_t kLayers = 5;
constexpr RowShape kShape{2, 16};
constexpr int64_t kBlockFloats = kBlockSize * 32;

// Exact rows of some blocks of a made-up model; `first` chooses which.
class MadeUpRows final : public KvExactRows {
 public:
  MadeUpRows(int64_t first, int64_t num_blocks) : first_(first), num_blocks_(num_blocks) {}
  void load(int64_t layer, KvLayerRows rows) const override {
    for (int64_t b = 0; b < num_blocks_; ++b) {
      fill(uint64_t(first_ + b) * 100 + uint64_t(layer), rows.keys + b * kBlockFloats);
      fill(uint64_t(first_ + b) * 100 + uint64_t(layer) + 50, rows.values + b * kBlockFloats);
    }
  }

 private:
  static void fill(uint64_t seed, float* to) {
    const auto numbers = normal_values(kBlockFloats, seed);
    std::copy(numbers.begin(), numbers.end(), to);
  }
  int64_t first_, num_blocks_;
};

struct Blocks {
  Blocks(const PredictiveCodec& codec, int64_t num_blocks)
      : memory(std::size_t(num_blocks),
               std::vector<std::byte>(std::size_t(codec.bytes_per_block()))),
        state(std::size_t(codec.state_floats(num_blocks))),
        scratch(std::size_t(codec.scratch_floats(num_blocks))) {
    for (auto& block : memory) codes.push_back(block.data());
  }
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> codes;
  std::vector<float> state, scratch;
};

// [layer][keys, values]
std::vector<std::vector<float>> decode(const PredictiveCodec& codec, Blocks& run, Exec& exec) {
  std::vector<std::vector<float>> rows;
  const auto num_blocks = int64_t(run.codes.size());
  std::fill(run.state.begin(), run.state.end(), NAN);  // nothing of it may be needed
  std::fill(run.scratch.begin(), run.scratch.end(), NAN);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const KvLayerRows decoded = codec.decode_layer(layer, run.codes.data(), num_blocks,
                                                   run.state.data(), run.scratch.data(), exec);
    rows.emplace_back(decoded.keys, decoded.keys + num_blocks * kBlockFloats);
    rows.emplace_back(decoded.values, decoded.values + num_blocks * kBlockFloats);
  }
  return rows;
}

TEST(PredictiveCodec, BlocksTogetherAreBlocksAlone) {
  OwnedExec owned(1);
  for (const char* variant : kCodecVariants) {
    SCOPED_TRACE(variant);
    const PredictiveCodec codec(random_codec(variant, kLayers, kShape));
    Blocks together(codec, 3);
    codec.encode(MadeUpRows(7, 3), 3, together.codes.data(), together.state.data(),
                 together.scratch.data(), owned.exec);
    const auto rows = decode(codec, together, owned.exec);
    for (int64_t b = 0; b < 3; ++b) {
      Blocks alone(codec, 1);
      codec.encode(MadeUpRows(7 + b, 1), 1, alone.codes.data(), alone.state.data(),
                   alone.scratch.data(), owned.exec);
      EXPECT_EQ(alone.memory[0], together.memory[std::size_t(b)]);
      const auto own = decode(codec, alone, owned.exec);
      for (std::size_t i = 0; i < own.size(); ++i) {
        EXPECT_TRUE(same_bits(own[i], std::span(rows[i]).subspan(std::size_t(b * kBlockFloats),
                                                                 std::size_t(kBlockFloats))));
      }
    }
  }
}

// What is rebuilt is near what was stored, closer with more bits: everything is wired to the right
// layer, side and block. The error of a plane is its quantizer's share of the residual; these
// predictors are random, so the residual has up to a few times the row's energy.
TEST(PredictiveCodec, MoreBitsAreNearer) {
  OwnedExec owned(1);
  for (const char* variant : kCodecVariants) {
    SCOPED_TRACE(variant);
    double before = INFINITY;
    for (const int bits : {2, 3, 4}) {
      KvCodecFile file = random_codec(variant, kLayers, kShape, bits);
      const PredictiveCodec codec(file);
      Blocks run(codec, 2);
      codec.encode(MadeUpRows(1, 2), 2, run.codes.data(), run.state.data(), run.scratch.data(),
                   owned.exec);
      const auto rows = decode(codec, run, owned.exec);
      double error = 0;
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        std::vector<float> keys(2 * kBlockFloats), values(2 * kBlockFloats);
        MadeUpRows(1, 2).load(layer, {keys.data(), values.data()});
        double plane_error = 0;
        for (std::size_t i = 0; i < keys.size(); ++i) {
          plane_error += std::pow(rows[std::size_t(2 * layer)][i] - keys[i], 2);
          plane_error += std::pow(rows[std::size_t(2 * layer + 1)][i] - values[i], 2);
        }
        EXPECT_LT(plane_error / double(2 * keys.size()), bits == 2 ? 0.5 : bits == 3 ? 0.16 : 0.05);
        error += plane_error;
      }
      EXPECT_LT(error, before);
      before = error;
    }
  }
}

TEST(PredictiveCodec, ABlockHasTheBytesThatTheFileCounts) {
  for (const char* variant : kCodecVariants) {
    const KvCodecFile file = random_codec(variant, kLayers, kShape);
    EXPECT_EQ(PredictiveCodec(file).bytes_per_block(), kBlockSize * kv_token_bytes(file));
  }
}

TEST(PredictiveCodec, AnyBytesDecode) {
  OwnedExec owned(1);
  for (const char* variant : kCodecVariants) {
    const PredictiveCodec codec(random_codec(variant, kLayers, kShape));
    Blocks run(codec, 1);
    for (std::size_t i = 0; i < run.memory[0].size(); ++i) {
      run.memory[0][i] = std::byte(uint8_t((i * 2654435761u) >> 9));
    }
    decode(codec, run, owned.exec);
  }
}

TEST(PredictiveCodec, AnotherModelIsRefused) {
  ModelConfig config;
  config.num_layers = kLayers;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  KvCodecFile file = random_codec("dense", kLayers, kShape);
  EXPECT_EQ(make_kv_codec(file, config)->policy().window, 128);
  file.chunk_tokens = 100;
  expect_error(ErrorCode::kUnsupported, "100", [&] { make_kv_codec(file, config); });
  config.num_layers = 6;
  expect_error(ErrorCode::kInvalidArgument, "5 layers", [&] { make_kv_codec(file, config); });
}

}  // namespace
}  // namespace lathe
