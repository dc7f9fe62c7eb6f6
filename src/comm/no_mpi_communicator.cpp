// make_communicator() of a build without MPI.
#include "base/error.h"
#include "comm/launch.h"

namespace lathe {

std::unique_ptr<Communicator> make_communicator() {
  if (launched().size > 1) {
    fail(ErrorCode::kUnsupported, "this lathe was built without MPI, so mpirun's ", launched().size,
         " processes would all do the same work; run it without mpirun, or install MPI "
         "(scripts/install-deps) and build with -DLATHE_MPI=ON");
  }
  return std::make_unique<SoloCommunicator>();
}

}  // namespace lathe
