#include "comm/launch.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <initializer_list>
#include <string_view>
#include <thread>

#include "base/error.h"

namespace lathe {
namespace {

// The first of the variables that is a number from 0 to 10^6; -1: none.
int number_from(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* text = std::getenv(name);
    if (text == nullptr) continue;
    const std::string_view view(text);
    int value = -1;
    const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
    if (error == std::errc() && end == view.data() + view.size() && value >= 0 &&
        value <= 1000000) {
      return value;
    }
  }
  return -1;
}

}  // namespace

Launch launched() {
  Launch launch;
  const int size = number_from({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"});
  const int rank = number_from({"OMPI_COMM_WORLD_RANK", "PMI_RANK"});
  if (size < 1 || rank < 0 || rank >= size) return launch;
  const int on_host = number_from({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"});
  return {rank, size, on_host >= 1 ? on_host : size};
}

void wait_for_turn() {
  // mpirun of Open MPI 4.1 takes up to a second to end the others of a rank that exits.
  std::this_thread::sleep_for(std::chrono::milliseconds(1500) * std::min(launched().rank, 4));
}

void require_one_process(const char* command) {
  if (launched().size > 1) {
    fail(ErrorCode::kUnsupported, "'", command, "' is the work of one process; of mpirun's ",
         launched().size, " each would do the same. quantize, fit-kv and fit-judge share work out");
  }
}

}  // namespace lathe
