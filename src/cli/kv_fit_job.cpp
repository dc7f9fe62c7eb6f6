#include "cli/kv_fit_job.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/interrupt.h"
#include "cli/memory_use.h"
#include "cli/quantize_job.h"
#include "compress/calibration_data.h"
#include "compress/default_calibration.h"
#include "formats/manifest.h"

namespace lathe {
namespace {

// -log4 of a relative error: what the prediction is worth in bits of a quantizer.
double equivalent_bits(double relative_mse) {
  return relative_mse > 0 ? -std::log2(relative_mse) / 2 : 0;
}

struct PlaneSummary {
  double prediction = 0, reconstruction = 0, explained = 0;  // means over the layers, held out
};
PlaneSummary summary_of(const KvFitResult& result, bool keys) {
  PlaneSummary summary;
  const auto& qualities = keys ? result.file.key_quality : result.file.value_quality;
  for (std::size_t i = 0; i < qualities.size(); ++i) {
    summary.prediction += qualities[i].heldout_relative_mse;
    summary.explained += qualities[i].heldout_explained_variance;
    summary.reconstruction +=
        keys ? result.layers[i].key_reconstruction : result.layers[i].value_reconstruction;
  }
  const auto n = static_cast<double>(qualities.size());
  return {summary.prediction / n, summary.reconstruction / n, summary.explained / n};
}

Json quality_json(const KvFitQuality& quality, double reconstruction) {
  return {{"train_relative_mse", quality.train_relative_mse},
          {"heldout_relative_mse", quality.heldout_relative_mse},
          {"train_explained_variance", quality.train_explained_variance},
          {"heldout_explained_variance", quality.heldout_explained_variance},
          {"equivalent_bits", equivalent_bits(quality.heldout_relative_mse)},
          {"reconstruction_relative_mse", reconstruction}};
}

}  // namespace

void add_kv_codec_flags(CLI::App& command, KvCodecFlags& flags) {
  const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
    return command.add_option(name, value, help)->type_name(type);
  };
  add("--bits", flags.bits, "Bits of a number: 2, 3 or 4", "N")->capture_default_str();
  add("--method", flags.method, "aqua: predicted, the rest by HIGGS; higgs; int: uniform", "NAME")
      ->capture_default_str();
  add("--variant", flags.variant,
      "Of aqua: latent (from one latent of several layers); dense (from the layer below, as "
      "published), low-rank, block-diagonal; star (from an anchor layer)",
      "NAME")
      ->capture_default_str();
  add("--rank", flags.rank,
      "low-rank: of each predictor; latent: numbers of a group's latent (default: half of a "
      "layer's keys; latent also at most two heads)",
      "N");
  add("--group-layers", flags.group_layers, "star, latent: layers that share an anchor or a latent",
      "N")
      ->capture_default_str();
  add("--latent-bits", flags.latent_bits, "latent: bits of its numbers, 4 or 8", "N")
      ->capture_default_str();
  command.add_flag("--latent-values", flags.latent_values,
                   "latent: made of keys and values instead of keys");
  add("--value-inputs", flags.value_inputs,
      "latent: what values are predicted from: latent (default), whose codes a GPU attends to as "
      "they lie, or keys-latent, a little closer",
      "NAME");
  add("--grid-dim", flags.grid_dim, "Numbers that share a codeword: 1, 2, or 4 with --bits 2", "N")
      ->capture_default_str();
  add("--first-layer-bits", flags.first_layer_bits,
      "Bits of layers that nothing predicts, 2 to 4 (default: 4 with aqua's dense, low-rank, "
      "block-diagonal and star, else as --bits)",
      "N");
  add("--scale", flags.scale, "A head's scale: log8 (one byte), f16 or f32", "NAME")
      ->capture_default_str();
  add("--key-inputs", flags.key_inputs,
      "What keys are predicted from, of the layer below: keys (as published) or keys-values",
      "NAME")
      ->capture_default_str();
  command.add_flag("--no-key-predictor", flags.no_key_predictor, "Keys: their mean only");
  command.add_flag("--no-value-predictor", flags.no_value_predictor, "Values: their mean only");
  command.add_flag("--no-mean", flags.no_mean,
                   "What nothing predicts is coded as it is, without removing the mean");
  command.add_flag("--exact-inputs", flags.exact_inputs,
                   "Fit on exact instead of reconstructed rows");
  command.add_flag("--no-hadamard", flags.no_hadamard,
                   "Static per-channel scales of the residual instead of a Hadamard transform");
  add("--sinks", flags.sinks, "First tokens of a sequence that stay exact, 0 to 4096", "N")
      ->capture_default_str();
  add("--window", flags.window, "At least so many of the latest tokens stay exact, 0 to 2^20", "N")
      ->capture_default_str();
  add("--chunk-tokens", flags.chunk_tokens,
      "So many tokens become codes at once, when they and the window are there: a multiple of 32 "
      "up "
      "to 65536",
      "N")
      ->capture_default_str();
  add("--ridge", flags.ridge,
      "Damping of the predictors' weights, of the inputs' mean variance: above 0, at most 1", "X")
      ->capture_default_str();
  add("--predictor-dtype", flags.predictor_dtype,
      "What the predictors are stored in, and rounded to before anything is coded with them: bf16 "
      "or f32",
      "NAME")
      ->capture_default_str();
}

