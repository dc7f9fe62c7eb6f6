// lathe quantize: the weights of a model in fewer bits, as a compressed-tensors directory.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/loaded_model.h"
#include "cli/memory_use.h"
#include "cli/output.h"
#include "cli/quantize_job.h"
#include "cli/ranks.h"
#include "eval/fingerprint.h"
#include "formats/manifest.h"

namespace lathe {
namespace {

// A finished model in memory: packed for the kernels, the embeddings once more as a table, and what
// is mapped of its files. Measured: 2.0 (Qwen2.5 0.5B, MXFP4).
double loaded_bytes(double file_bytes) { return 2 * file_bytes + 64e6; }

int64_t bytes_of(const std::string& directory) {
  int64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.is_regular_file()) bytes += static_cast<int64_t>(entry.file_size());
  }
  return bytes;
}

// Runs the finished model once and keeps its logits in lathe.json, for selftest. Quantizing held
// one layer at a time and this holds the model, so it is left out, with a word, where memory is
// short.
bool keep_fingerprint(const std::string& out, bool quiet, Exec& exec) {
  Manifest manifest = read_manifest(out);
  if (manifest.fingerprint) return true;
  const double needed = loaded_bytes(static_cast<double>(bytes_of(out)));
  const int64_t available = available_memory_bytes();
  if (available > 0 && needed > static_cast<double>(available)) {
    print_warning(str(out, ": ", format_bytes(needed), " of memory to run it once, ",
                      format_bytes(static_cast<double>(available)),
                      " available: no logits kept; 'lathe selftest --write' does it elsewhere"));
    return false;
  }
  const LoadedModel loaded(out, ModelFlags{}, exec, {.quiet = quiet});
  manifest.fingerprint =
      compute_fingerprint(loaded.model(), loaded.kv_format(), loaded.compute_path(), exec);
  write_manifest(out, manifest);
  return true;
}

struct QuantizeCommandFlags {
  CommonFlags common;
  QuantizeFlags quantize;
  std::string in, out;
  std::string command_line;
  bool plan = false;
};

Json stages_json(const std::vector<std::pair<std::string, const StageNumbers*>>& columns) {
  Json json = Json::object();
  for (std::size_t i = 0; i < kNumCalibrationStages; ++i) {
    const auto stage = static_cast<CalibrationStage>(i);
    for (const auto& [name, numbers] : columns) {
      json[std::string(calibration_stage_name(stage))][name] = (*numbers)[stage];
    }
  }
  return json;
}

void print_plan(const QuantizeCommandFlags& flags, const TextModel& source, Exec& exec) {
  const QuantizePlan plan =
      plan_quantization(source.checkpoint(), quantize_options(flags.quantize), exec);
  // Quantizing, or running the result once for its fingerprint.
  const double memory_bytes = std::max(plan.memory_bytes, plan.loaded_bytes);
  if (flags.common.json) {
    print_json(
        {{"memory_bytes", static_cast<int64_t>(memory_bytes)},
         {"disk_bytes", static_cast<int64_t>(plan.disk_bytes)},
         {"result_bytes", static_cast<int64_t>(plan.result_bytes)},
         {"seconds", plan.seconds},
         {"stages", stages_json({{"work", &plan.stage_work}, {"seconds", &plan.stage_seconds}})}});
    return;
  }
  print_line(str("memory  ", format_bytes(memory_bytes), "\ndisk    ",
                 format_bytes(plan.disk_bytes), ", of which the result keeps ",
                 format_bytes(plan.result_bytes), "\ntime    about ", format_duration(plan.seconds),
                 " on this machine"));
}

