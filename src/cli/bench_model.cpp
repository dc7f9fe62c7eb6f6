#include "cli/bench_model.h"

#include "base/progress.h"
#include "cli/key_means.h"
#include "cli/kv_speed.h"
#include "formats/random_checkpoint.h"

namespace lathe {

BenchModel::BenchModel(const std::string& path, const ModelFlags& flags,
                       const std::string& random_weights, const std::string& kv_variant, bool quiet,
                       Exec& exec) {
  if (random_weights.empty()) {
    loaded_.emplace(path, flags, exec, LoadOptions{.quiet = quiet});
    return;
  }
  random_kv_.emplace(flags);
  random_kv_->check_device(exec);
  RandomWeights weights;
  if (random_weights != "bf16") weights.format = weight_format_from_name(random_weights);
  checkpoint_ = open_random_checkpoint(path, weights);
  ModelOptions options = model_options(flags);
  Progress progress("making " + path, checkpoint_->config().num_layers, "layers", quiet);
  options.on_layer_loaded = [&](int64_t done, int64_t) {
    progress.advance(done - progress.done());
  };
  const KvChoice kv = kv_choice(flags);
  if (kv.coded && flags.kv_codec.empty()) {
    const ModelConfig& config = checkpoint_->config();
    random_kv_->take(made_up_kv_codec(config, kv_variant, kv.bits), config);
  } else {
    random_kv_->load(*checkpoint_, exec);
  }
  random_ = Model::load(*checkpoint_, options, exec);
  if (leaves_key_means_out(random_kv_->live_format(), exec)) {
    // Attention as it is with a real model, at its price.
    const std::vector<int32_t> text(8, 0);
    random_->learn_key_means({&text, 1}, exec);
  }
}

}  // namespace lathe
