// Choosing the scales of a weight matrix before its codes: from the largest magnitude, by the
// authors' grid, or exhaustively over the scales that the format can store.
// Source: spec/mr-gptq.md 4.4.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "quant/mx_scale.h"
#include "quant/weight_format.h"
#include "tensor/exec.h"

namespace lathe {

enum class ScaleSearch {
  kAbsmax,      // choose_absmax_scales()
  kPaperGrid,   // factors 1, .992, ..., .208 on absmax / limit, error norm 2.4, scale rounded after
                // the search: what the authors run
  kExhaustive,  // every storable scale near absmax / limit, judged by its true rounding error
};
ScaleSearch scale_search_from_name(std::string_view name);  // absmax, paper_grid, exhaustive
std::string_view scale_search_name(ScaleSearch search);

struct ScaleSearchOptions {
  ScaleSearch search = ScaleSearch::kExhaustive;
  // MXFP4: the rule of kAbsmax; and for every search whether the grid is 2^e (global scale 1) or
  // 2^e / 3 (absmax_x3, mse_pow2_x3).
  MxScaleRule mx_rule = MxScaleRule::kCtEven;
  double norm = 2;  // kExhaustive: the error is sum |x - x^|^norm
  // NVFP4: alternate between block scales and the least-squares global scale while the error falls.
  bool alternate_global = true;
  // Leave global_scale (and the fitted grid) as they are in the matrices.
  bool keep_global = false;
};

// The alternation ends after so many rounds, or when one gains less than this share of the error.
inline constexpr int kMaxGlobalRounds = 5;
inline constexpr double kMinGlobalGain = 1e-4;

// One matrix; its scales and global_scale are written, its codes are not.
struct ScaleProblem {
  QuantizedMatrix* matrix = nullptr;
  const float* w = nullptr;               // [rows, cols]
  const float* column_weights = nullptr;  // [cols], factor of each column's error; null: all 1
};

struct ScaleSearchResult {
  double error = 0;       // the weighted sum that was minimised, over all matrices
  int global_rounds = 0;  // alternations that lowered it
};

// Problems in one call share their global scale (q/k/v, gate/up: engines fuse them and keep one,
// spec 1.6) and must have one format. Throws kInvalidArgument when a weight is not finite.
ScaleSearchResult choose_scales(std::span<const ScaleProblem> fused,
                                const ScaleSearchOptions& options, Exec& exec);

}  // namespace lathe
