#include "compress/scale_search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "compress/group_error.h"
#include "quant/encode.h"
#include "quant/fp8.h"

namespace lathe {
namespace {

bool is_third_grid(MxScaleRule rule) {
  return rule == MxScaleRule::kAbsmaxX3 || rule == MxScaleRule::kMsePow2X3;
}

// The stored forms that a group's scale may take, as numbers for store_scale().
class Candidates {
 public:
  void add(double stored) {
    if (stored >= 0 && count_ < kMax) stored_[count_++] = stored;
  }
  std::span<const double> all() const { return {stored_, static_cast<std::size_t>(count_)}; }

 private:
  static constexpr int kMax = 64;
  double stored_[kMax];
  int count_ = 0;
};

// amax: largest magnitude of the group, > 0.
Candidates exhaustive_candidates(const QuantizedMatrix& matrix, float amax) {
  const WeightFormat& format = matrix.format;
  const double limit = element_limit(format);
  const double absmax_scale = double{amax} * double{matrix.global_scale} / limit;
  Candidates out;
  switch (format.scale) {
    case ScaleType::kE4M3: {
      // Eight codes are one octave. Upwards to 1.6 times: E2M1 has a gap between 4 and 6, and a
      // group does better when its largest element lies at 4 than inside the gap.
      const int base = e4m3_from_double(absmax_scale);
      const int above = format.element == ElementType::kE2M1 ? 6 : 1;
      for (int byte = std::max(base - 8, 1); byte <= std::min(base + above, 126); ++byte) {
        out.add(double{e4m3_to_float(static_cast<uint8_t>(byte))});
      }
      if (base <= 1) out.add(0);
      return out;
    }
    case ScaleType::kE8M0: {
      // From twice the power of two that clips nothing, down to where most of the range is clipped.
      // fp8 elements gain nothing from any other scale.
      int exponent = std::ilogb(absmax_scale);
      if (std::ldexp(1.0, exponent) < absmax_scale) ++exponent;
      const bool fp8 = format.element == ElementType::kE4M3;
      for (int e = exponent - (fp8 ? 0 : 4); e <= exponent + (fp8 ? 0 : 1); ++e) {
        if (e >= -127 && e <= 127) out.add(std::ldexp(1.0, e));
      }
      if (out.all().empty()) out.add(std::ldexp(1.0, std::clamp(exponent, -127, 127)));
      return out;
    }
    case ScaleType::kLogLinear8: {
      // As many codes as there are between .6 and 1.6 times the absmax scale, 24 at most.
      out.add(absmax_scale);
      if (matrix.log_alpha <= 0) return out;
      const double alpha = matrix.log_alpha;
      const double beta = matrix.log_beta;
      const double low = (std::log2(0.6 * absmax_scale) - beta) / alpha;
      const double high = (std::log2(1.6 * absmax_scale) - beta) / alpha;
      const double step = std::max(1.0, (high - low) / 24);
      for (double q = std::ceil(low); q <= high; q += step) {
        out.add(std::exp2(alpha * std::clamp(std::nearbyint(q), 0.0, 255.0) + beta));
      }
      return out;
    }
    case ScaleType::kBF16:
    case ScaleType::kF16:
    case ScaleType::kF32: {
      // A fine scale: factors 1.05 down to .6 (a whole row: not below .8, its tail is long).
      out.add(absmax_scale);
      if (format.element == ElementType::kE4M3) return out;
      const int steps = format.group_size == 0 ? 11 : 19;
      for (int i = 0; i < steps; ++i) out.add(absmax_scale * (1.05 - 0.025 * i));
      return out;
    }
  }
  return out;
}

// The authors' search: unrounded trial scales, the first strict minimum.
double paper_grid_factor(const WeightFormat& format, const float* x, const float* weights,
                         int64_t n, double absmax_scale) {
  double best_factor = 1;
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 100; ++i) {
    const double factor = 1 - 0.008 * i;
    const double error = group_error(
        format, {.x = x, .weights = weights, .n = n, .scale = factor * absmax_scale}, 2.4);
    if (error < best) {
      best = error;
      best_factor = factor;
    }
  }
  return best_factor;
}

// The least-squares scale for the codes that `scale` gives: <x, e> / <e, e>.
double refitted_scale(const WeightFormat& format, const float* x, const float* weights, int64_t n,
                      double scale) {
  double xe = 0;
  double ee = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double e =
        double{element_value(format.element, encode_element(format, double{x[i]} / scale))};
    const double h = weights != nullptr ? double{weights[i]} : 1.0;
    xe += h * double{x[i]} * e;
    ee += h * e * e;
  }
  return ee > 0 && xe > 0 ? xe / ee : scale;
}

