// make_nccl_collectives() of a build without NCCL's header.
#include "base/error.h"
#include "kernels/collective/nccl_collective.h"

namespace lathe {

std::vector<std::unique_ptr<Collective>> make_nccl_collectives(int, int size) {
  fail(
      ErrorCode::kUnsupported, "--tensor-parallel ", size,
      ": this lathe was built without NCCL; install it (nccl.h, libnccl.so.2), configure again and "
      "build");
}

}  // namespace lathe
