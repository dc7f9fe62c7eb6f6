#include "compress/hessian_factor.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "compress/cholesky.h"

namespace lathe {
namespace {

// (i, c) and (k - 1 - c, k - 1 - i) of the upper triangle change places. In tiles: one of the two
// walks down a column.
void mirror_at_other_diagonal(int64_t k, float* a, Exec& exec) {
  constexpr int64_t kTile = 32;
  exec.threads.parallel_for((k + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t ti = begin * kTile; ti < std::min(k, end * kTile); ti += kTile) {
      for (int64_t tc = ti; tc < k - 1 - ti; tc += kTile) {
        for (int64_t i = ti; i < ti + kTile; ++i) {
          for (int64_t c = std::max(tc, i); c < std::min(tc + kTile, k - 1 - i); ++c) {
            std::swap(a[i * k + c], a[(k - 1 - c) * k + (k - 1 - i)]);
          }
        }
      }
    }
  });
}

}  // namespace

std::vector<int32_t> visiting_order(const std::vector<float>& diagonal, ColumnOrder order) {
  std::vector<int32_t> columns(diagonal.size());
  std::iota(columns.begin(), columns.end(), 0);
  if (order == ColumnOrder::kActivation) {
    std::stable_sort(columns.begin(), columns.end(), [&](int32_t a, int32_t b) {
      return diagonal[static_cast<std::size_t>(a)] > diagonal[static_cast<std::size_t>(b)];
    });
  }
  return columns;
}

HessianDiagonal judge_diagonal(const std::vector<float>& diagonal) {
  HessianDiagonal out;
  double trace = 0;
  for (const float entry : diagonal) {
    trace += double{entry};
    out.dead_columns += entry == 0;
  }
  // No calibration data at all, or only zeros: H = I rounds to nearest.
  if (trace > 0) out.mean = trace / static_cast<double>(diagonal.size());
  return out;
}

void fail_not_positive_definite(int64_t k, double damping) {
  fail(ErrorCode::kInvalidArgument, "the Hessian of ", k,
       " inputs is not positive definite even with damping ", damping,
       "; calibrate with more or other text, or raise the damping");
}

HessianFactor factor_hessian(const float* h, int64_t k, ColumnOrder order, double damping,
                             Exec& exec) {
  HessianFactor factor;
  factor.k = k;
  std::vector<float> diagonal(static_cast<std::size_t>(k));
  for (int64_t j = 0; j < k; ++j) diagonal[static_cast<std::size_t>(j)] = h[j * k + j];
  factor.order = visiting_order(diagonal, order);
  const auto [mean, dead_columns] = judge_diagonal(diagonal);
  factor.dead_columns = dead_columns;

  factor.normalised = Buffer(k * k * static_cast<int64_t>(sizeof(float)));
  float* a = factor.normalised.as<float>();
  const int32_t* columns = factor.order.data();
  for (double relative = damping;; relative *= 10) {
    // Factorise in reversed order, J H J = U^T U; then R = J U^T J is upper triangular and
    // H = R R^T: R is U mirrored at the other diagonal.
    const auto added = static_cast<float>(relative * mean);
    const auto dead_pivot = static_cast<float>(mean);
    exec.threads.parallel_for(k, 32, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t hi = columns[k - 1 - i];
        for (int64_t j = i; j < k; ++j) a[i * k + j] = h[hi * k + columns[k - 1 - j]];
        // A dead input: its row and column are zero, any pivot keeps it apart from the others.
        if (a[i * k + i] == 0) a[i * k + i] = dead_pivot;
        a[i * k + i] += added;
      }
    });
    if (cholesky_upper(k, a, exec)) {
      factor.damping = relative;
      factor.added = double{added};
      break;
    }
    if (factor.escalations == kMaxEscalations) fail_not_positive_definite(k, relative);
    ++factor.escalations;
  }

  mirror_at_other_diagonal(k, a, exec);
  factor.pivot.resize(static_cast<std::size_t>(k));
  std::vector<float> inverse(static_cast<std::size_t>(k));
  for (int64_t c = 0; c < k; ++c) {
    factor.pivot[static_cast<std::size_t>(c)] = a[c * k + c];
    inverse[static_cast<std::size_t>(c)] = 1.0f / a[c * k + c];
  }
  exec.threads.parallel_for(k, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t c = i + 1; c < k; ++c) a[i * k + c] *= inverse[static_cast<std::size_t>(c)];
    }
  });
  return factor;
}

}  // namespace lathe
