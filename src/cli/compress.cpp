// lathe compress: quantize with the recommended settings, measure before and after, report.
#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/eval_caches.h"
#include "cli/flags.h"
#include "cli/kv_fit_job.h"
#include "cli/output.h"
#include "cli/quantize_job.h"
#include "cli/report.h"
#include "cli/speed.h"
#include "cli/text_windows.h"
#include "cli/version.h"
#include "comm/launch.h"
#include "compress/default_calibration.h"
#include "eval/fingerprint.h"
#include "eval/json_lines.h"
#include "formats/manifest.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

struct CompressFlags {
  CommonFlags common;
  QuantizeFlags quantize;
  std::string in, out, data;
  std::string command_line;
  std::vector<std::string> compare;
  bool no_fit_kv = false;
  WindowOptions windows = {.seq_len = 2048, .max_windows = 16};
};

double decode_rate(Model& model, KvFormat format, Exec& exec) {
  const int64_t steps = std::min<int64_t>(32, model.config().max_position_embeddings / 2);
  const SpeedOptions options = {.prompt_tokens = 0, .decode_tokens = steps, .repetitions = 1};
  return median(measure_speed(model, live_cache(model, format), options, exec).decode);
}

DivergenceResult measure(const LoadedModel& reference, const LoadedModel& loaded,
                         const std::vector<std::vector<int32_t>>& windows, bool quiet,
                         const std::string& label, Exec& exec) {
  Progress progress(label, count_tokens(windows), "tokens", quiet);
  return measure_divergence(reference.model(), reference.kv_format(), loaded.model(),
                            KvFormat::kBF16, windows, exec,
                            [&](int64_t tokens) { progress.advance(tokens); });
}

// Another method on the same model: quantized into a folder of its own, measured, removed.
MeasuredMethod measure_other(const CompressFlags& flags, const std::string& method,
                             const TextModel& source, const LoadedModel& reference,
                             const std::vector<std::vector<int32_t>>& windows, Exec& exec) {
  const std::string folder = flags.out + ".compare-" + method;
  struct Removed {
    std::string path;
    ~Removed() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  } removed{folder};
  fs::remove_all(folder);
  QuantizeFlags quantize = flags.quantize;
  quantize.method = method;
  quantize.hadamard = -1;
  quantize.resume = false;
  SoloCommunicator alone;
  run_quantize_job(source, folder, quantize, flags.command_line, flags.common.json, alone, exec);
  const LoadedModel loaded(folder, ModelFlags{}, exec, {.quiet = true});
  return {method,
          measure(reference, loaded, windows, flags.common.json, "measuring " + method, exec)};
}

void complete_manifest(const CompressFlags& flags, const CompressionReport& report,
                       const LogitsFingerprint& fingerprint) {
  const DivergenceResult& quality = report.methods.front().quality;
  const std::string settings =
      str("windows ", quality.model.windows, ", length ", quality.model.seq_len);
  Manifest manifest = read_manifest(flags.out);
  manifest.quality = {
      {"perplexity", flags.data, quality.model.perplexity, quality.reference.perplexity, settings},
      {"kld", flags.data, quality.mean_kl, std::nullopt, settings},
      {"top1_agreement", flags.data, quality.top1_agreement, std::nullopt, settings},
  };
  if (report.cache) {
    manifest.quality.push_back({"perplexity with --kv aqua2", flags.data,
                                report.cache->quality.perplexity, quality.reference.perplexity,
                                settings});
  }
  manifest.fingerprint = fingerprint;
  update_file(manifest, flags.out, "report.json");
  update_file(manifest, flags.out, "report.html");
  write_manifest(flags.out, manifest);
}