KvFitOptions kv_fit_options(const KvCodecFlags& flags) {
  KvFitOptions options;
  options.method = kv_fit_method_from_name(flags.method);
  options.variant = kv_fit_variant_from_name(flags.variant);
  options.bits = flags.bits;
  options.first_layer_bits = flags.first_layer_bits;
  options.grid_dim = flags.grid_dim;
  try {
    options.scale = row_scale_from_name(flags.scale);
  } catch (const Error& error) {
    fail(ErrorCode::kInvalidArgument, "--scale: ", error.what());
  }
  options.rank = flags.rank;
  options.group_layers = flags.group_layers;
  options.latent_bits = flags.latent_bits;
  options.latent_values = flags.latent_values;
  if (flags.key_inputs != "keys" && flags.key_inputs != "keys-values") {
    fail(ErrorCode::kInvalidArgument, "--key-inputs ", flags.key_inputs,
         ": unknown; choose keys or keys-values");
  }
  options.keys_from_values = flags.key_inputs == "keys-values";
  if (!options.keys_from_values && options.has_latents()) {
    fail(
        ErrorCode::kInvalidArgument,
        "--key-inputs keys: with --variant latent keys are predicted from the latent; name another "
        "variant");
  }
  if (!flags.value_inputs.empty()) {
    if (flags.value_inputs != "keys-latent" && flags.value_inputs != "latent") {
      fail(ErrorCode::kInvalidArgument, "--value-inputs ", flags.value_inputs,
           ": unknown; choose keys-latent or latent");
    }
    if (!options.has_latents()) {
      fail(ErrorCode::kInvalidArgument, "--value-inputs ", flags.value_inputs,
           ": only --variant latent has a latent");
    }
  }
  options.values_from_keys = !options.has_latents() || flags.value_inputs == "keys-latent";
  options.predict_keys = !flags.no_key_predictor;
  options.predict_values = !flags.no_value_predictor;
  options.mean = !flags.no_mean;
  options.exact_inputs = flags.exact_inputs;
  options.hadamard = !flags.no_hadamard;
  options.num_sinks = flags.sinks;
  options.window = flags.window;
  options.chunk_tokens = flags.chunk_tokens;
  options.ridge = flags.ridge;
  if (flags.predictor_dtype != "bf16" && flags.predictor_dtype != "f32") {
    fail(ErrorCode::kInvalidArgument, "--predictor-dtype ", flags.predictor_dtype,
         ": unknown; choose bf16 or f32");
  }
  options.predictor_dtype = flags.predictor_dtype == "f32" ? DType::kF32 : DType::kBF16;
  return options;
}

