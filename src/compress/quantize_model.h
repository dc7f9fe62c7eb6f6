// A whole model: layer by layer from the source checkpoint into a compressed-tensors directory.
//
//   for each decoder layer                                        memory: one layer + one Hessian
//     load its dense weights
//     run all calibration sequences through it, collect Hessians  hidden states: files in `out`
//     choose rotation, scales, codes
//     run the sequences through the quantized layer: inputs of the next one, synced to disk
//     write the layer, synced, and note it in the journal
//   embeddings, last norm, lm_head; configuration, manifest
//
// Killed at any moment and started again with `resume`, it goes on with the first unfinished layer
// and ends with the same bytes: the inputs of that layer are on disk whole (hidden_store.h), and
// nothing depends on time or on the number of threads (but with QuaRot and `sweeps`: the last bits
// of OpenBLAS's sums do).
//
// Ranks (docs/decisions/0017-ranks.md) share the sequences, the sums and the linears of a layer;
// rank 0 writes. The result has the same bytes whatever their number, and a run may go on with
// another one.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "compress/calibration_profile.h"
#include "compress/layer_quantizer.h"
#include "compress/quantize_options.h"
#include "formats/checkpoint.h"
#include "formats/manifest.h"
#include "tensor/exec.h"

namespace lathe {

struct QuantizeProgress {
  std::string stage;  // "layer 3: calibrating"
  int64_t layer = 0;
  int64_t num_layers = 0;
  double fraction = 0;      // of the whole run
  double eta_seconds = -1;  // < 0: not known yet
};

struct QuantizeCallbacks {
  std::function<void(const QuantizeProgress&)> on_progress;
  std::function<void(const LinearReport&)> on_linear;  // each finished linear
  std::function<bool()> canceled;  // asked often; true ends the run with kCanceled, resumable
};

struct QuantizeJob {
  const Checkpoint* source = nullptr;
  std::string out;
  QuantizeOptions options;
  // Calibration token sequences (calibration_data.h); may be empty when nothing is calibrated.
  std::vector<std::vector<int32_t>> sequences;
  bool resume = false;
  Communicator* ranks = nullptr;  // all of them have this same job; null: this process alone
  // Emulate: store the decoded weights as dense fp32 tensors instead of codes, for formats that
  // compressed-tensors does not have. Weight-only; the manifest's setting "emulates" says so.
  bool dense_output = false;
  std::string config_json;                                           // of the source model
  std::vector<std::pair<std::string, std::string>> auxiliary_files;  // tokenizer.json, ...
  Manifest manifest;  // source, command, created; settings are added
};

// Linears that did not get what the method promises.
struct QuantizeFallbacks {
  int64_t rounded = 0;    // to nearest: experts that too few calibration tokens reached
  int64_t escalated = 0;  // with a Hessian that took more damping than was asked for
  int64_t dead = 0;       // with input channels that were always zero: those columns are rounded
  bool any() const { return rounded + escalated + dead > 0; }
};
QuantizeFallbacks count_fallbacks(std::span<const LinearReport> reports);
// "3 of 96 linear layers rounded to nearest (...), ..."; empty when there are none.
std::string describe_fallbacks(std::span<const LinearReport> reports);

// The reports of all layers, a file of the finished directory: the journal that had them is gone.
inline constexpr const char* kQuantizeReportsFileName = "quantize.reports.json";
// Empty where there is no such file. Throws as reports_from_json() does.
std::vector<LinearReport> read_reports(const std::string& directory);

struct QuantizeResult {
  std::vector<LinearReport> reports;  // of all layers; those of earlier runs on rank 0 only
  double seconds = 0;                 // of this run
  bool finished_before = false;       // `resume`, and an earlier run had finished
  // Of this run and this rank, on the CPU.
  StageNumbers stage_work, stage_seconds, stage_processor_seconds;
  // The two kinds of seconds of every rank; on rank 0 only.
  std::vector<StageNumbers> rank_seconds, rank_processor_seconds;
};

// Throws kUnsupported for a source that is quantized already or a format that cannot be stored;
// kInvalidArgument as check_options() and the writer do; kCanceled. With `resume`, a directory that
// the same job has finished is left as it is.
QuantizeResult quantize_model(const QuantizeJob& job, const QuantizeCallbacks& callbacks,
                              Exec& exec);

// The work of a run, stage by stage, from shapes and settings; what happens counts the same in
// QuantizeResult::stage_work. An expert counts as reached by its share of the tokens. Not counted:
// what rank 0 writes, what ranks exchange, the searches of SmoothQuant and AWQ, QuaRot's rotation.
StageNumbers quantization_work(const ModelConfig& config, const QuantizeOptions& options);
// Operations in which GPTQ moves the errors of `rows` rows of k columns into later blocks.
double gptq_compensation(int64_t rows, int64_t k);

// What a run will take, without starting it: the work of its stages, and some seconds of
// measurements of how fast this machine does each. For one process that has the machine for itself.
struct QuantizePlan {
  double memory_bytes = 0;  // peak while quantizing
  double loaded_bytes = 0;  // peak while the result is loaded
  double disk_bytes = 0;    // result and working files together
  double result_bytes = 0;
  double seconds = 0;
  StageNumbers stage_work, stage_seconds;
};
QuantizePlan plan_quantization(const Checkpoint& source, const QuantizeOptions& options,
                               Exec& exec);

}  // namespace lathe
