// How fast this machine does what calibration consists of: some tenths of a second each, for plans.
// What is measured are the functions that calibration calls, on made-up numbers.
#pragma once
#include <cstdint>
#include <string>

#include "compress/calibration_profile.h"
#include "compress/quantize_options.h"
#include "formats/checkpoint.h"
#include "kernels/linear/linear.h"
#include "tensor/exec.h"

namespace lathe {

// GFLOP/s of a dense linear layer [n, k] over 1024 rows, in fp32 or as a bf16 checkpoint runs.
double measure_linear_gflops(int64_t n, int64_t k, ComputeType compute, Exec& exec);

// GFLOP/s of X^T X with k columns, counted as k^2 a row.
double measure_gram_gflops(int64_t k, Exec& exec);

// The others in work of CalibrationStage per second.
// Packing a layer [n, k] for a pass, once from dense weights and once from codes.
double measure_packing(int64_t n, int64_t k, const WeightFormat& format, Exec& exec);
// Causal attention of one sequence of at most 1024 tokens to itself, one group of heads.
double measure_attention(const ModelConfig& config, int64_t seq_len, Exec& exec);
double measure_between(const ModelConfig& config, Exec& exec);
// Reading and decoding one linear layer.
double measure_loading(const Checkpoint& source, const std::string& module);
// Everything that happens to 256 rows of weights with k inputs: kHessian, kFactor, kScales, kRound,
// kCompensate, kError; 0 where the method has no such stage.
StageNumbers measure_group(int64_t k, const QuantizeOptions& options, Exec& exec);

}  // namespace lathe
