// Host memory to the GPU, for every stream.
#pragma once
#include <cstdint>

namespace lathe {

// Done at return: kernels on any stream find the bytes there.
void copy_to_device(void* to, const void* from, int64_t num_bytes);

}  // namespace lathe