// Chooses and stores the scale of one group; returns the error that is left.
double choose_group(QuantizedMatrix& matrix, int64_t row, int64_t group, const float* x,
                    const float* weights, int64_t n, const ScaleSearchOptions& options) {
  const WeightFormat& format = matrix.format;
  const double global_scale = matrix.global_scale;
  const float amax = max_abs({x, static_cast<std::size_t>(n)});
  if (amax == 0) {
    // Zeros under any scale; byte 0 where there is one.
    store_scale(matrix, row, group, 0);
    return 0;
  }
  const auto error_of = [&](double stored) {
    return group_error(format, {.x = x, .weights = weights, .n = n, .scale = stored / global_scale},
                       options.norm);
  };
  if (options.search == ScaleSearch::kPaperGrid) {
    const double limit = element_limit(format);
    const double factor = paper_grid_factor(format, x, weights, n, double{amax} / limit);
    if (format.scale == ScaleType::kE8M0 && format.element == ElementType::kE2M1) {
      // The chosen scale passes through the rule as an absmax of its own.
      const float reduced[1] = {static_cast<float>(factor * double{amax})};
      matrix.scales.as<uint8_t>()[row * matrix.num_groups() + group] =
          mx_scale_byte(options.mx_rule, reduced);
    } else {
      store_scale(matrix, row, group, factor * double{amax} * global_scale / limit);
    }
    return error_of(stored_scale(matrix, row, group));
  }

  double best = -1;
  double best_error = std::numeric_limits<double>::infinity();
  const auto consider = [&](double stored) {
    store_scale(matrix, row, group, stored);  // judge what is stored, not what was wished for
    const double rounded = stored_scale(matrix, row, group);
    const double error = error_of(rounded);
    if (error < best_error) {
      best_error = error;
      best = rounded;
    }
  };
  const Candidates candidates = exhaustive_candidates(matrix, amax);
  for (const double stored : candidates.all()) consider(stored);
  const bool fine = format.scale == ScaleType::kBF16 || format.scale == ScaleType::kF16 ||
                    format.scale == ScaleType::kF32;
  if (fine && format.element != ElementType::kE4M3) {
    consider(refitted_scale(format, x, weights, n, best));
  }
  store_scale(matrix, row, group, best);
  return best_error;
}

double search_all(std::span<const ScaleProblem> fused, const ScaleSearchOptions& options,
                  Exec& exec) {
  double total = 0;
  for (const ScaleProblem& problem : fused) {
    QuantizedMatrix& matrix = *problem.matrix;
    const int64_t n = matrix.format.group_size == 0 ? matrix.cols : matrix.format.group_size;
    std::vector<double> row_errors(static_cast<std::size_t>(matrix.rows));
    exec.threads.parallel_for(matrix.rows, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        double sum = 0;
        for (int64_t group = 0; group < matrix.num_groups(); ++group) {
          const float* weights =
              problem.column_weights != nullptr ? problem.column_weights + group * n : nullptr;
          sum += choose_group(matrix, row, group, problem.w + row * matrix.cols + group * n,
                              weights, n, options);
        }
        row_errors[static_cast<std::size_t>(row)] = sum;
      }
    });
    for (const double error : row_errors) total += error;
  }
  return total;
}

// 1 / global scale by least squares for the present codes: sum x e b / sum (e b)^2 (weighted).
double refitted_global_scale(std::span<const ScaleProblem> fused, Exec& exec) {
  double xy = 0;
  double yy = 0;
  for (const ScaleProblem& problem : fused) {
    const QuantizedMatrix& matrix = *problem.matrix;
    const int64_t n = matrix.format.group_size;
    std::vector<double> row_xy(static_cast<std::size_t>(matrix.rows));
    std::vector<double> row_yy(row_xy.size());
    exec.threads.parallel_for(matrix.rows, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        double a = 0;
        double b = 0;
        for (int64_t col = 0; col < matrix.cols; ++col) {
          const double scale = stored_scale(matrix, row, col / n);
          if (scale == 0) continue;
          const double x = problem.w[row * matrix.cols + col];
          const uint8_t code =
              encode_element(matrix.format, x * double{matrix.global_scale} / scale);
          const double y = double{element_value(matrix.format.element, code)} * scale;
          const double h =
              problem.column_weights != nullptr ? double{problem.column_weights[col]} : 1.0;
          a += h * x * y;
          b += h * y * y;
        }
        row_xy[static_cast<std::size_t>(row)] = a;
        row_yy[static_cast<std::size_t>(row)] = b;
      }
    });
    for (std::size_t row = 0; row < row_xy.size(); ++row) {
      xy += row_xy[row];
      yy += row_yy[row];
    }
  }
  return xy > 0 && yy > 0 ? yy / xy : double{fused[0].matrix->global_scale};
}

}  // namespace

