// The Cholesky factor that drives GPTQ's column loop.
//
// GPTQ visits the columns of W in some order and moves each column's rounding error into the
// columns not yet visited. Written with the factor H = R R^T, R upper triangular in that order, the
// output error of D = W - W^ is |D R|^2, and column c of D R depends on the columns up to c only:
//   (D R)_c = sum_{i < c} D_i R_ic + D_c R_cc.
// So the best real value for column c, the others given, is  t_c = w_c + sum_{i<c} D_i R_ic / R_cc,
// and GPTQ rounds exactly that: it is Babai's nearest-plane algorithm. Compared with the published
// form (upper Cholesky factor U of H^-1, U = R^-1) this needs no inverse: one factorisation, a
// third of k^3 flops instead of four thirds, and loses less to rounding. Source: Frantar et al.,
// "GPTQ" (2023); Chen et al., "The geometry of LLM quantization: GPTQ as Babai's nearest plane
// algorithm" (2025); spec/mr-gptq.md 4.3.
#pragma once
#include <cstdint>
#include <vector>

#include "tensor/buffer.h"
#include "tensor/exec.h"

namespace lathe {

enum class ColumnOrder {
  kNatural,     // left to right
  kActivation,  // by descending diagonal of H ("static activation order": scales stay where they
                // are)
};

// The columns in the order of visiting; equal ones keep their order. diagonal: of H, undamped.
std::vector<int32_t> visiting_order(const std::vector<float>& diagonal, ColumnOrder order);

// What is done to the diagonal before the factorisation.
struct HessianDiagonal {
  double mean = 1;  // what the damping is relative to; 1 without any calibration data
  int64_t dead_columns = 0;
};
HessianDiagonal judge_diagonal(const std::vector<float>& diagonal);

// How often the damping is raised tenfold before factor_hessian() gives up, with the error that
// says so.
inline constexpr int kMaxEscalations = 3;
[[noreturn]] void fail_not_positive_definite(int64_t k, double damping);

struct HessianFactor {
  int64_t k = 0;
  std::vector<int32_t> order;  // order[c] is the column of W that is visited as number c
  // R[i][c] / R[c][c] for i < c, in visiting order; the rest of the memory is not meaningful.
  Buffer normalised;
  std::vector<float> pivot;  // R[c][c]
  double damping = 0;        // relative, the one that worked
  double added = 0;          // damping * mean(diag H), what was added to the diagonal
  int escalations = 0;       // times that the damping had to be raised tenfold
  int64_t dead_columns = 0;  // inputs that were always zero: their columns are rounded to nearest
};

// h: [k, k], full and symmetric; it is not changed. The diagonal gets damping * mean(diag H) added,
// after the order is chosen. When the factorisation fails, the damping is raised tenfold, up to
// three times; then Error(kInvalidArgument): never a silent fall-back.
HessianFactor factor_hessian(const float* h, int64_t k, ColumnOrder order, double damping,
                             Exec& exec);

}  // namespace lathe
