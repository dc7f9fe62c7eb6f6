#include "compress/gram.h"

#include <algorithm>
#include <vector>

#include "compress/product.h"

namespace lathe {
namespace {

// Block number i of a matrix of num_blocks^2 blocks, row after row.
struct Block {
  int64_t row, column;  // of its first element
  int64_t num_rows, num_columns;
  bool is_below;   // the diagonal, all of it
  int64_t number;  // among those that are not
};
Block block_at(int64_t i, int64_t num_blocks, int64_t block, int64_t k) {
  const int64_t row = i / num_blocks;
  const int64_t column = i % num_blocks;
  return {.row = row * block,
          .column = column * block,
          .num_rows = std::min(block, k - row * block),
          .num_columns = std::min(block, k - column * block),
          .is_below = column < row,
          .number = i - row * (row + 1) / 2};
}

}  // namespace

void add_gram(int64_t m, int64_t k, const float* x, float* c, Exec& exec, const GramShare& share,
              bool in_two_terms) {
  const int64_t num_threads = exec.threads.num_threads();
  // Smaller blocks where there would be too few for the threads; the bits are the same.
  int64_t block = share.parts > 1 ? kProductBlock : best_product_block(in_two_terms);
  const int64_t num_pieces = share.parts > 1 ? 2 * share.parts : num_threads;
  while (block > 96 && k * k < 8 * num_pieces * block * block) block /= 2;
  const int64_t num_blocks = (k + block - 1) / block;
  const Workspace::Scope scope(exec.workspace);
  float* scratch = exec.workspace.allocate_as<float>(num_threads * product_scratch_floats());
  exec.threads.parallel_for(num_blocks * num_blocks, 1,
                            [&](int64_t begin, int64_t end, int thread_idx) {
                              for (int64_t i = begin; i < end; ++i) {
                                const Block at = block_at(i, num_blocks, block, k);
                                if (at.is_below || at.number % share.parts != share.part) continue;
                                add_product_block({.depth = m,
                                                   .a = x + at.row,
                                                   .a_stride = k,
                                                   .b = x + at.column,
                                                   .b_stride = k,
                                                   .c = c + at.row * k + at.column,
                                                   .c_stride = k,
                                                   .rows = at.num_rows,
                                                   .columns = at.num_columns,
                                                   .diagonal = at.column - at.row,
                                                   .in_two_terms = in_two_terms},
                                                  scratch + thread_idx * product_scratch_floats());
                              }
                            });
}

double gram_dot(int64_t n, int64_t k, const float* d, const float* h, Exec& exec) {
  constexpr int64_t kRows = 512;
  constexpr int64_t kTile = kProductBlock * kProductBlock;
  const int64_t num_threads = exec.threads.num_threads();
  const int64_t num_blocks = (k + kProductBlock - 1) / kProductBlock;
  const Workspace::Scope scope(exec.workspace);
  const int64_t stride = product_scratch_floats() + kTile;
  float* scratch = exec.workspace.allocate_as<float>(num_threads * stride);
  std::vector<double> sums(static_cast<std::size_t>(num_blocks * num_blocks), 0.0);
  exec.threads.parallel_for(
      num_blocks * num_blocks, 1, [&](int64_t begin, int64_t end, int thread_idx) {
        float* own = scratch + thread_idx * stride;
        float* tile = own + product_scratch_floats();
        for (int64_t i = begin; i < end; ++i) {
          const Block at = block_at(i, num_blocks, kProductBlock, k);
          if (at.is_below) continue;
          double sum = 0;
          for (int64_t first = 0; first < n; first += kRows) {
            std::fill_n(tile, at.num_rows * at.num_columns, 0.0f);
            add_product_block({.depth = std::min(kRows, n - first),
                               .a = d + first * k + at.row,
                               .a_stride = k,
                               .b = d + first * k + at.column,
                               .b_stride = k,
                               .c = tile,
                               .c_stride = at.num_columns,
                               .rows = at.num_rows,
                               .columns = at.num_columns,
                               .diagonal = at.column - at.row,
                               .in_two_terms = true},
                              own);
            for (int64_t r = 0; r < at.num_rows; ++r) {
              const float* weights = h + (at.row + r) * k + at.column;
              const float* products = tile + r * at.num_columns;
              int64_t j = std::max<int64_t>(0, at.row + r - at.column);
              double row = 0;
              if (at.row + r == at.column + j) {  // an element of the diagonal counts once
                row = 0.5 * double{weights[j]} * double{products[j]};
                ++j;
              }
              for (; j < at.num_columns; ++j) row += double{weights[j]} * double{products[j]};
              sum += row;
            }
          }
          sums[static_cast<std::size_t>(i)] = 2 * sum;
        }
      });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace lathe
