// C += A^T B, where calibration spends what it does not spend in the model: Hessians (A = B), the
// errors that GPTQ moves into later columns, Cholesky factors. Own code: OpenBLAS knows the
// processors of its own time only and falls back to 256-bit or even 128-bit kernels on newer ones.
//
// Every element of C is one chain of fused multiply-adds in the order of the rows of A and B, so
// the result depends neither on the number of threads nor on the width of the vectors. (Without
// FMA, products are rounded before they are added.) With in_two_terms, machines with AMX may take
// factors as two numbers of bf16, which leaves up to 2^-17 of each and 2^-16 of their product out,
// and add them 32 rows at a time.
#pragma once
#include <cstdint>
#include <limits>

#include "tensor/exec.h"

namespace lathe {

// Plain data. c may not overlap a or b.
struct ProductArgs {
  int64_t depth = 0;         // rows of a and b; 0 is a no-op
  const float* a = nullptr;  // [depth, rows]
  int64_t a_stride = 0;
  const float* b = nullptr;  // [depth, columns]
  int64_t b_stride = 0;
  float* c = nullptr;  // [rows, columns]
  int64_t c_stride = 0;
  int64_t rows = 0;
  int64_t columns = 0;
  // Elements (i, j) with i > j + diagonal are not wanted; they are undefined afterwards.
  int64_t diagonal = std::numeric_limits<int64_t>::max() / 2;
  bool subtract = false;  // C -= A^T B
  bool in_two_terms = false;
};

inline constexpr int64_t kProductBlock = 192;
inline constexpr int64_t kMaxProductBlock = 384;
// The best block: larger where two terms are taken, since preparing the factors costs more there.
int64_t best_product_block(bool in_two_terms);

// With the threads of exec, in blocks of `block` rows and columns (0: the best). Scratch comes from
// exec.workspace.
void add_product(const ProductArgs& args, Exec& exec, int64_t block = 0);

// In this thread; scratch: product_scratch_floats(). rows and columns are at most kMaxProductBlock.
void add_product_block(const ProductArgs& args, float* scratch);

inline constexpr int64_t kProductDepth = 128;  // rows of a and b that are packed at a time
constexpr int64_t product_scratch_floats() {
  return 2 * kMaxProductBlock * kProductDepth + 32 * 32;
}

// Whether products are fused on this machine: those who share one sum must agree.
bool product_is_fused();

// The versions, for tests; each as add_product_block().
void add_product_ref(const ProductArgs& args, float* scratch);
void add_product_avx2(const ProductArgs& args, float* scratch);
void add_product_avx512(const ProductArgs& args, float* scratch);
void add_product_amx(const ProductArgs& args, float* scratch);

}  // namespace lathe
