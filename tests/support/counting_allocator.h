// Counts heap allocations of the whole process, for tests that a path allocates nothing. Works with
// glibc: counting_allocator.cpp stands in front of its malloc family. Under a sanitizer, which
// brings its own, available() is false.
#pragma once
#include <cstdint>

namespace lathe {

bool counting_allocator_available();
int64_t num_allocations();

}  // namespace lathe
