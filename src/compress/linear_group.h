// Quantizing the linear layers that share one input (q/k/v, gate/up, or one alone): they share the
// rotation, the Hessian and its factor, and NVFP4's global scale.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "compress/calibration_profile.h"
#include "compress/input_statistics.h"
#include "compress/quantize_options.h"
#include "quant/weight_format.h"
#include "tensor/tensor.h"

namespace lathe {

struct LinearTask {
  std::string module;
  Tensor weight;              // [n, k] f32; rotated in place when a rotation is chosen
  QuantizedMatrix quantized;  // the result
};

// What happened to one linear layer.
struct LinearReport {
  std::string module;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t tokens = 0;  // calibration tokens that reached it
  int64_t hadamard = 0;
  double damping = 0;  // 0: no Hessian was used
  int escalations = 0;
  int64_t dead_columns = 0;
  bool rtn_fallback = false;  // too few tokens for GPTQ
  // Squared errors relative to the squared output (without calibration: of the weights themselves),
  // on held-out tokens when there are any.
  double error = 0;
  double rtn_error = -1;  // of plain rounding under the same scales; -1: not measured
};

// JSON text of reports, as kept in the journal, and back.
std::string reports_to_json(const std::vector<LinearReport>& reports);
std::vector<LinearReport> reports_from_json(const std::string& text);

// `statistics`: of the un-rotated input; its Hessian is taken out of it (the matrix can be large).
// null: nothing was calibrated, scales and codes come from the weights alone. `held_out`: other
// tokens, for choosing and for the reported error; null: the same tokens serve.
// use_gptq false: rounding to nearest whatever the method. With a GPU in `exec` that does the work
// (cuda_linear_group.h), and the tasks' weights are not rotated here.
std::vector<LinearReport> quantize_group(std::span<LinearTask> tasks, InputStatistics* statistics,
                                         InputStatistics* held_out, const QuantizeOptions& options,
                                         bool use_gptq, Exec& exec,
                                         CalibrationProfile* profile = nullptr);

}  // namespace lathe
