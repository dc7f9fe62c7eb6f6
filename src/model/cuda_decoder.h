// The model on a GPU: the counterpart of decoder.cpp.
#pragma once
#include <memory>

#include "formats/checkpoint.h"
#include "model/model.h"
#include "tensor/exec.h"

namespace lathe {

// Loads the checkpoint to GPU exec.cuda_device. Throws what Model::load() throws, kDevice without a
// usable GPU, kOutOfMemory when it does not fit.
std::unique_ptr<Model> load_cuda_model(const Checkpoint& checkpoint, const ModelOptions& options,
                                       Exec& exec);

}  // namespace lathe
