#include "support/counting_allocator.h"

#include <atomic>
#include <cstddef>

#include "support/sanitizers.h"

#if defined(__GLIBC__) && !LATHE_SANITIZED
#define LATHE_COUNTS_ALLOCATIONS
#endif

namespace {
std::atomic<int64_t> count{0};
}

#ifdef LATHE_COUNTS_ALLOCATIONS
// operator new ends in malloc, Buffer in aligned_alloc.
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t n, std::size_t size);
void* __libc_realloc(void* p, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(n, size);
}
void* realloc(void* p, std::size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(p, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, size);
}
}
#endif

namespace lathe {

bool counting_allocator_available() {
#ifdef LATHE_COUNTS_ALLOCATIONS
  return true;
#else
  return false;
#endif
}

int64_t num_allocations() { return count.load(std::memory_order_relaxed); }

}  // namespace lathe
