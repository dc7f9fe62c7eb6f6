// lathe fit-kv: how the key-value cache of a model is stored small, fitted on text.
#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/kv_fit_job.h"
#include "cli/output.h"
#include "cli/ranks.h"

namespace lathe {
namespace {

struct FitKvCommandFlags {
  CommonFlags common;
  KvFitFlags fit;
  std::string model, out;
  std::string command_line;
  bool plan = false;
};

std::string codec_path(const FitKvCommandFlags& flags, const TextModel& source) {
  if (!flags.out.empty()) return flags.out;
  if (source.checkpoint().is_gguf()) {
    fail(ErrorCode::kInvalidArgument, flags.model,
         " is a GGUF file, which holds no codec; name a file with -o");
  }
  return (std::filesystem::path(flags.model) / kKvCodecFileName).string();
}

void print_plan(const FitKvCommandFlags& flags, const TextModel& source, Exec& exec) {
  const KvFitPlan plan = plan_kv_fit(source.checkpoint(), kv_fit_options(flags.fit),
                                     flags.fit.samples, flags.fit.seq_len, exec);
  if (flags.common.json) {
    print_json({{"memory_bytes", plan.memory_bytes},
                {"disk_bytes", plan.disk_bytes},
                {"codec_bytes", plan.codec_bytes},
                {"seconds", plan.seconds}});
    return;
  }
  print_line(str("memory  ", format_bytes(plan.memory_bytes), "\ndisk    ",
                 format_bytes(plan.disk_bytes), " while it runs, then ",
                 format_bytes(plan.codec_bytes), " at most\ntime    about ",
                 format_duration(plan.seconds), " on this machine"));
}

void run_fit_kv(FitKvCommandFlags flags, Communicator& ranks) {
  divide_threads(flags.common);
  Runtime runtime(flags.common);
  kv_fit_options(flags.fit);  // wrong flags before anything is read
  if (flags.fit.samples < 2 || flags.fit.samples > (1 << 20) || flags.fit.seq_len < 8 ||
      flags.fit.seq_len > (1 << 20)) {
    fail(ErrorCode::kInvalidArgument, "--samples ", flags.fit.samples, " --seq-len ",
         flags.fit.seq_len, ": at least 2 sequences of 8 tokens, at most 2^20");
  }
  const TextModel source(flags.model);
  const std::string out = codec_path(flags, source);
  check_kv_fit_options(kv_fit_options(flags.fit), source.checkpoint().config());
  if (flags.plan) {
    if (ranks.rank() == 0) print_plan(flags, source, runtime.exec());
    return;
  }
  const KvFitResult result = run_kv_fit(source, out, flags.fit, flags.command_line,
                                        flags.common.json, ranks, runtime.exec());
  if (ranks.rank() != 0) return;
  write_fitted_codec(result, out);
  const double gap = kv_fit_gap(result.file);
  if (gap > kKvFitGap) {
    print_warning(str("the predictors explain ", gap,
                      " less of the variance of held-out text than of their own: raise --samples"));
  }
  if (flags.common.json) {
    print_json(kv_fit_json(result, out));
  } else {
    print(kv_fit_text(result, out));
  }
}

}  // namespace

void add_fit_kv_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<FitKvCommandFlags>();  // shared: the callback outlives this
  CLI::App* command =
      app.add_subcommand("fit-kv", "Fit predictors and codes of the key-value cache");
  add_model_argument(*command, flags->model);
  add_kv_fit_flags(*command, flags->fit);
  const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
    return command->add_option(name, value, help)->type_name(type);
  };
  add("--calibration", flags->fit.calibration,
      "Text to fit on, like what the model will read: plain text, or JSON lines with \"text\" "
      "(default: a built-in one)",
      "FILE...");
  add("--samples", flags->fit.samples, "Calibration sequences; every eighth only judges", "N")
      ->capture_default_str();
  add("--seq-len", flags->fit.seq_len, "Tokens of a calibration sequence", "N")
      ->capture_default_str();
  add("--seed", flags->fit.seed, "Choice of the calibration sequences", "N")->capture_default_str();
  add("-o,--out", flags->out, "The codec to write (default: kv_codec.safetensors in MODEL)",
      "FILE");
  command->add_flag("--plan", flags->plan, "Print memory, disk and time that it would take; stop");
  add_common_flags(*command, flags->common);
  command->footer(
      "AQUA-KV: keys and values of a layer are predicted from those of the layer below, and the "
      "rest "
      "is\nstored in 2 to 4 bits. The model runs on an exact cache here, one layer in memory at a "
      "time. Under mpirun\nits processes share the calibration.\n\n"
      "Examples:\n  lathe fit-kv OUT --bits 2\n"
      "  lathe fit-kv smollm2.gguf -o smollm2.kv.safetensors --variant latent --rank 96");
  command->callback([flags, &invocation] {
    flags->command_line = invocation.command_line;
    invocation.run = [flags] {
      run_on_ranks([&](Communicator& ranks) { run_fit_kv(*flags, ranks); });
    };
  });
}

}  // namespace lathe