std::vector<KvFitResult> run_kv_fit(const TextModel& source, const std::string& out,
                                    const KvFitFlags& flags, const std::string& command, bool quiet,
                                    Communicator& ranks, Exec& exec) {
  KvFitJob job;
  job.source = &source.checkpoint();
  for (const KvCodecFlags& codec : flags.codecs) job.options.push_back(kv_fit_options(codec));
  std::vector<std::string> texts;
  for (const std::string& path : flags.calibration) texts.push_back(read_calibration_text(path));
  if (texts.empty()) {
    texts.emplace_back(flags.hold_out ? default_text_parts().calibration
                                      : default_calibration_text());
  }
  // No longer than the model's context: its keys would be none that it makes.
  const int64_t seq_len =
      std::min(flags.seq_len, source.checkpoint().config().max_position_embeddings);
  job.sequences =
      calibration_sequences(source.tokenizer(), texts, flags.samples, seq_len, flags.seed);
  job.held_out_every = std::min<int64_t>(8, std::max<int64_t>(2, flags.samples));
  job.working_directory = out + ".working";
  job.ranks = &ranks;
  job.created_by = command;

  constexpr int64_t kSteps = 1000;  // of the progress bar
  Progress progress("fitting the cache's predictors", kSteps, "", quiet || ranks.rank() != 0);
  const InterruptScope interrupt;
  KvFitCallbacks callbacks;
  callbacks.on_progress = [&](int64_t layer, double fraction) {
    progress.set_label(str("layer ", layer, ": predictors of the cache"));
    const auto done = static_cast<int64_t>(fraction * static_cast<double>(kSteps));
    if (done > progress.done()) progress.advance(done - progress.done());
  };
  callbacks.canceled = [&] { return interrupt.requested(); };
  return fit_kv_codecs(job, callbacks, exec);
}

void write_fitted_codec(const KvFitResult& result, const std::string& out) {
  write_kv_codec(result.file, out);
  const std::filesystem::path path(out);
  const std::string directory = path.has_parent_path() ? path.parent_path().string() : ".";
  if (path.filename() != kKvCodecFileName ||
      !std::filesystem::exists(std::filesystem::path(directory) / kManifestFileName)) {
    return;
  }
  Manifest manifest = read_manifest(directory);
  update_file(manifest, directory, kKvCodecFileName);
  std::erase_if(manifest.settings, [](const auto& setting) { return setting.first == "fit-kv"; });
  manifest.settings.emplace_back("fit-kv", result.file.created_by);
  write_manifest(directory, manifest);
}

Json kv_fit_json(const KvFitResult& result, const std::string& out) {
  const KvCodecFile& file = result.file;
  Json json = {{"codec", out},
               {"method", file.method},
               {"variant", file.variant},
               {"bits", file.bits},
               {"first_layer_bits", file.first_layer_bits},
               {"bits_per_value", kv_bits_per_value(file)},
               {"token_bytes", kv_token_bytes(file)},
               {"predictor_bytes", kv_predictor_bytes(file)},
               {"sinks", file.num_sinks},
               {"window", file.window},
               {"chunk", file.chunk_tokens},
               {"train_tokens", result.train_tokens},
               {"heldout_tokens", result.held_out_tokens},
               {"explained_variance_gap", kv_fit_gap(file)},
               {"gap_allowed", kKvFitGap},
               {"seconds", result.seconds},
               {"processor_seconds", processor_seconds()},
               {"peak_memory_bytes", peak_memory_bytes()}};
  json["layers"] = Json::array();
  for (std::size_t i = 0; i < result.layers.size(); ++i) {
    json["layers"].push_back(
        {{"keys", quality_json(file.key_quality[i], result.layers[i].key_reconstruction)},
         {"values", quality_json(file.value_quality[i], result.layers[i].value_reconstruction)}});
  }
  return json;
}

std::string kv_fit_text(const KvFitResult& result, const std::string& out) {
  const KvCodecFile& file = result.file;
  const PlaneSummary keys = summary_of(result, true), values = summary_of(result, false);
  char text[500];
  std::snprintf(
      text, sizeof text,
      "%.3f bits a number with scales (bf16: 16), predictors %s\n"
      "left by the prediction  keys %.4f  values %.4f of the energy, held out\n"
      "left by the codes       keys %.5f  values %.5f\n"
      "fitted on %lld tokens, judged on %lld, %s\n",
      kv_bits_per_value(file), format_bytes(static_cast<double>(kv_predictor_bytes(file))).c_str(),
      keys.prediction, values.prediction, keys.reconstruction, values.reconstruction,
      static_cast<long long>(result.train_tokens), static_cast<long long>(result.held_out_tokens),
      format_duration(result.seconds).c_str());
  return str(out, ": ", file.method, " ", file.variant, ", ", file.bits, " bits\n", text);
}

}  // namespace lathe
