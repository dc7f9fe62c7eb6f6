// What to do to the weights: settings of one quantization, parsed and checked once.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "compress/hessian_factor.h"
#include "compress/scale_search.h"
#include "quant/weight_format.h"

namespace lathe {

enum class QuantizeMethod {
  kRtn,          // round to nearest
  kGptq,         // GPTQ, no rotation unless asked for
  kMrGptq,       // block Hadamard, searched scales, GPTQ in static activation order
  kSmoothQuant,  // per-channel factors between input and weight (alpha 0.6), round to nearest
  kQuaRot,  // rotation of the residual stream merged into the weights, online Hadamard in front
            // of o and down, round to nearest
  kAwq,     // per-channel factors by a grid over mean|x|^beta, round to nearest
};
// mr-gptq, gptq, rtn, smoothquant, quarot, awq. Throws kInvalidArgument listing them.
QuantizeMethod quantize_method_from_name(std::string_view name);
std::string_view quantize_method_name(QuantizeMethod method);

// What a column's rounding error counts in the search for scales.
enum class ColumnWeights {
  kNone,      // 1
  kDiagonal,  // H_cc: the column's error with nothing to compensate it
  kPivot,     // R_cc^2: what GPTQ cannot move into later columns
};
ColumnWeights column_weights_from_name(std::string_view name);  // none, diagonal, pivot
std::string_view column_weights_name(ColumnWeights weights);

struct QuantizeOptions {
  WeightFormat format;
  QuantizeMethod method = QuantizeMethod::kMrGptq;
  ActivationFormat activations = ActivationFormat::kNone;
  // Rotation block sizes to choose from by held-out error, per group of layers that share an input;
  // one entry: that one. 0 is none.
  std::vector<int64_t> hadamard = {0};
  std::vector<double> damping = {0.01};  // relative; several: chosen like the rotation
  ColumnOrder order = ColumnOrder::kActivation;
  ScaleSearchOptions scales;
  ColumnWeights column_weights = ColumnWeights::kNone;
  // Times that GPTQ is run again with scales searched anew for what it really rounded (the weights
  // with other columns' errors worked in); each row keeps its best.
  int refinements = 0;
  int sweeps = 0;  // of coordinate descent behind GPTQ (coordinate_descent.h), at most

  double smooth_alpha = 0.6;
  int awq_grid = 20;  // values of beta in [0, 1)

  // Hessians of o, gate/up and down from inputs that the already quantized parts of the same block
  // produced: four passes over the data instead of one.
  bool sequential = false;
  // An expert that fewer tokens reached than this is rounded to nearest (and reported so).
  int64_t min_expert_tokens = 256;

  int64_t samples = 128;
  int64_t seq_len = 2048;
  uint64_t seed = 42;

  bool uses_gptq() const {
    return method == QuantizeMethod::kGptq || method == QuantizeMethod::kMrGptq;
  }
  bool smooths() const {
    return method == QuantizeMethod::kSmoothQuant || method == QuantizeMethod::kAwq;
  }
  // Whether the static scales of smoothed inputs take a pass of their own: magnitudes behind a
  // rotation do not follow from those of channels.
  bool measures_smoothed_inputs() const {
    return smooths() && activations == ActivationFormat::kNvfp4 && hadamard[0] != 0;
  }
  bool chooses() const { return hadamard.size() > 1 || damping.size() > 1; }
  // Whether anything must be run through the model at all.
  bool needs_calibration() const {
    return smooths() || uses_gptq() || activations == ActivationFormat::kNvfp4 || chooses();
  }
};

// The settings that measured best for a format and method (docs/decisions and the table in
// docs/results say how): rotation, scale search, order.
QuantizeOptions recommended_options(const WeightFormat& format, QuantizeMethod method,
                                    ActivationFormat activations);

// Throws kInvalidArgument for settings that contradict each other, kUnsupported for what cannot be
// stored, when it must be: the grid of thirds, the 4/3 rule, the fitted grid and 4-bit integers
// with one-byte scales exist in memory only (spec 8.5).
void check_options(const QuantizeOptions& options, bool storable);

// One line of text that determines the result, for --resume and the manifest.
std::string settings_text(const QuantizeOptions& options);

}  // namespace lathe
