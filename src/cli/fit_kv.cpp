// lathe fit-kv: how the key-value cache of a model is stored small, fitted on text.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/kv_fit_job.h"
#include "cli/output.h"
#include "cli/ranks.h"
#include "eval/json_lines.h"

namespace lathe {
namespace {

struct FitKvCommandFlags {
  CommonFlags common;
  KvCodecFlags codec;
  KvFitFlags fit;
  std::string model, out, sweep;
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

// A line of --sweep: the codec's file, and flags over those of the command line.
std::pair<std::string, KvCodecFlags> sweep_line(const std::string& line, KvCodecFlags codec) {
  std::string out;
  CLI::App parser;
  parser.set_help_flag();
  parser.add_option("OUT", out)->required();
  add_kv_codec_flags(parser, codec);
  try {
    parser.parse(line);
  } catch (const CLI::ParseError& error) {
    fail(ErrorCode::kInvalidArgument, error.what());
  }
  kv_fit_options(codec);
  return {out, codec};
}

// The files to write, one for each of flags.fit.codecs, which --sweep replaces.
std::vector<std::string> read_sweep(FitKvCommandFlags& flags) {
  if (!flags.out.empty()) {
    fail(ErrorCode::kInvalidArgument, "-o with --sweep: its lines name the files");
  }
  std::vector<std::string> outs;
  flags.fit.codecs.clear();
  int64_t number = 0;
  std::istringstream text(read_text_file(flags.sweep));
  for (std::string line; std::getline(text, line);) {
    ++number;
    const std::size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos || line[first] == '#') continue;
    auto [out, codec] =
        with_context(str(flags.sweep, ":", number), [&] { return sweep_line(line, flags.codec); });
    if (std::find(outs.begin(), outs.end(), out) != outs.end()) {
      fail(ErrorCode::kInvalidArgument, flags.sweep, ":", number, ": ", out, " is there twice");
    }
    outs.push_back(std::move(out));
    flags.fit.codecs.push_back(codec);
  }
  if (outs.empty()) fail(ErrorCode::kInvalidArgument, flags.sweep, " names no codec");
  return outs;
}

void print_plan(const FitKvCommandFlags& flags, const TextModel& source,
                std::span<const KvFitOptions> options, Exec& exec) {
  const KvFitPlan plan =
      plan_kv_fit(source.checkpoint(), options, flags.fit.samples, flags.fit.seq_len, exec);
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

void warn_of_gap(const KvFitResult& result, const std::string& out) {
  const double gap = kv_fit_gap(result.file);
  if (gap > kKvFitGap) {
    print_warning(str(out, ": the predictors explain ", gap,
                      " less of the variance of held-out text than of their own: raise --samples"));
  }
}

void run_fit_kv(FitKvCommandFlags flags, Communicator& ranks) {
  divide_threads(flags.common);
  Runtime runtime(flags.common);
  kv_fit_options(flags.codec);  // wrong flags before anything is read
  if (flags.fit.samples < 2 || flags.fit.samples > (1 << 20) || flags.fit.seq_len < 8 ||
      flags.fit.seq_len > (1 << 20)) {
    fail(ErrorCode::kInvalidArgument, "--samples ", flags.fit.samples, " --seq-len ",
         flags.fit.seq_len, ": at least 2 sequences of 8 tokens, at most 2^20");
  }
  flags.fit.codecs = {flags.codec};
  std::vector<std::string> outs;
  if (!flags.sweep.empty()) outs = read_sweep(flags);
  const TextModel source(flags.model);
  if (flags.sweep.empty()) outs = {codec_path(flags, source)};
  std::vector<KvFitOptions> options;
  for (std::size_t i = 0; i < outs.size(); ++i) {
    options.push_back(kv_fit_options(flags.fit.codecs[i]));
    const auto check = [&] { check_kv_fit_options(options.back(), source.checkpoint().config()); };
    flags.sweep.empty() ? check() : with_context(outs[i], check);
  }
  if (flags.plan) {
    if (ranks.rank() == 0) print_plan(flags, source, options, runtime.exec());
    return;
  }
  const std::vector<KvFitResult> results =
      run_kv_fit(source, outs.front(), flags.fit, flags.command_line, flags.common.json, ranks,
                 runtime.exec());
  if (ranks.rank() != 0) return;
  Json json = Json::array();
  for (std::size_t i = 0; i < results.size(); ++i) {
    write_fitted_codec(results[i], outs[i]);
    warn_of_gap(results[i], outs[i]);
    json.push_back(kv_fit_json(results[i], outs[i]));
    if (!flags.common.json) print(kv_fit_text(results[i], outs[i]));
  }
  if (!flags.common.json) return;
  if (flags.sweep.empty()) {
    print_json(json.front());
  } else {
    print_json({{"codecs", std::move(json)}});
  }
}

}  // namespace

void add_fit_kv_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<FitKvCommandFlags>();  // shared: the callback outlives this
  CLI::App* command =
      app.add_subcommand("fit-kv", "Fit predictors and codes of the key-value cache");
  add_model_argument(*command, flags->model);
  add_kv_codec_flags(*command, flags->codec);
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
  add("--sweep", flags->sweep,
      "Fit several codecs in one pass over the model: each line of FILE is a codec's file and its "
      "flags, over those given here",
      "FILE");
  command->add_flag("--plan", flags->plan, "Print memory, disk and time that it would take; stop");
  add_common_flags(*command, flags->common);
  command->footer(
      "Keys and values of some layers are predicted from one small vector of the group (--variant "
      "latent; the others, AQUA-KV as published among them: from rows of other layers), and what "
      "the "
      "prediction leaves is stored in 2 to 4 bits. The model runs on an exact cache here, one "
      "layer "
      "in memory at a time. Under mpirun its processes share the calibration.\n\n"
      "Examples:\n  lathe fit-kv OUT --bits 2\n"
      "  lathe fit-kv smollm2.gguf -o smollm2.kv.safetensors --rank 96\n"
      "  lathe fit-kv OUT --variant dense                             # AQUA-KV as published\n"
      "  printf 'aqua2.safetensors\\naqua3.safetensors --bits 3\\n' > codecs\n"
      "  lathe fit-kv smollm2.gguf --sweep codecs");
  command->callback([flags, &invocation] {
    flags->command_line = invocation.command_line;
    invocation.run = [flags] {
      run_on_ranks([&](Communicator& ranks) { run_fit_kv(*flags, ranks); });
    };
  });
}

}  // namespace lathe
