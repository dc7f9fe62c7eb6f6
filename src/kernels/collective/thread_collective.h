// Collective of threads that compute on the CPU, through their shared memory.
#pragma once
#include <memory>
#include <vector>

#include "kernels/collective/collective.h"

namespace lathe {

// One for each rank. Sums are in double, in the order of ranks, rounded once.
std::vector<std::unique_ptr<Collective>> make_thread_collectives(int size);

}  // namespace lathe
