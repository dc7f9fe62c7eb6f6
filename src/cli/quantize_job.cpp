#include "cli/quantize_job.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/version.h"
#include "compress/calibration_data.h"
#include "compress/default_calibration.h"
#include "text/model_text.h"
#include "text/tokenizer_json.h"

namespace lathe {
namespace {

// "fp4" and "fp8" are those of the weights' family.
ActivationFormat activations_of(const std::string& name, const std::string& format) {
  if (name == "none") return ActivationFormat::kNone;
  if (name == "int8") return ActivationFormat::kInt8;
  if (name == "fp4") {
    return format == "nvfp4" ? ActivationFormat::kNvfp4 : ActivationFormat::kMxfp4;
  }
  if (name == "fp8") return format == "mxfp8" ? ActivationFormat::kMxfp8 : ActivationFormat::kFp8;
  fail(ErrorCode::kInvalidArgument, "--activations ", name,
       ": unknown; choose none, fp4, fp8 or int8");
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

// The files beside the weights that make a directory a whole model for everyone.
std::vector<std::pair<std::string, std::string>> auxiliary_files(const TextModel& source) {
  std::vector<std::pair<std::string, std::string>> files;
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
        "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt"}) {
    if (auto text = source.checkpoint().auxiliary_file(name)) {
      files.emplace_back(name, std::move(*text));
    } else if (name == std::string("tokenizer.json") && source.has_tokenizer()) {
      files.emplace_back(name, write_tokenizer_json(load_tokenizer_spec(source.checkpoint())));
    }
  }
  return files;
}

std::vector<std::vector<int32_t>> calibration(const TextModel& source, const QuantizeFlags& flags,
                                              const QuantizeOptions& options) {
  if (!options.needs_calibration()) return {};
  std::vector<std::string> texts;
  for (const std::string& path : flags.calibration) texts.push_back(read_calibration_text(path));
  if (texts.empty()) {
    texts.emplace_back(flags.hold_out ? default_text_parts().calibration
                                      : default_calibration_text());
  }
  return calibration_sequences(source.tokenizer(), texts, options.samples, options.seq_len,
                               options.seed);
}

}  // namespace

void add_quantize_flags(CLI::App& command, QuantizeFlags& flags) {
  const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
    return command.add_option(name, value, help)->type_name(type);
  };
  add("--format", flags.format, "Weights: mxfp4, nvfp4, int4, int8, fp8 or mxfp8", "NAME")
      ->capture_default_str();
  add("--method", flags.method, "mr-gptq, gptq, rtn, smoothquant, quarot or awq", "NAME")
      ->capture_default_str();
  add("--hadamard", flags.hadamard,
      "Rotate the inputs in blocks of 16, 32, 64 or 128; 0: not at all (default: as recommended "
      "for format and method)",
      "N");
  add("--activations", flags.activations,
      "Quantize the inputs at run time too: none, fp4, fp8 or int8", "NAME")
      ->capture_default_str();
  add("--scale-rule", flags.scale_rule,
      "MXFP4: each group's scale by this rule instead of the recommended way: ct_even, ocp_floor, "
      "ceil or mse_pow2",
      "NAME");
  add("--calibration", flags.calibration,
      "Text to calibrate on, like what the model will read: plain text, or JSON lines with "
      "\"text\" "
      "(default: a built-in one)",
      "FILE...");
  add("--samples", flags.samples, "Calibration sequences", "N")->capture_default_str();
  add("--seq-len", flags.seq_len, "Tokens of a calibration sequence", "N")->capture_default_str();
  add("--seed", flags.seed, "Choice of the calibration sequences", "N")->capture_default_str();
  command.add_flag("--resume", flags.resume, "Go on with a run that was interrupted");
}

DefaultTextParts default_text_parts() {
  const std::string_view text = default_calibration_text();
  const std::size_t cut = text.find('\n', text.size() / 4 * 3);
  LATHE_CHECK(cut != std::string_view::npos);  // compiled in: prose with line breaks
  return {text.substr(0, cut), text.substr(cut + 1)};
}