std::string summary(const CompressFlags& flags, const CompressionReport& report) {
  const DivergenceResult& quality = report.methods.front().quality;
  char text[400];
  std::snprintf(
      text, sizeof text,
      "weights     %s a token -> %s (%.2f times fewer)\n"
      "decoding    %.1f -> %.1f tokens/s\n"
      "perplexity  %.4f -> %.4f (%+.2f %%)\n"
      "divergence  %.5f nats a token, same top token %.1f %%\n",
      format_bytes(static_cast<double>(report.source_weight_bytes)).c_str(),
      format_bytes(static_cast<double>(report.weight_bytes)).c_str(),
      static_cast<double>(report.source_weight_bytes) / static_cast<double>(report.weight_bytes),
      report.source_decode_rate, report.decode_rate, quality.reference.perplexity,
      quality.model.perplexity, 100 * (quality.model.perplexity / quality.reference.perplexity - 1),
      quality.mean_kl, 100 * quality.top1_agreement);
  std::string cache;
  if (report.cache) {
    char line[200];
    std::snprintf(line, sizeof line,
                  "cache       16 -> %.2f bits a number with --kv aqua2, perplexity then %.4f\n",
                  report.cache->bits_per_value, report.cache->quality.perplexity);
    cache = line;
  }
  return text + cache + str("report      ", flags.out, "/report.html\n");
}

int64_t directory_bytes(const std::string& path) {
  if (!fs::is_directory(path)) return static_cast<int64_t>(fs::file_size(path));
  int64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.is_regular_file()) bytes += static_cast<int64_t>(entry.file_size());
  }
  return bytes;
}

// The cache's codec, by the recommended settings on the same text, into the finished directory.
Json fit_cache(const CompressFlags& flags, Exec& exec) {
  KvFitFlags fit;
  fit.calibration = flags.quantize.calibration;
  fit.hold_out = flags.quantize.hold_out;
  fit.samples = std::min(fit.samples, std::max<int64_t>(8, flags.quantize.samples));
  fit.seq_len = std::min(fit.seq_len, flags.quantize.seq_len);
  fit.seed = flags.quantize.seed;
  const TextModel model(flags.out);
  const std::string codec = (fs::path(flags.out) / kKvCodecFileName).string();
  SoloCommunicator alone;
  const KvFitResult result =
      run_kv_fit(model, codec, fit, flags.command_line, flags.common.json, alone, exec).front();
  write_fitted_codec(result, codec);
  return kv_fit_json(result, codec);
}

