// Forward passes of real models (GGUF, dequantized to fp32, computed in fp32) against transformers
// in fp32: log-probabilities, logits, hidden states and greedy continuations. golden/README.md says
// what each number is and why the tolerances are what they are.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "base/json.h"
#include "engine/sampler.h"
#include "kernels/embedding/embedding.h"
#include "model/decoder_layer.h"
#include "model/model_runner.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

constexpr double kLogitTolerance = 1e-3;

// Absolute for the logits; hidden states grow along the residual stream.
void expect_hidden(const Json& expected, const float* actual) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double value = expected[i].get<double>();
    EXPECT_NEAR(actual[i], value, kLogitTolerance * (1 + std::abs(value))) << "dimension " << i;
  }
}

class CaseCheck {
 public:
  CaseCheck(LoadedModel& loaded, const Json& golden)
      : loaded_(loaded),
        golden_(golden),
        ids_(golden.at("ids").get<std::vector<int32_t>>()),
        vocab_size_(static_cast<std::size_t>(loaded.config().vocab_size)),
        runner_(loaded, static_cast<int64_t>(ids_.size()) + 64) {}

  void prompt() {
    constexpr std::size_t kChunk = 128;
    for (std::size_t begin = 0; begin < ids_.size(); begin += kChunk) {
      const std::size_t size = std::min(kChunk, ids_.size() - begin);
      last_ = runner_.feed(std::span(ids_).subspan(begin, size));
      for (std::size_t i = 0; i < size; ++i) check_position(begin + i, row(i));
      last_row_ = size - 1;
    }
    print_worst();
  }

  void last_position() {
    const std::span<const float> logits = row(last_row_);
    const Json& top = golden_.at("last_top");
    for (std::size_t i = 0; i < top.at("ids").size(); ++i) {
      const auto id = top.at("ids")[i].get<std::size_t>();
      EXPECT_NEAR(logits[id], top.at("logits")[i].get<double>(), kLogitTolerance);
    }
    EXPECT_NEAR(log_sum_exp(logits), top.at("logsumexp").get<double>(), kLogitTolerance);
    expect_hidden(
        golden_.at("hidden").at("final_norm"),
        last_.hidden.data() + static_cast<int64_t>(last_row_) * loaded_.config().hidden_size);
  }

  void greedy_continuation() {
    const Json& greedy = golden_.at("greedy");
    for (std::size_t step = 0; step < greedy.at("ids").size(); ++step) {
      // Past a near-tie the continuations may differ for good reason.
      if (greedy.at("margin")[step].get<double>() < 2 * kLogitTolerance) break;
      const auto token = static_cast<int32_t>(argmax(row(last_row_)));
      ASSERT_EQ(token, greedy.at("ids")[step].get<int32_t>()) << "step " << step;
      last_ = runner_.feed({&token, 1});
      last_row_ = 0;
      ++num_greedy_;
    }
    EXPECT_GT(num_greedy_, 0);
  }

 private:
  std::span<const float> row(std::size_t i) const {
    return std::span(last_.logits).subspan(i * vocab_size_, vocab_size_);
  }

  void check_position(std::size_t position, std::span<const float> logits) {
    const auto expected_best = golden_.at("argmax")[position].get<std::size_t>();
    const auto best = static_cast<std::size_t>(argmax(logits));
    if (best != expected_best) {
      EXPECT_NEAR(logits[best], logits[expected_best], 2 * kLogitTolerance)
          << "argmax at position " << position;
    }
    if (position + 1 == ids_.size()) return;
    const double logprob =
        double{logits[static_cast<std::size_t>(ids_[position + 1])]} - log_sum_exp(logits);
    const double error = std::abs(logprob - golden_.at("next_logprob")[position].get<double>());
    EXPECT_LE(error, kLogitTolerance) << "position " << position;
    worst_ = std::max(worst_, error);
  }
  void print_worst() const {
    std::printf("  %s: largest error of a log-probability %.1e\n",
                golden_.at("id").get<std::string>().c_str(), worst_);
  }

