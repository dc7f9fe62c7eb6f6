// How much memory and processor time this process has used.
#pragma once
#include <cstdint>

namespace lathe {

// The largest resident set so far, in bytes (mapped model files count while they are resident).
int64_t peak_memory_bytes();

// What the system, and the limit of the container that this runs in, can still give without
// swapping. 0 when neither says.
int64_t available_memory_bytes();

// Processor time of all threads so far, in seconds.
double processor_seconds();

}  // namespace lathe
