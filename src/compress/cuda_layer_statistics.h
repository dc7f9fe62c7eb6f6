// LayerStatistics of inputs that are on a GPU: what a calibration pass there calls for every input
// of a linear layer, and once at its end.
#pragma once
#include <cstdint>

#include "compress/layer_pass.h"
#include "tensor/cuda_stream.h"

namespace lathe {

// x: [rows, k] in memory of the current device, dense; it may be overwritten by what is enqueued on
// the stream afterwards. All calls for one layer name the same stream. Kinds that the options do
// not ask for are passed over. Only enqueues work, but for the first input of a kind and expert,
// which allocates.
void add_cuda_input(LayerStatistics& statistics, const CollectOptions& options, bool held_out,
                    LinearKind kind, int64_t expert, const float* x, int64_t rows, int64_t k,
                    CudaStream stream);

// After the last input: fills rotated_amax. Waits. Throws kInvalidArgument when an input was a NaN
// or an infinity.
void finish_cuda_inputs(LayerStatistics& statistics);

// Moves what is on the GPU into the statistics of the CPU; nothing to do where nothing is.
void bring_to_host(LayerStatistics& statistics);

}  // namespace lathe
