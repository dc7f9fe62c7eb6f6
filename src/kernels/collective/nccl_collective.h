// Collective of threads that each drive a GPU of this host, by NCCL. The library is opened when it
// is first asked for (libnccl.so.2), so lathe runs without it where one GPU does.
#pragma once
#include <memory>
#include <vector>

#include "kernels/collective/collective.h"

namespace lathe {

// One for each of the GPUs first_device, first_device + 1, ..., connected and tried out. To be
// called before anything else of the process uses a GPU: it says how NCCL and CUDA are to start
// (without NVLink multicast; kernels loaded in advance, since loading one may wait for a GPU that
// waits for another). Throws kDevice without those GPUs, kUnsupported without NCCL (or built
// without its header). A collective must be destroyed at the same time as the others, each by its
// own thread.
std::vector<std::unique_ptr<Collective>> make_nccl_collectives(int first_device, int size);

}  // namespace lathe
