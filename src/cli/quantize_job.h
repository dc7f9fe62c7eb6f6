// From flags to a run of quantize_model(): shared by `quantize` and `compress`.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/ablation_flags.h"
#include "cli/loaded_model.h"
#include "compress/quantize_model.h"

namespace lathe {

struct QuantizeFlags {
  std::string format = "mxfp4";
  std::string method = "mr-gptq";
  std::string activations = "none";
  int64_t hadamard = -1;   // -1: what is recommended
  std::string scale_rule;  // empty: what is recommended
  AblationFlags ablations;
  bool emulate = false;
  std::vector<std::string> calibration;
  int64_t samples = 128;
  int64_t seq_len = 2048;
  uint64_t seed = 42;
  bool resume = false;
  // Without `calibration`, calibrate on the first three quarters of the built-in text only, so that
  // the last can be measured on. Not a flag.
  bool hold_out = false;
};
void add_quantize_flags(CLI::App& command, QuantizeFlags& flags);

// The built-in calibration text, cut at a line: the part that hold_out calibrates on, and the rest.
struct DefaultTextParts {
  std::string_view calibration, held_out;
};
DefaultTextParts default_text_parts();

// Throws kInvalidArgument for names and combinations that cannot be.
QuantizeOptions quantize_options(const QuantizeFlags& flags);

// A line for people that says which engines read the finished directory, when its layers' inputs
// are rotated; empty when they are not.
std::string rotation_note(const std::string& directory);

// Reads the calibration text (the built-in one when none is named) where the method needs some, and
// quantizes. Ctrl-C stops after the
// piece of work in hand (kCanceled); --resume goes on. `command`: for the manifest. Rank 0 shows
// progress.
QuantizeResult run_quantize_job(const TextModel& source, const std::string& out,
                                const QuantizeFlags& flags, const std::string& command, bool quiet,
                                Communicator& ranks, Exec& exec);

// A warning when some linears did not get what the method promises.
void warn_of_fallbacks(const std::string& out, std::span<const LinearReport> reports);

}  // namespace lathe
