// A model that N ranks run together, each with its part of every weight and of the cache
// (formats/sharded_checkpoint.h): N GPUs of one host, or, to test the same code, N groups of the
// CPU's threads. To its caller it is a Model like any other: a step is handed to all ranks, rank 0
// on the calling thread, and logits and tokens are rank 0's.
//
// Against one rank, sums over the inputs of o and down are made of N parts, each rounded to what
// runs between the kernels (fp32; bf16 on a GPU), so tokens are the same up to near-ties. Quantized
// activations with a scale for each group are the same numbers; a scale for each row (fp8, and what
// MXFP4 weights multiply with in steps of more than 16 rows on a GPU; NVFP4 without a calibrated
// scale) is that of the rank's part of the row in o and down: never coarser than the whole row's.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "formats/checkpoint.h"
#include "kernels/collective/collective.h"
#include "model/model.h"

namespace lathe {

// Over options.tensor_parallel ranks: the GPUs exec.cuda_device, exec.cuda_device + 1, ..., or CPU
// threads shared out. Throws what Model::load() throws; kUnsupported where the model cannot be
// split, or NCCL is not there.
std::unique_ptr<Model> load_tensor_parallel_model(const Checkpoint& checkpoint,
                                                  const ModelOptions& options, Exec& exec);

// The same with collectives and ranks of the caller's choosing. `load` makes one rank's model, of
// shard_config(), on the rank's thread; the collective and the exec outlive it. A step that fails
// on one rank ends on all with that rank's error; from then on every step fails.
using RankLoader = std::function<std::unique_ptr<Model>(Collective& collective, Exec& exec)>;
std::unique_ptr<Model> make_tensor_parallel_model(
    const ModelConfig& config, std::vector<std::unique_ptr<Collective>> collectives,
    const RankLoader& load, const Exec& exec);

}  // namespace lathe