void run_compress(CompressFlags flags) {
  require_one_process("compress");
  Runtime runtime(flags.common);
  Exec& exec = runtime.exec();
  quantize_options(flags.quantize);  // wrong flags before anything is read
  for (const std::string& method : flags.compare) quantize_method_from_name(method);
  const TextModel source(flags.in);
  // Nothing is measured on what it was calibrated on: with neither text named, the built-in one is
  // split.
  flags.quantize.hold_out = flags.data.empty() && flags.quantize.calibration.empty();
  std::string text;
  if (flags.data.empty()) {
    text = flags.quantize.hold_out ? default_text_parts().held_out : default_calibration_text();
    flags.data =
        flags.quantize.hold_out ? "the held-out quarter of the built-in text" : "the built-in text";
  } else {
    text = read_text_file(flags.data);
  }
  const auto windows = text_windows(source, text, flags.data, flags.windows);

  CompressionReport report;
  report.source = flags.in;
  report.out = flags.out;
  report.command = flags.command_line;
  report.version = kLatheVersion;
  report.format = flags.quantize.format;
  report.method = flags.quantize.method;
  report.activations = flags.quantize.activations;
  report.data = flags.data;
  // A run that was interrupted while measuring has nothing left to quantize.
  const bool done = flags.quantize.resume && fs::exists(flags.out) &&
                    verify_directory(flags.out, false).state == DirectoryState::kWhole;
  if (done) {
    report.linears = read_reports(flags.out);
  } else {
    SoloCommunicator alone;
    QuantizeResult result = run_quantize_job(source, flags.out, flags.quantize, flags.command_line,
                                             flags.common.json, alone, exec);
    report.quantize_seconds = result.seconds;
    report.linears = std::move(result.reports);
  }
  Json fitted;
  if (!flags.no_fit_kv) fitted = fit_cache(flags, exec);
  report.created = read_manifest(flags.out).created;
  report.source_disk_bytes = directory_bytes(flags.in);
  report.disk_bytes = directory_bytes(flags.out);

  const LoadOptions options = {.quiet = flags.common.json};
  const LoadedModel reference(flags.in, ModelFlags{}, exec, options);
  report.source_weight_bytes = reference.model().weight_bytes();
  report.source_decode_rate = decode_rate(reference.model(), reference.kv_format(), exec);
  LogitsFingerprint fingerprint;
  {
    ModelFlags model_flags;
    if (!fitted.is_null()) model_flags.kv_codec = fitted["codec"].get<std::string>();
    const LoadedModel loaded(flags.out, model_flags, exec, options);
    const KvFormat live = KvFormat::kBF16;
    check_forward(loaded.model(), live_cache(loaded.model(), live), exec);
    fingerprint = compute_fingerprint(loaded.model(), live, loaded.compute_path(live), exec);
    report.weight_bytes = loaded.model().weight_bytes();
    report.decode_rate = decode_rate(loaded.model(), live, exec);
    report.methods.push_back(
        {flags.quantize.method, measure(reference, loaded, windows, flags.common.json,
                                        "measuring before and after", exec)});
    if (const LoadedKvCodec* codec = loaded.kv_codec()) {
      Progress progress("measuring with the small cache", count_tokens(windows), "tokens",
                        flags.common.json);
      report.cache =
          MeasuredCache{dump_json(fitted), kv_bits_per_value(codec->file),
                        measure_perplexity(measured(loaded, 0), windows, exec,
                                           [&](int64_t tokens) { progress.advance(tokens); })};
    }
  }
  for (const std::string& method : flags.compare) {
    report.methods.push_back(measure_other(flags, method, source, reference, windows, exec));
  }
  const Json json = report_json(report);
  write_file_atomically(flags.out + "/report.json", dump_json(json, 1) + "\n");
  write_file_atomically(flags.out + "/report.html", report_html(report));
  complete_manifest(flags, report, fingerprint);
  if (flags.common.json) {
    print_json(json);
  } else {
    print(summary(flags, report));
    const std::string note = rotation_note(flags.out);
    if (!note.empty()) print_line(note);
    warn_of_fallbacks(flags.out, report.linears);
  }
}

}  // namespace

void add_compress_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<CompressFlags>();  // shared: the callback outlives this function
  CLI::App* command =
      app.add_subcommand("compress", "Quantize, fit the cache's codec, measure, report");
  command->add_option("IN", flags->in, "The model: a directory or a GGUF file")
      ->required()
      ->type_name("");
  command->add_option("OUT", flags->out, "The directory to write")->required()->type_name("");
  add_quantize_flags(*command, flags->quantize);
  command
      ->add_option(
          "--data", flags->data,
          "Text to measure quality on (default: a part of the built-in text that is not used to "
          "calibrate)")
      ->type_name("FILE");
  command->add_option("--windows", flags->windows.max_windows, "Windows of that text; 0: all of it")
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--eval-seq-len", flags->windows.seq_len, "Tokens of such a window")
      ->capture_default_str()
      ->type_name("N");
  command
      ->add_option("--compare", flags->compare,
                   "Measure these methods too (each quantizes the model once more): rtn, gptq, ...")
      ->type_name("METHOD...");
  command->add_flag("--no-fit-kv", flags->no_fit_kv,
                    "Make no codec for the key-value cache ('lathe fit-kv' makes one later)");
  add_common_flags(*command, flags->common);
  command->footer(
      "Writes the model with a 2-bit codec for its key-value cache (--kv aqua2), report.html and "
      "report.json to OUT. Calibrate on one text, measure on "
      "another.\n\n"
      "Examples:\n"
      "  lathe compress smollm2.gguf OUT\n"
      "  lathe compress smollm2.gguf OUT --calibration book.txt --data wiki.test.raw");
  command->callback([flags, &invocation] {
    flags->command_line = invocation.command_line;
    invocation.run = [flags] { run_compress(*flags); };
  });
}

}  // namespace lathe
