// How this process was started, and the communicator that follows from it.
#pragma once
#include <memory>

#include "comm/communicator.h"

namespace lathe {

// What a launcher (mpirun of Open MPI and MPICH, srun with PMI-2) left in the environment; {0, 1,
// 1} without one.
struct Launch {
  int rank = 0;
  int size = 1;
  int size_on_host = 1;  // ranks on this machine; `size` where the launcher does not say
};
Launch launched();

// MPI's under a launcher of more than one process; a process alone otherwise. At most one at a
// time, made once in a process. Throws kUnsupported under a launcher when lathe was built without
// MPI: its processes would not know of one another and write the same files.
std::unique_ptr<Communicator> make_communicator();

// Before a failure is reported. Where all processes of a launcher fail of the same thing (a wrong
// flag, a full disk), the lowest one speaks: the launcher, or MPI, ends the others while they wait
// here. At once for rank 0.
void wait_for_turn();

// For commands that work in one process only: throws kUnsupported under a launcher of several.
void require_one_process(const char* command);

}  // namespace lathe
