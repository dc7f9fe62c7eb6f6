// The model on a GPU: the counterpart of decoder.cpp.
#pragma once
#include <memory>

#include "formats/checkpoint.h"
#include "kernels/collective/collective.h"
#include "model/model.h"
#include "tensor/exec.h"

namespace lathe {

// Loads the checkpoint to GPU exec.cuda_device. Throws what Model::load() throws, kDevice without a
// usable GPU, kOutOfMemory when it does not fit. With a collective it is one rank's part, as
// load_cpu_model() (model/decoder.h) says.
std::unique_ptr<Model> load_cuda_model(const Checkpoint& checkpoint, const ModelOptions& options,
                                       Exec& exec, Collective* collective = nullptr);

}  // namespace lathe