ScaleSearch scale_search_from_name(std::string_view name) {
  for (const ScaleSearch search :
       {ScaleSearch::kAbsmax, ScaleSearch::kPaperGrid, ScaleSearch::kExhaustive}) {
    if (scale_search_name(search) == name) return search;
  }
  fail(ErrorCode::kInvalidArgument, "scale search '", name,
       "' is not known; take one of absmax, paper_grid, exhaustive");
}

std::string_view scale_search_name(ScaleSearch search) {
  switch (search) {
    case ScaleSearch::kAbsmax:
      return "absmax";
    case ScaleSearch::kPaperGrid:
      return "paper_grid";
    case ScaleSearch::kExhaustive:
      return "exhaustive";
  }
  return "?";
}

ScaleSearchResult choose_scales(std::span<const ScaleProblem> fused,
                                const ScaleSearchOptions& options, Exec& exec) {
  LATHE_CHECK(!fused.empty());
  const WeightFormat format = fused[0].matrix->format;
  float amax = 0;
  for (const ScaleProblem& problem : fused) {
    const QuantizedMatrix& matrix = *problem.matrix;
    LATHE_CHECK(matrix.format == format);
    amax =
        std::max(amax, max_abs({problem.w, static_cast<std::size_t>(matrix.rows * matrix.cols)}));
  }
  const bool has_global = format.scale == ScaleType::kE4M3;
  if (options.keep_global) {
    LATHE_CHECK(options.search != ScaleSearch::kAbsmax);
    ScaleSearchResult result;
    result.error = search_all(fused, options, exec);
    return result;
  }
  const float global_scale = has_global ? nvfp4_global_scale(amax, element_limit(format)) : 0.0f;
  // Also checks that every weight is finite, sets the constant of the MXFP4 rules and fits the
  // logarithmic grid.
  for (const ScaleProblem& problem : fused) {
    choose_absmax_scales(*problem.matrix, problem.w, options.mx_rule, global_scale);
    if (options.search != ScaleSearch::kAbsmax && format.scale == ScaleType::kE8M0 &&
        format.element == ElementType::kE2M1 && options.search == ScaleSearch::kExhaustive) {
      problem.matrix->global_scale = is_third_grid(options.mx_rule) ? 3.0f : 1.0f;
    }
  }
  ScaleSearchResult result;
  if (options.search == ScaleSearch::kAbsmax) return result;
  result.error = search_all(fused, options, exec);
  if (!has_global || !options.alternate_global || options.search != ScaleSearch::kExhaustive) {
    return result;
  }

  std::vector<Buffer> best_scales(fused.size());
  for (int round = 0; round < kMaxGlobalRounds; ++round) {
    const float previous = fused[0].matrix->global_scale;
    const auto refitted = static_cast<float>(refitted_global_scale(fused, exec));
    if (!std::isfinite(refitted) || refitted <= 0) break;
    for (std::size_t i = 0; i < fused.size(); ++i) {
      const Buffer& scales = fused[i].matrix->scales;
      best_scales[i].reserve(scales.size());
      std::memcpy(best_scales[i].data(), scales.data(), static_cast<std::size_t>(scales.size()));
      fused[i].matrix->global_scale = refitted;
    }
    const double error = search_all(fused, options, exec);
    if (error >= result.error) {
      for (std::size_t i = 0; i < fused.size(); ++i) {
        Buffer& scales = fused[i].matrix->scales;
        std::memcpy(scales.data(), best_scales[i].data(), static_cast<std::size_t>(scales.size()));
        fused[i].matrix->global_scale = previous;
      }
      break;
    }
    const double gain = (result.error - error) / result.error;
    result.error = error;
    ++result.global_rounds;
    if (gain < kMinGlobalGain) break;
  }
  return result;
}

}  // namespace lathe
