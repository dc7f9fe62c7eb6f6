// plan_quantization(): what a run will take, from shapes and two short measurements.
#include <algorithm>
#include <vector>

#include "compress/quantize_model.h"
#include "compress/speed_probe.h"

namespace lathe {

QuantizePlan plan_quantization(const Checkpoint& source, const QuantizeOptions& options,
                               Exec& exec) {
  const ModelConfig& config = source.config();
  const bool calibrates = options.needs_calibration();
  const double tokens =
      calibrates ? static_cast<double>(options.samples) * static_cast<double>(options.seq_len) : 0;

  QuantizePlan plan;
  double linear_flops = 0;  // one forward pass of all tokens
  double gram_flops = 0;
  double gptq_flops = 0;
  double codes = 0;
  double largest_layer = 0;   // bytes of its weights in fp32
  double largest_inputs = 0;  // bytes of the Gram matrices of a layer
  double largest_k = 0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    double weights = 0;
    double inputs = 0;
    LinearKind previous = LinearKind::kDown;
    const std::vector<LinearSlot> slots = layer_slots(config, layer);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const LinearSlot& slot = slots[i];
      const auto n = static_cast<double>(slot.n);
      const auto k = static_cast<double>(slot.k);
      const double reached =
          slot.expert < 0 ? tokens
                          : tokens * static_cast<double>(config.num_experts_per_token) /
                                static_cast<double>(std::max<int64_t>(config.num_experts, 1));
      weights += n * k * 4;
      codes += n * k * bits_per_weight(options.format) / 8;
      linear_flops += 2 * reached * n * k;
      if (options.uses_gptq()) gptq_flops += 4 * n * k * k;  // column loop and two measured errors
      const bool new_input = i == 0 || slot.kind != previous || slot.expert != slots[i - 1].expert;
      if (new_input && calibrates) {
        inputs += k * k * 4;
        gram_flops += reached * k * k;
        if (options.uses_gptq()) gptq_flops += k * k * k / 3;
      }
      largest_k = std::max(largest_k, k);
      previous = slot.kind;
    }
    largest_layer = std::max(largest_layer, weights);
    largest_inputs = std::max(largest_inputs, inputs);
  }
  // Attention of every sequence against itself, causal.
  const double attention_flops = tokens * static_cast<double>(options.seq_len) *
                                 static_cast<double>(config.q_size()) * 2 *
                                 static_cast<double>(config.num_layers);

  plan.linear_gflops =
      measure_linear_gflops(std::min<int64_t>(config.hidden_size, 2048),
                            std::min<int64_t>(config.hidden_size, 2048), ComputeType::kF32, exec);
  plan.gram_gflops =
      measure_gram_gflops(std::min<int64_t>(static_cast<int64_t>(largest_k), 2048), exec);
  const double trials = static_cast<double>(options.hadamard.size() * options.damping.size());
  const double collecting = calibrates ? (options.sequential ? 4.0 : 1.0) : 0.0;
  const double passes = calibrates ? collecting + 1 : 0;
  plan.seconds = passes * (linear_flops + attention_flops) / (plan.linear_gflops * 1e9) +
                 gram_flops / (plan.gram_gflops * 1e9) +
                 gptq_flops * trials / (plan.gram_gflops * 1e9);

  double dense = 0;  // tensors that stay dense: embeddings, head, norms
  for (const std::string& name : source.tensor_names()) {
    if (!name.starts_with("model.layers.")) {
      dense += static_cast<double>(num_elements(source.tensor_shape(name))) * 2;
    }
  }
  plan.result_bytes = codes + dense;
  const double hidden = tokens * static_cast<double>(config.hidden_size) * 4;
  plan.disk_bytes = plan.result_bytes + 2 * hidden;

  // One layer as loaded, its packed copy in a pass, and what a step of 2048 rows needs; or the
  // layer with the Hessians, the factor of the largest and the trial codes; whichever is more.
  const double rows = static_cast<double>(std::max<int64_t>(options.seq_len, 2048));
  const double step =
      rows * 4 *
      (4 * static_cast<double>(config.hidden_size) +
       3 * static_cast<double>(std::max(config.intermediate_size, config.moe_intermediate_size)) +
       3 * static_cast<double>(config.q_size() + 2 * config.kv_size()));
  const double held_out = options.chooses() ? 2 : 1;
  const double calibrating = 3 * largest_layer + held_out * largest_inputs + step;
  const double quantizing =
      2 * largest_layer + held_out * largest_inputs +
      (options.uses_gptq() ? largest_k * largest_k * 4 * (options.hadamard.size() > 1 ? 3 : 1) : 0);
  plan.memory_bytes = std::max(calibrating, quantizing) + 64e6;
  return plan;
}

}  // namespace lathe