  LoadedModel& loaded_;
  const Json& golden_;
  const std::vector<int32_t> ids_;
  const std::size_t vocab_size_;
  SequenceRunner runner_;
  SequenceRunner::Result last_;
  std::size_t last_row_ = 0;
  double worst_ = 0;
  int num_greedy_ = 0;
};

class RealGolden : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    model_ = model_path(GetParam());
    golden_ = shared_path(std::string("golden/logits/") + GetParam() + ".json");
    LATHE_SKIP_WITHOUT(model_, GetParam());
    LATHE_SKIP_WITHOUT(golden_, "golden/logits");
  }
  std::optional<std::string> model_;
  std::optional<std::string> golden_;
};

TEST_P(RealGolden, LogitsAndGreedyContinuationMatchTransformers) {
  const Json golden = read_json_file(*golden_);
  LoadedModel loaded(*model_);
  for (const Json& item : golden.at("cases")) {
    SCOPED_TRACE(item.at("id").get<std::string>());
    CaseCheck check(loaded, item);
    check.prompt();
    check.last_position();
    check.greedy_continuation();
  }
}

// The way of calibration: one layer in memory at a time.
TEST_P(RealGolden, StreamedLayersGiveTheResidualStream) {
  const Json golden = read_json_file(*golden_);
  const Json& item = golden.at("cases")[1];
  const auto ids = item.at("ids").get<std::vector<int32_t>>();
  const auto num_rows = static_cast<int64_t>(ids.size());
  OwnedExec owned(2);
  Exec& exec = owned.exec;
  const auto checkpoint = Checkpoint::open(*model_);
  const ModelConfig& config = checkpoint->config();

  std::vector<float> hidden(ids.size() * static_cast<std::size_t>(config.hidden_size));
  const float* last_row = hidden.data() + (num_rows - 1) * config.hidden_size;
  const Tensor embedding = checkpoint->load("model.embed_tokens.weight", DType::kF32);
  embedding_lookup(embedding.view(), ids, static_cast<float>(config.embedding_scale), hidden.data(),
                   exec);
  expect_hidden(item.at("hidden").at("embedding"), last_row);

  ModelConfig one_layer = config;
  one_layer.num_layers = 1;
  const auto cache = make_kv_cache(one_layer, KvFormat::kF32, num_rows, num_rows);
  KvSequence sequence = cache->new_sequence();
  std::vector<int64_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  int num_checked = 0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const DecoderLayer packed = pack_layer(
        config, load_layer_weights(*checkpoint, layer, DType::kF32), ComputeType::kF32, exec);
    const Workspace::Scope scope(exec.workspace);
    const RopeFrequencies frequencies =
        rope_frequencies(packed.is_sliding ? config.rope_local : config.rope, config.rotary_dim,
                         config.max_position_embeddings, num_rows);
    const RopeRows rope = rope_rows(frequencies, positions, exec);
    ASSERT_TRUE(cache->reserve(sequence, num_rows));
    const KvRows rows{.sequence = &sequence, .row_begin = 0, .num_rows = num_rows};
    cache->begin_step({&rows, 1}, exec);
    const LayerStep step{
        .config = config, .rope = rope, .sequences = {&rows, 1}, .cache = *cache, .cache_layer = 0};
    forward_layer(packed, step, hidden.data(), num_rows, exec);
    cache->commit();
    cache->release(sequence);
    const auto expected = item.at("hidden").find("layer_" + std::to_string(layer));
    if (expected == item.at("hidden").end()) continue;
    SCOPED_TRACE(layer);
    expect_hidden(*expected, last_row);
    ++num_checked;
  }
  EXPECT_EQ(num_checked, 3);
}

INSTANTIATE_TEST_SUITE_P(AllModels, RealGolden,
                         testing::Values("smollm2", "gemma3-270m", "qwen2.5-coder-0.5b",
                                         "qwen2.5-coder-1.5b"),
                         [](const auto& tested) {
                           std::string name = tested.param;
                           std::replace_if(
                               name.begin(), name.end(),
                               [](char c) { return c == '-' || c == '.'; }, '_');
                           return name;
                         });

}  // namespace
}  // namespace lathe
