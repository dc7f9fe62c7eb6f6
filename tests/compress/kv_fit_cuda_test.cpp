// fit-kv with the model on a GPU against the same on the CPU.
#include <gtest/gtest.h>

#include "compress/kv_fit_model.h"
#include "compress/random_model.h"
#include "support/cuda_cases.h"

namespace lathe {
namespace {

// With a norm on keys, and without.
constexpr const char* kQwen3 = R"({"architectures": ["Qwen3ForCausalLM"],
  "model_type": "qwen3", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 307,
  "rms_norm_eps": 1e-6, "max_position_embeddings": 256, "hidden_act": "silu",
  "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "float32"})";
constexpr const char* kQwen2 = R"({"architectures": ["Qwen2ForCausalLM"],
  "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 307, "rms_norm_eps": 1e-6,
  "max_position_embeddings": 256, "hidden_act": "silu", "rope_theta": 10000.0,
  "tie_word_embeddings": true, "torch_dtype": "float32"})";

std::vector<KvFitResult> fit_on(const Checkpoint& checkpoint, const std::string& directory,
                                int device) {
  OwnedExec machine(2);
  machine.exec.cuda_device = device;
  KvFitJob job;
  job.source = &checkpoint;
  job.options.resize(2);
  job.options[1].variant = KvFitVariant::kLatent;
  job.sequences = random_sequences(16, 200, 307, 3);
  job.working_directory = directory + "/working";
  return fit_kv_codecs(job, {}, machine.exec);
}

TEST(KvFitCuda, FindsThePredictorsOfTheCpu) {
  LATHE_NEEDS_GPU();
  for (const char* config : {kQwen3, kQwen2}) {
    SCOPED_TRACE(config);
    const TemporaryDirectory temporary;
    write_random_model(temporary.path(), config, 7);
    const auto checkpoint = Checkpoint::open(temporary.path());
    const auto cpu = fit_on(*checkpoint, temporary.path(), -1);
    const auto gpu = fit_on(*checkpoint, temporary.path(), 0);
    for (std::size_t c = 0; c < cpu.size(); ++c) {
      for (std::size_t l = 0; l < cpu[c].layers.size(); ++l) {
        SCOPED_TRACE(testing::Message() << "codec " << c << ", layer " << l);
        // The model runs in bf16 here, in bf16 with other sums there: rows differ by up to some 1
        // %, what a prediction leaves of their energy by far less.
        const auto expect_near = [](double a, double b) { EXPECT_NEAR(a, b, 0.02 * b + 1e-4); };
        expect_near(gpu[c].file.key_quality[l].heldout_relative_mse,
                    cpu[c].file.key_quality[l].heldout_relative_mse);
        expect_near(gpu[c].file.value_quality[l].heldout_relative_mse,
                    cpu[c].file.value_quality[l].heldout_relative_mse);
        expect_near(gpu[c].layers[l].key_reconstruction, cpu[c].layers[l].key_reconstruction);
        expect_near(gpu[c].layers[l].value_reconstruction, cpu[c].layers[l].value_reconstruction);
        // The means themselves: keys behind their norm, before RoPE, of the right columns.
        const auto& a = gpu[c].file.keys[l].predictor.bias;
        const auto& b = cpu[c].file.keys[l].predictor.bias;
        ASSERT_EQ(a.size(), b.size());
        if (l > 0) continue;  // of layer 0 the bias is the mean
        for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 0.05) << i;
      }
    }
  }
}

}  // namespace
}  // namespace lathe