QuantizeOptions quantize_options(const QuantizeFlags& flags) {
  if (flags.hadamard < -1) {
    fail(ErrorCode::kInvalidArgument, "--hadamard ", flags.hadamard, ": 0, 16, 32, 64 or 128");
  }
  // 2^31 tokens are 8 GiB of ids before the first layer; nothing calibrates on nearly as many.
  if (flags.samples < 1 || flags.seq_len < 1 ||
      flags.samples > std::numeric_limits<int32_t>::max() / flags.seq_len) {
    fail(ErrorCode::kInvalidArgument, "--samples ", flags.samples, " of --seq-len ", flags.seq_len,
         ": both at least 1, and less than 2^31 tokens together");
  }
  QuantizeOptions options = recommended_options(weight_format_from_name(flags.format),
                                                quantize_method_from_name(flags.method),
                                                activations_of(flags.activations, flags.format));
  if (flags.hadamard != -1) options.hadamard = {flags.hadamard};
  if (!flags.scale_rule.empty()) {
    if (flags.format != "mxfp4") {
      fail(ErrorCode::kInvalidArgument, "--scale-rule goes with --format mxfp4, not with ",
           flags.format);
    }
    options.scales.mx_rule = mx_scale_rule_from_name(flags.scale_rule);
    options.scales.search = ScaleSearch::kAbsmax;  // the rule alone decides
  }
  apply_ablations(flags.ablations, options);
  options.samples = flags.samples;
  options.seq_len = flags.seq_len;
  options.seed = flags.seed;
  check_options(options, /*storable=*/!flags.emulate);
  return options;
}

std::string rotation_note(const std::string& directory) {
  const Json config = read_json_file(directory + "/config.json");
  const auto quantization = config.find("quantization_config");
  if (quantization == config.end() || !quantization->is_object()) return "";
  const auto transforms = quantization->find("transform_config");
  if (transforms == quantization->end() || transforms->empty()) return "";
  return "rotated: lathe reads it; vLLM 0.24 refused every such model that was tried, and loads "
         "what "
         "--hadamard 0 makes";
}

QuantizeResult run_quantize_job(const TextModel& source, const std::string& out,
                                const QuantizeFlags& flags, const std::string& command, bool quiet,
                                Communicator& ranks, Exec& exec) {
  QuantizeJob job;
  job.source = &source.checkpoint();
  job.out = out;
  job.options = quantize_options(flags);
  job.sequences = calibration(source, flags, job.options);
  job.resume = flags.resume;
  job.ranks = &ranks;
  job.dense_output = flags.emulate;
  const auto config = source.checkpoint().auxiliary_file("config.json");
  if (!config) fail(ErrorCode::kNotFound, source.checkpoint().path(), " has no config.json");
  if (parse_json(*config, "config.json").contains("quantization_config")) {
    fail(ErrorCode::kUnsupported, source.checkpoint().path(),
         " is quantized already; start from the uncompressed model");
  }
  job.config_json = *config;
  job.auxiliary_files = auxiliary_files(source);
  job.manifest.lathe_version = kLatheVersion;
  job.manifest.created = utc_now();
  job.manifest.source = source.checkpoint().path();
  job.manifest.command = command;

  // Counted in weights, for a rate that is worth reading.
  const double weights =
      quantization_work(source.checkpoint().config(), job.options)[CalibrationStage::kLoad];
  const auto steps = static_cast<int64_t>(std::max(weights / 1e6, 1.0));
  Progress progress("quantizing", steps, "M weights", quiet || ranks.rank() != 0);
  bool begun = false;
  const InterruptScope interrupt;
  QuantizeCallbacks callbacks;
  callbacks.on_progress = [&](const QuantizeProgress& now) {
    progress.set_label(now.stage);
    const auto done = static_cast<int64_t>(now.fraction * static_cast<double>(steps));
    if (!std::exchange(begun, true)) progress.begin_at(done);
    if (done > progress.done()) progress.advance(done - progress.done());
  };
  callbacks.canceled = [&] { return interrupt.requested(); };
  return quantize_model(job, callbacks, exec);
}

void warn_of_fallbacks(const std::string& out, std::span<const LinearReport> reports) {
  const std::string text = describe_fallbacks(reports);
  if (!text.empty()) print_warning(str(out, ": ", text, "; --json names them"));
}

}  // namespace lathe
