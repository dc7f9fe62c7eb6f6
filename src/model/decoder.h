// The model on a CPU.
#pragma once
#include <memory>

#include "formats/checkpoint.h"
#include "kernels/collective/collective.h"
#include "model/model.h"
#include "tensor/exec.h"

namespace lathe {

// Loads the checkpoint for the CPU's kernels. Throws what Model::load() throws. With a collective
// it is one rank's part (formats/sharded_checkpoint.h) of a model that all ranks step through
// together; the collective must outlive it. forward() then writes logits on rank 0 only, and all
// ranks must agree on whether they are wanted (logits != null).
std::unique_ptr<Model> load_cpu_model(const Checkpoint& checkpoint, const ModelOptions& options,
                                      Exec& exec, Collective* collective = nullptr);

}  // namespace lathe
