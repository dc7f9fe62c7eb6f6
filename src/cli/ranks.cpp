#include "cli/ranks.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <new>

#include "base/error.h"
#include "cli/failure.h"
#include "comm/launch.h"

namespace lathe {
namespace {

void end_job(Communicator& ranks, int exit_code, const std::string& message) {
  wait_for_turn();
  print_failure(rank_name(ranks, ranks.rank()) + ": " + message);
  ranks.abort(exit_code);
}

}  // namespace

void run_on_ranks(const std::function<void(Communicator& ranks)>& body) {
  const std::unique_ptr<Communicator> ranks = make_communicator();
  if (ranks->size() == 1) {
    body(*ranks);
    return;
  }
  try {
    body(*ranks);
  } catch (const Error& error) {
    end_job(*ranks, exit_code_of(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    end_job(*ranks, kFailed, "out of memory");
  } catch (const std::exception& error) {
    end_job(*ranks, kFailed, std::string("internal error: ") + error.what());
  }
}

void divide_threads(CommonFlags& flags) {
  const int on_host = launched().size_on_host;
  if (flags.threads != 0 || on_host == 1) return;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return;
  const int allowed = CPU_COUNT(&set);
  const auto all = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (allowed < all) return;  // the launcher has bound this process
  flags.threads = std::max(1, allowed / on_host);
}

}  // namespace lathe
