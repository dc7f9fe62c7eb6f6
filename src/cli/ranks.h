// A command's work on all ranks of the job that it runs in (comm/communicator.h).
#pragma once
#include <functional>

#include "cli/flags.h"
#include "comm/communicator.h"

namespace lathe {

// Runs body with this process's communicator. What leaves it as an exception on one of several
// ranks is printed with the rank and its host, and ends the processes of all: the others may be
// waiting for this one anywhere.
void run_on_ranks(const std::function<void(Communicator& ranks)>& body);

// With --threads not given, several ranks of one machine divide its processors where they have not
// been bound to different ones.
void divide_threads(CommonFlags& flags);

}  // namespace lathe
