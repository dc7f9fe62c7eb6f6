#include "cli/flags.h"

#include <unistd.h>

#include "base/error.h"

namespace lathe {
namespace {

int checked_threads(const CommonFlags& flags) {
  if (flags.device == "cuda" || flags.device.rfind("cuda:", 0) == 0) {
    fail(ErrorCode::kInvalidArgument, "--device ", flags.device,
         ": this lathe has no CUDA backend; use --device cpu");
  }
  if (flags.device != "cpu") {
    fail(ErrorCode::kInvalidArgument, "--device ", flags.device, ": unknown; use cpu");
  }
  if (flags.threads < 0 || flags.threads > 1024) {
    fail(ErrorCode::kInvalidArgument, "--threads ", flags.threads,
         ": 1 to 1024, or 0 for all cores of this machine");
  }
  return flags.threads;
}

}  // namespace

void add_common_flags(CLI::App& command, CommonFlags& flags) {
  command.add_flag("--json", flags.json, "Print the result as JSON");
  command.add_option("--threads", flags.threads, "Threads to compute with (0: all cores)")
      ->type_name("N");
  command.add_option("--device", flags.device, "Where to compute: cpu")->type_name("DEVICE");
}

Runtime::Runtime(const CommonFlags& flags)
    : threads_(checked_threads(flags)), exec_{threads_, workspace_} {}

void add_model_flags(CLI::App& command, ModelFlags& flags) {
  command
      .add_option("--dtype", flags.dtype,
                  "auto: the fastest arithmetic that the checkpoint allows; fp32: all weights and "
                  "activations in fp32 (slow, exact)")
      ->type_name("TYPE");
  command
      .add_option("--kv", flags.kv,
                  "Format of the key-value cache: bf16 (default) or f32 (default with fp32)")
      ->type_name("FORMAT");
}

ModelOptions model_options(const ModelFlags& flags) {
  ModelOptions options;
  if (flags.dtype == "fp32" || flags.dtype == "f32") {
    options.dense_dtype = DType::kF32;
    options.compute = ComputeType::kF32;
  } else if (flags.dtype != "auto") {
    fail(ErrorCode::kInvalidArgument, "--dtype ", flags.dtype, ": unknown; use auto or fp32");
  }
  return options;
}

KvFormat kv_format(const ModelFlags& flags) {
  if (flags.kv.empty()) {
    return model_options(flags).dense_dtype == DType::kF32 ? KvFormat::kF32 : KvFormat::kBF16;
  }
  try {
    return kv_format_from_name(flags.kv);
  } catch (const Error& error) {
    fail(ErrorCode::kInvalidArgument, "--kv ", flags.kv, ": ", error.what());
  }
}

CLI::Option* add_model_argument(CLI::App& command, std::string& path) {
  return command.add_option("MODEL", path, "A model directory or a GGUF file")
      ->required()
      ->type_name("");
}

}  // namespace lathe
