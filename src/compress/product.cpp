#include "compress/product.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/features.h"
#include "kernels/registry.h"

namespace lathe {

void add_product_ref(const ProductArgs& args, float*) {
  for (int64_t i = 0; i < args.rows; ++i) {
    float* c = args.c + i * args.c_stride;
    for (int64_t t = 0; t < args.depth; ++t) {
      const float a = args.a[t * args.a_stride + i];
      const float factor = args.subtract ? -a : a;
      const float* b = args.b + t * args.b_stride;
      for (int64_t j = std::max<int64_t>(0, i - args.diagonal); j < args.columns; ++j) {
        c[j] += factor * b[j];
      }
    }
  }
}

namespace {

bool has_two_terms() {
#if defined(__x86_64__)
  return allowed_kernel_level() >= kernel_level("amx");
#else
  return false;
#endif
}

}  // namespace

int64_t best_product_block(bool in_two_terms) {
  return in_two_terms && has_two_terms() ? kMaxProductBlock : kProductBlock;
}

bool product_is_fused() {
#if defined(__x86_64__)
  return machine_has(kAvx2);
#else
  return false;
#endif
}

void add_product_block(const ProductArgs& args, float* scratch) {
  LATHE_CHECK(args.rows <= kMaxProductBlock && args.columns <= kMaxProductBlock);
#if defined(__x86_64__)
  if (args.in_two_terms && has_two_terms()) {
    return add_product_amx(args, scratch);
  }
  if (machine_has(kAvx512)) return add_product_avx512(args, scratch);
  if (machine_has(kAvx2)) return add_product_avx2(args, scratch);
#endif
  add_product_ref(args, scratch);
}

void add_product(const ProductArgs& args, Exec& exec, int64_t block) {
  if (block == 0) block = best_product_block(args.in_two_terms);
  const int64_t row_blocks = (args.rows + block - 1) / block;
  const int64_t column_blocks = (args.columns + block - 1) / block;
  const Workspace::Scope scope(exec.workspace);
  float* scratch =
      exec.workspace.allocate_as<float>(exec.threads.num_threads() * product_scratch_floats());
  exec.threads.parallel_for(
      row_blocks * column_blocks, 1, [&](int64_t begin, int64_t end, int thread_idx) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i / column_blocks * block;
          const int64_t column = i % column_blocks * block;
          ProductArgs part = args;
          part.rows = std::min(block, args.rows - row);
          part.columns = std::min(block, args.columns - column);
          part.diagonal = args.diagonal + column - row;
          if (part.columns - 1 + part.diagonal < 0) continue;  // all of it lies below the diagonal
          part.a += row;
          part.b += column;
          part.c += row * args.c_stride + column;
          add_product_block(part, scratch + thread_idx * product_scratch_floats());
        }
      });
}

}  // namespace lathe
