// From flags to a run of fit_kv_codecs(): shared by `fit-kv` and `compress`.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cli/loaded_model.h"
#include "compress/kv_fit_model.h"

namespace lathe {

// What one codec is.
struct KvCodecFlags {
  std::string method = "aqua";
  std::string variant = "latent";  // the best at its bits: docs/results/kv-cache.md
  int bits = 2;
  int first_layer_bits = 0;
  int64_t grid_dim = 2;
  std::string scale = "log8";
  int64_t rank = 0;
  int64_t group_layers = 4;
  int latent_bits = 4;
  bool latent_values = false;
  std::string key_inputs = "keys-values";
  std::string value_inputs;  // of variant latent: keys-latent or, if empty, latent
  bool no_key_predictor = false;
  bool no_value_predictor = false;
  bool no_mean = false;
  bool exact_inputs = false;
  bool no_hadamard = false;
  int64_t sinks = 4;
  int64_t window = 128;
  int64_t chunk_tokens = 128;
  double ridge = 1e-3;
  std::string predictor_dtype = "bf16";
};

// What it is fitted on.
struct KvFitFlags {
  std::vector<KvCodecFlags> codecs = {KvCodecFlags{}};  // in one pass over the model
  std::vector<std::string> calibration;
  int64_t samples = 32;
  int64_t seq_len = 1024;
  uint64_t seed = 42;
  // Without `calibration`: only the part of the built-in text that quantize's hold_out leaves. Not
  // a flag.
  bool hold_out = false;
};
void add_kv_codec_flags(CLI::App& command, KvCodecFlags& flags);

// Throws kInvalidArgument for names and numbers that cannot be.
KvFitOptions kv_fit_options(const KvCodecFlags& flags);

// Reads the calibration text (the built-in one when none is named) and fits. Ctrl-C ends it
// (kCanceled). One result a codec. Working files: beside `out`, gone at the end.
std::vector<KvFitResult> run_kv_fit(const TextModel& source, const std::string& out,
                                    const KvFitFlags& flags, const std::string& command, bool quiet,
                                    Communicator& ranks, Exec& exec);

// Writes the codec; where `out` is the codec of a model directory with a manifest, the manifest
// lists it from then on.
void write_fitted_codec(const KvFitResult& result, const std::string& out);

// What a fit found, as the commands print it.
nlohmann::ordered_json kv_fit_json(const KvFitResult& result, const std::string& out);
std::string kv_fit_text(const KvFitResult& result, const std::string& out);

}  // namespace lathe
