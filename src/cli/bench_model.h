// The model that 'lathe bench' measures: with its own weights, or with random ones of its shape.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "cli/kv_flags.h"
#include "cli/loaded_model.h"
#include "model/model.h"

namespace lathe {

class BenchModel {
 public:
  // random_weights: a format, "bf16", or empty: the model's own. kv_variant: of the codec that is
  // made up where random weights and --kv aqua2 or the like come without a file. Throws what
  // loading does, and kInvalidArgument for an unknown format or variant. quiet: no progress.
  BenchModel(const std::string& path, const ModelFlags& flags, const std::string& random_weights,
             const std::string& kv_variant, bool quiet, Exec& exec);

  Model& model() const { return random_ != nullptr ? *random_ : loaded_->model(); }
  const RunningKv& kv() const { return random_kv_ ? *random_kv_ : loaded_->kv(); }
  double load_seconds() const { return loaded_ ? loaded_->load_seconds() : 0; }

 private:
  std::optional<LoadedModel> loaded_;
  std::optional<RunningKv> random_kv_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Model> random_;
};

}  // namespace lathe
