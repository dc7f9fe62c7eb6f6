#include "cache/plane_slots.h"

#include <gtest/gtest.h>

#include "formats/kv_codec_examples.h"

namespace lathe {
namespace {

using Kind = KvPredictorInput::Kind;

// Runs through the layers and looks whether every slot still holds what is taken from it.
void check(const KvCodecFile& file, PlaneReaders readers, const PlaneSlots& slots) {
  std::vector<std::pair<Kind, int64_t>> holds(std::size_t(slots.num_slots), {Kind::kLatent, -1});
  for (int64_t layer = 0; layer < file.num_layers(); ++layer) {
    const auto l = std::size_t(layer);
    for (const bool is_value : {false, true}) {
      const int64_t own = (is_value ? slots.values : slots.keys)[l];
      const auto slot = std::size_t(own);
      for (const auto& input : (is_value ? file.values : file.keys)[l].predictor.inputs) {
        if (input.kind == Kind::kLatent) continue;
        const auto from = std::size_t(
            (input.kind == Kind::kKeys ? slots.keys : slots.values)[std::size_t(input.index)]);
        ASSERT_LT(from, holds.size()) << "layer " << layer;
        EXPECT_EQ(holds[from], std::pair(input.kind, input.index)) << "layer " << layer;
        EXPECT_NE(from, slot) << "written while it is read, layer " << layer;
      }
      if (own == PlaneSlots::kNone) continue;  // an input would be missed above
      holds[slot] = {is_value ? Kind::kValues : Kind::kKeys, layer};
    }
    if (readers != PlaneReaders::kCaller) continue;
    EXPECT_EQ(holds[std::size_t(slots.keys[l])], std::pair(Kind::kKeys, layer)) << "for the caller";
  }
}

TEST(PlaneSlots, InputsAreStillThereWhenTheyAreNeeded) {
  const struct {
    const char* variant;
    int64_t num_slots;
    int64_t for_predictors;
  } cases[] = {{"none", 2, 0}, {"dense", 3, 3},  {"low-rank", 3, 3},
               {"star", 4, 3}, {"latent", 2, 1}, {"mean", 2, 0}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.variant);
    const KvCodecFile file = random_codec(c.variant, 9, {1, 8});
    for (const auto& [readers, num_slots] :
         {std::pair(PlaneReaders::kCaller, c.num_slots),
          std::pair(PlaneReaders::kPredictors, c.for_predictors)}) {
      const PlaneSlots slots = plan_plane_slots(file, readers);
      EXPECT_EQ(slots.num_slots, num_slots);
      check(file, readers, slots);
    }
  }
}

TEST(PlaneSlots, SlidingAndGlobalLayersChainApart) {
  KvCodecFile file = random_codec("none", 12, {1, 8});
  for (int64_t l = 0; l < 12; ++l) {  // every sixth is global: 5, 11
    const int64_t base = l % 6 == 5 ? l - 6 : l % 6 == 0 ? l - 2 : l - 1;
    if (base < 0) continue;
    file.keys[std::size_t(l)].predictor =
        random_predictor(file, KvPredictor::Weight::kDense, {{Kind::kKeys, base}}, uint64_t(l));
    file.values[std::size_t(l)].predictor = random_predictor(
        file, KvPredictor::Weight::kDense, {{Kind::kKeys, l}, {Kind::kValues, base}}, uint64_t(l));
  }
  for (const PlaneReaders readers : {PlaneReaders::kCaller, PlaneReaders::kPredictors}) {
    const PlaneSlots slots = plan_plane_slots(file, readers);
    EXPECT_LE(slots.num_slots, 6);
    check(file, readers, slots);
  }
}

}  // namespace
}  // namespace lathe
