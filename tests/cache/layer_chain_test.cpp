#include "cache/layer_chain.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace lathe {
namespace {

class BasesOnly final : public KvCodec {
 public:
  explicit BasesOnly(std::vector<int64_t> bases) : bases_(std::move(bases)) {}
  KvCodecPolicy policy() const override { return {}; }
  int64_t bytes_per_block() const override { return 0; }
  int64_t base_layer(int64_t layer) const override {
    return bases_[static_cast<std::size_t>(layer)];
  }
  int64_t scratch_floats() const override { return 0; }
  void encode_layer(int64_t, KvLayerRows, KvLayerRows, int64_t, std::byte*, float*) const override {
  }
  void decode_layer(int64_t, const std::byte*, KvLayerRows, KvLayerRows, float*) const override {}

 private:
  std::vector<int64_t> bases_;
};

TEST(LayerChain, TheBaseIsStillThereWhenItsLayerComes) {
  const struct {
    std::vector<int64_t> bases;
    int64_t num_buffers;
  } cases[] = {
      {{-1}, 1},
      {{-1, 0, 1, 2, 3}, 1},              // each from the one below
      {{-1, -1, 0, 1, 2, 3}, 2},          // two interleaved chains
      {{-1, -1, -1, -1}, 1},              // no prediction
      {{-1, 0, 0, 0, -1, 4, 4, 4}, 2},    // stars
      {{-1, 0, 1, -1, 2, 4, 3, 5, 6}, 2}  // sliding layers, a global one, and so on
  };
  for (const auto& c : cases) {
    const auto num_layers = static_cast<int64_t>(c.bases.size());
    const LayerChain chain = plan_layer_chain(BasesOnly(c.bases), num_layers);
    EXPECT_EQ(chain.num_buffers, c.num_buffers);
    EXPECT_EQ(chain.base, c.bases);
    std::vector<int64_t> holds(static_cast<std::size_t>(chain.num_buffers), -1);
    for (std::size_t layer = 0; layer < c.bases.size(); ++layer) {
      if (c.bases[layer] >= 0) {
        const int64_t buffer = chain.buffer[static_cast<std::size_t>(c.bases[layer])];
        EXPECT_EQ(holds[static_cast<std::size_t>(buffer)], c.bases[layer]) << "layer " << layer;
      }
      holds[static_cast<std::size_t>(chain.buffer[layer])] = static_cast<int64_t>(layer);
    }
  }
}

TEST(LayerChain, ABaseMustLieBelow) {
  EXPECT_THROW(plan_layer_chain(BasesOnly({-1, 1}), 2), Error);
  EXPECT_THROW(plan_layer_chain(BasesOnly({-2}), 1), Error);
}

}  // namespace
}  // namespace lathe
