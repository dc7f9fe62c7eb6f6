#include "cli/bench_model.h"

#include "base/progress.h"
#include "formats/random_checkpoint.h"

namespace lathe {

BenchModel::BenchModel(const std::string& path, const ModelFlags& flags,
                       const std::string& random_weights, bool quiet, Exec& exec) {
  if (random_weights.empty()) {
    loaded_.emplace(path, flags, exec, LoadOptions{.quiet = quiet});
    return;
  }
  random_kv_.emplace(flags);
  RandomWeights weights;
  if (random_weights != "bf16") weights.format = weight_format_from_name(random_weights);
  checkpoint_ = open_random_checkpoint(path, weights);
  ModelOptions options = model_options(flags);
  Progress progress("making " + path, checkpoint_->config().num_layers, "layers", quiet);
  options.on_layer_loaded = [&](int64_t done, int64_t) {
    progress.advance(done - progress.done());
  };
  random_kv_->load(*checkpoint_, exec);
  random_ = Model::load(*checkpoint_, options, exec);
}

}  // namespace lathe
