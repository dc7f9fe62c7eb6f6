#include "model/decoder_layer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "formats/expect_error.h"
#include "model/model_runner.h"
#include "support/all_close.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

struct SeenInput {
  LinearKind kind;
  int64_t expert;
  int64_t rows;
  int64_t k;
  std::vector<float> x;
};

class RecordingTap : public LayerTap {
 public:
  void on_linear_input(LinearKind kind, int64_t expert, const float* x, int64_t rows,
                       int64_t k) override {
    seen.push_back({kind, expert, rows, k, {x, x + rows * k}});
  }
  std::vector<SeenInput> seen;
};

// One layer of a checkpoint over one sequence, as calibration runs it.
class OneLayer {
 public:
  explicit OneLayer(const std::string& path) : checkpoint(Checkpoint::open(path)) {}

  std::vector<float> run(const DecoderLayer& layer, std::vector<float> hidden, LayerTap* tap) {
    const ModelConfig& config = checkpoint->config();
    const auto num_rows = static_cast<int64_t>(hidden.size()) / config.hidden_size;
    ModelConfig one = config;
    one.num_layers = 1;
    const auto cache = make_kv_cache(one, KvFormat::kF32, num_rows, num_rows);
    KvSequence sequence = cache->new_sequence();
    EXPECT_TRUE(cache->reserve(sequence, num_rows));
    const KvRows rows{.sequence = &sequence, .row_begin = 0, .num_rows = num_rows};
    std::vector<int64_t> positions(static_cast<std::size_t>(num_rows));
    std::iota(positions.begin(), positions.end(), 0);
    const Workspace::Scope scope(owned.workspace);
    const RopeRows rope =
        rope_rows(rope_frequencies(config.rope, config.rotary_dim, config.max_position_embeddings,
                                   config.max_position_embeddings),
                  positions, owned.exec);
    cache->begin_step({&rows, 1}, owned.exec);
    const LayerStep step{.config = config,
                         .rope = rope,
                         .sequences = {&rows, 1},
                         .cache = *cache,
                         .cache_layer = 0,
                         .tap = tap};
    forward_layer(layer, step, hidden.data(), num_rows, owned.exec);
    cache->commit();
    return hidden;
  }
  DecoderLayer packed(int64_t layer) {
    return pack_layer(checkpoint->config(), load_layer_weights(*checkpoint, layer, DType::kF32),
                      ComputeType::kF32, owned.exec);
  }

  OwnedExec owned{2};
  std::unique_ptr<Checkpoint> checkpoint;
};

TEST(LayerSlots, NameEveryLinearOfTheLayer) {
  const auto checkpoint = Checkpoint::open(golden_path("tiny/qwen2-tied-mqa"));
  const std::vector<LinearSlot> slots = layer_slots(checkpoint->config(), 1);
  ASSERT_EQ(slots.size(), 7u);
  EXPECT_EQ(slots[1].module, "model.layers.1.self_attn.k_proj");
  EXPECT_EQ(slots[1].kind, LinearKind::kQkv);
  EXPECT_EQ(slots[1].n, 16);
  EXPECT_EQ(slots[1].k, 64);
  EXPECT_EQ(slots[3].kind, LinearKind::kO);
  EXPECT_EQ(slots[5].module, "model.layers.1.mlp.up_proj");
  EXPECT_EQ(slots[5].kind, LinearKind::kGateUp);
  EXPECT_EQ(slots[6].kind, LinearKind::kDown);
  EXPECT_EQ(slots[6].k, 96);
  EXPECT_EQ(slots[6].expert, -1);
}

TEST(LayerTap, SeesTheInputOfEachLinear) {
  OneLayer one(golden_path("tiny/qwen2-tied-mqa"));
  RecordingTap tap;
  const std::vector<float> hidden = normal_values(5 * 64, 1);
  const DecoderLayer layer = one.packed(0);
  const std::vector<float> out = one.run(layer, hidden, &tap);
  ASSERT_EQ(tap.seen.size(), 4u);
  const LinearKind kinds[] = {LinearKind::kQkv, LinearKind::kO, LinearKind::kGateUp,
                              LinearKind::kDown};
  const int64_t sizes[] = {64, 64, 64, 96};
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(tap.seen[i].kind, kinds[i]);
    EXPECT_EQ(tap.seen[i].rows, 5);
    EXPECT_EQ(tap.seen[i].k, sizes[i]);
    EXPECT_EQ(tap.seen[i].expert, -1);
  }
  // The tap changes nothing, and what it saw is what was multiplied: hidden + o(x) + down(x).
  EXPECT_TRUE(same_bits(one.run(layer, hidden, nullptr), out));
  std::vector<float> o(hidden.size());
  std::vector<float> down(hidden.size());
  layer.o.run(tap.seen[1].x.data(), 5, o.data(), 64, one.owned.exec);
  layer.mlps[0].down.run(tap.seen[3].x.data(), 5, down.data(), 64, one.owned.exec);
  std::vector<float> sum = hidden;
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = sum[i] + o[i] + down[i];
  EXPECT_TRUE(same_bits(sum, out));
}

