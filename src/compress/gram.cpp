#include "compress/gram.h"

#include <algorithm>

#include "compress/blas.h"
#include "kernels/features.h"
#include "kernels/registry.h"

namespace lathe {

bool gram_divides() {
#if defined(__x86_64__)
  return machine_has(kAvx512);
#else
  return false;
#endif
}

void add_gram(int64_t m, int64_t k, const float* x, float* c, Exec& exec, const GramShare& share) {
#if defined(__x86_64__)
  if (machine_has(kAvx512)) {
    const int64_t num_threads = exec.threads.num_threads();
    // Smaller blocks where there would be too few for the threads; the bits are the same.
    int64_t block = kGramBlock;
    const int64_t num_pieces = share.parts > 1 ? 2 * share.parts : num_threads;
    while (block > 96 && k * k < 8 * num_pieces * block * block) block /= 2;
    const int64_t num_blocks = (k + block - 1) / block;
    const Workspace::Scope scope(exec.workspace);
    float* scratch = exec.workspace.allocate_as<float>(num_threads * gram_scratch_floats());
    exec.threads.parallel_for(
        num_blocks * num_blocks, 1, [&](int64_t begin, int64_t end, int thread_idx) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t row = i / num_blocks * block;
            const int64_t column = i % num_blocks * block;
            if (column < row) continue;
            const int64_t above = (i / num_blocks) * (i / num_blocks + 1) / 2;  // left out so far
            if ((i - above) % share.parts != share.part) continue;
            add_gram_block_avx512(m, k, x, row, std::min(k, row + block), column,
                                  std::min(k, column + block), c,
                                  scratch + thread_idx * gram_scratch_floats());
          }
        });
    return;
  }
#endif
  if (share.part != 0) return;
  const BlasThreads threads(exec.threads.num_threads());
  add_gram_upper(m, k, 1.0f, x, c);
}

}  // namespace lathe