void run_quantize(QuantizeCommandFlags flags, Communicator& ranks) {
  divide_threads(flags.common);
  Runtime runtime(flags.common);
  quantize_options(flags.quantize);  // wrong flags before anything is read
  const TextModel source(flags.in);
  if (flags.plan) {
    if (ranks.rank() == 0) print_plan(flags, source, runtime.exec());
    return;
  }
  const QuantizeResult result =
      run_quantize_job(source, flags.out, flags.quantize, flags.command_line, flags.common.json,
                       ranks, runtime.exec());
  if (ranks.rank() != 0) return;
  const bool fingerprint = keep_fingerprint(flags.out, flags.common.json, runtime.exec());
  double error = 0, rtn_error = 0;
  int64_t compared = 0;
  for (const LinearReport& report : result.reports) {
    if (report.rtn_error < 0) continue;
    error += report.error;
    rtn_error += report.rtn_error;
    ++compared;
  }
  if (flags.common.json) {
    Json json = {{"source", flags.in},
                 {"out", flags.out},
                 {"format", flags.quantize.format},
                 {"method", flags.quantize.method},
                 {"activations", flags.quantize.activations},
                 {"seconds", result.seconds},
                 {"emulated", flags.quantize.emulate},
                 {"finished_before", result.finished_before},
                 {"fingerprint", fingerprint}};
    json["stages"] = stages_json({{"work", &result.stage_work},
                                  {"seconds", &result.stage_seconds},
                                  {"processor_seconds", &result.stage_processor_seconds}});
    json["rank_stages"] = Json::array();
    for (std::size_t rank = 0; rank < result.rank_seconds.size(); ++rank) {
      json["rank_stages"].push_back(
          stages_json({{"seconds", &result.rank_seconds[rank]},
                       {"processor_seconds", &result.rank_processor_seconds[rank]}}));
    }
    json["linears"] = parse_json(reports_to_json(result.reports), "reports");
    print_json(json);
    return;
  }
  const std::string note = rotation_note(flags.out);
  const auto print_note = [&] {
    if (!note.empty()) print_line(note);
  };
  if (result.finished_before) {
    print_line(flags.out + ": finished by an earlier run");
    print_note();
    warn_of_fallbacks(flags.out, result.reports);
    return;
  }
  std::string text =
      str(flags.out, ": ", result.reports.size(), " linear layers in ", flags.quantize.format,
          " by ", flags.quantize.method, ", ", format_duration(result.seconds));
  if (compared > 0 && rtn_error > 0) {
    char share[80];
    std::snprintf(share, sizeof share, "; output error %.0f %% of plain rounding's",
                  100 * error / rtn_error);
    text += share;
  }
  if (flags.quantize.emulate) text += "; emulated: fp32 weights, to measure only";
  print_line(text);
  print_note();
  warn_of_fallbacks(flags.out, result.reports);
}

}  // namespace

void add_quantize_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<QuantizeCommandFlags>();  // shared: the callback outlives this
  CLI::App* command = app.add_subcommand("quantize", "Store the weights in 4 or 8 bits");
  command->add_option("IN", flags->in, "The model: a directory or a GGUF file")
      ->required()
      ->type_name("");
  command->add_option("OUT", flags->out, "The directory to write")->required()->type_name("");
  add_quantize_flags(*command, flags->quantize);
  command->add_flag("--emulate", flags->quantize.emulate,
                    "Store what the quantized weights are worth as ordinary fp32 ones: to measure "
                    "formats and scale rules that no file can hold: --format mxfp4-fitted, nvint4 "
                    "or mxint4, --scale-rule paper_eq1 (the 4/3 rule), absmax_x3 or mse_pow2_x3. "
                    "Activations: none only");
  command->add_flag("--plan", flags->plan, "Print memory, disk and time that it would take; stop");
  add_ablation_flags(*command, flags->quantize.ablations);
  add_common_flags(*command, flags->common);
  command->footer(
      "The result is a Hugging Face directory (compressed-tensors). Made with --hadamard 0 it "
      "loads "
      "in vLLM as well; rotated ones (mr-gptq's default) need lathe. Every "
      "finished layer is on disk before the next begins: after a crash or Ctrl-C, --resume goes "
      "on. Last, the model is run once, and lathe.json keeps the logits for 'lathe selftest'. "
      "Under mpirun its processes share the calibration, on one machine or several that see IN and "
      "OUT under the same names.\n\n"
      "Examples:\n  lathe quantize smollm2.gguf OUT --format mxfp4\n"
      "  mpirun -n 4 --bind-to none lathe quantize smollm2.gguf OUT\n"
      "  lathe quantize smollm2.gguf OUT --format mxfp4-fitted --emulate   # only to measure it\n"
      "  lathe quantize smollm2.gguf OUT --format nvfp4 --activations fp4 --scale-search "
      "paper_grid");
  command->callback([flags, &invocation] {
    flags->command_line = invocation.command_line;
    invocation.run = [flags] {
      run_on_ranks([&](Communicator& ranks) { run_quantize(*flags, ranks); });
    };
  });
}

}  // namespace lathe