TEST(LayerTap, SeesEveryRowOnceForEachOfItsExperts) {
  const auto directory = shared_path("golden/tiny/qwen3-moe");
  LATHE_SKIP_WITHOUT(directory, "qwen3-moe");
  OneLayer one(*directory);
  RecordingTap tap;
  one.run(one.packed(0), normal_values(9 * 64, 1), &tap);
  int64_t gate_up_rows = 0;
  int64_t down_rows = 0;
  for (const SeenInput& input : tap.seen) {
    if (input.kind == LinearKind::kGateUp) gate_up_rows += input.rows;
    if (input.kind == LinearKind::kDown) down_rows += input.rows;
    const bool is_mlp = input.kind == LinearKind::kGateUp || input.kind == LinearKind::kDown;
    EXPECT_EQ(input.expert >= 0, is_mlp);
    EXPECT_LT(input.expert, 6);
  }
  EXPECT_EQ(gate_up_rows, 18);
  EXPECT_EQ(down_rows, 18);
}

// Parts that cannot be one packed weight become several, with the same result.
TEST(StackedLinear, MixedFormatsGiveEachPartsRows) {
  OwnedExec owned(2);
  const int64_t k = 64;
  std::vector<LinearWeights> parts(3);
  const int64_t rows[] = {5, 3, 7};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::vector<float> values = normal_values(rows[i] * k, i + 1);
    parts[i].dense = Tensor(DType::kF32, {rows[i], k});
    std::copy(values.begin(), values.end(), parts[i].dense.as<float>());
  }
  parts[1].dense = convert(parts[1].dense.view(), DType::kBF16);
  const std::vector<float> x = normal_values(2 * k, 9);
  const LinearWeights* pointers[] = {&parts[0], &parts[1], &parts[2]};
  const StackedLinear stacked(stack_linears(pointers), ComputeType::kF32, owned.exec);
  EXPECT_EQ(stacked.n(), 15);
  EXPECT_EQ(stacked.k(), k);
  std::vector<float> y(2 * 20, -1.0f);
  stacked.run(x.data(), 2, y.data(), 20, owned.exec);

  int64_t column = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const StackedLinear single(stack_linears({pointers + i, 1}), ComputeType::kF32, owned.exec);
    std::vector<float> expected(static_cast<std::size_t>(2 * rows[i]));
    single.run(x.data(), 2, expected.data(), rows[i], owned.exec);
    for (int64_t t = 0; t < 2; ++t) {
      EXPECT_TRUE(same_bits(std::span(y).subspan(static_cast<std::size_t>(t * 20 + column),
                                                 static_cast<std::size_t>(rows[i])),
                            std::span(expected).subspan(static_cast<std::size_t>(t * rows[i]),
                                                        static_cast<std::size_t>(rows[i]))));
    }
    column += rows[i];
  }
  for (int64_t t = 0; t < 2; ++t) EXPECT_EQ(y[static_cast<std::size_t>(t * 20 + 15)], -1.0f);
}

TEST(Decoder, RefusesABatchThatContradictsItself) {
  LoadedModel loaded(golden_path("tiny/qwen2-tied-mqa"));
  const auto cache = make_kv_cache(loaded.config(), KvFormat::kF32, 64, 64);
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(cache->reserve(sequence, 3));
  const int32_t ids[] = {1, 2, 3};
  const int32_t outside[] = {1, 320, 3};
  const int64_t positions[] = {0, 1, 2};
  const int64_t late[] = {0, 1, 3};
  const int32_t no_such_row[] = {3};
  const KvRows rows{.sequence = &sequence, .row_begin = 0, .num_rows = 3};
  const KvRows short_rows{.sequence = &sequence, .row_begin = 0, .num_rows = 2};
  std::vector<float> logits(320);
  const auto refuses = [&](const ForwardBatch& batch) {
    expect_error(ErrorCode::kInvalidArgument, "", [&] {
      loaded.model->forward(batch, *cache, logits.data(), nullptr, loaded.owned.exec);
    });
    EXPECT_EQ(sequence.num_tokens, 0);
  };
  refuses(
      {.token_ids = ids, .positions = positions, .sequences = {&short_rows, 1}, .logit_rows = {}});
  refuses({.token_ids = ids,
           .positions = std::span(positions).first(2),
           .sequences = {&rows, 1},
           .logit_rows = {}});
  refuses({.token_ids = ids, .positions = late, .sequences = {&rows, 1}, .logit_rows = {}});
  refuses(
      {.token_ids = outside, .positions = positions, .sequences = {&rows, 1}, .logit_rows = {}});
  refuses({.token_ids = ids,
           .positions = positions,
           .sequences = {&rows, 1},
           .logit_rows = no_such_row});
  // And runs after all that.
  loaded.model->forward(
      {.token_ids = ids, .positions = positions, .sequences = {&rows, 1}, .logit_rows = {}}, *cache,
      logits.data(), nullptr, loaded.owned.exec);
  EXPECT_EQ(sequence.num_tokens, 3);
}

}  // namespace
}  // namespace lathe
