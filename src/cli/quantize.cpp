// lathe quantize: the weights of a model in fewer bits, as a compressed-tensors directory.
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/quantize_job.h"

namespace lathe {
namespace {

struct QuantizeCommandFlags {
  CommonFlags common;
  QuantizeFlags quantize;
  std::string in, out;
  std::string command_line;
  bool plan = false;
};

void print_plan(const QuantizeCommandFlags& flags, const TextModel& source, Exec& exec) {
  const QuantizePlan plan =
      plan_quantization(source.checkpoint(), quantize_options(flags.quantize), exec);
  if (flags.common.json) {
    print_json({{"memory_bytes", plan.memory_bytes},
                {"disk_bytes", plan.disk_bytes},
                {"result_bytes", plan.result_bytes},
                {"seconds", plan.seconds}});
    return;
  }
  print_line(str("memory  ", format_bytes(plan.memory_bytes), "\ndisk    ",
                 format_bytes(plan.disk_bytes), ", of which the result keeps ",
                 format_bytes(plan.result_bytes), "\ntime    about ", format_duration(plan.seconds),
                 " on this machine"));
}

void run_quantize(const QuantizeCommandFlags& flags) {
  Runtime runtime(flags.common);
  quantize_options(flags.quantize);  // wrong flags before anything is read
  const TextModel source(flags.in);
  if (flags.plan) {
    print_plan(flags, source, runtime.exec());
    return;
  }
  const QuantizeResult result = run_quantize_job(
      source, flags.out, flags.quantize, flags.command_line, flags.common.json, runtime.exec());
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
                 {"seconds", result.seconds}};
    json["linears"] = parse_json(reports_to_json(result.reports), "reports");
    print_json(json);
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
  print_line(text);
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
  command->add_flag("--plan", flags->plan, "Print memory, disk and time that it would take; stop");
  add_common_flags(*command, flags->common);
  command->footer(
      "The result is a Hugging Face directory (compressed-tensors) that vLLM reads as well. Every "
      "finished\nlayer is on disk before the next begins: after a crash or Ctrl-C, --resume goes "
      "on.\n\n"
      "Example:\n  lathe quantize smollm2.gguf OUT --format mxfp4");
  command->callback([flags, &invocation] {
    flags->command_line = invocation.command_line;
    invocation.run = [flags] { run_quantize(*flags); };
  });
}

}  // namespace lathe
