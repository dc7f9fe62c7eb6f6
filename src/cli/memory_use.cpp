#include "cli/memory_use.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace lathe {

int64_t peak_memory_bytes() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;  // Linux counts KiB
}

double processor_seconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

namespace {

// The number behind `name` in a file of lines "name number"; nothing: 0.
int64_t number_in(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::string key, rest;
  for (int64_t value = 0; file >> key >> value; std::getline(file, rest)) {
    if (key == name) return value;
  }
  return 0;
}

// What a container's limit leaves, file pages not counted: they give way. Where there is none:
// INT64_MAX.
int64_t bytes_within_cgroup() {
  const std::string folder = "/sys/fs/cgroup/";
  int64_t limit = 0, used = 0;  // "max" is no number
  if (!(std::ifstream(folder + "memory.max") >> limit)) return INT64_MAX;
  if (!(std::ifstream(folder + "memory.current") >> used)) return INT64_MAX;
  return std::max<int64_t>(1, limit - used + number_in(folder + "memory.stat", "file"));
}

}  // namespace

int64_t available_memory_bytes() {
  return std::min(number_in("/proc/meminfo", "MemAvailable:") * 1024, bytes_within_cgroup());
}

}  // namespace lathe
