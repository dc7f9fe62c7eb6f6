#include "cli/flags.h"

#include <unistd.h>

#include <algorithm>

#include "base/error.h"

namespace lathe {
namespace {

int checked_threads(const CommonFlags& flags) {
  if (flags.threads < 0 || flags.threads > 1024) {
    fail(ErrorCode::kInvalidArgument, "--threads ", flags.threads,
         ": 1 to 1024, or 0 for all cores of this machine");
  }
  return flags.threads;
}

// -1: the CPU.
int cuda_device(const std::string& name) {
  if (name == "cpu") return -1;
  const std::string digits = name.rfind("cuda:", 0) == 0 ? name.substr(5) : "";
  const bool is_number = !digits.empty() && digits.size() <= 3 &&
                         digits.find_first_not_of("0123456789") == std::string::npos;
  if (name != "cuda" && !is_number) {
    fail(ErrorCode::kInvalidArgument, "--device ", name, ": unknown; use cpu, cuda or cuda:N");
  }
#ifndef LATHE_HAS_CUDA
  fail(ErrorCode::kInvalidArgument, "--device ", name,
       ": this lathe has no CUDA backend; use --device cpu, or build it with scripts/build --cuda");
#endif
  return is_number ? std::stoi(digits) : 0;
}

}  // namespace

void add_common_flags(CLI::App& command, CommonFlags& flags) {
  command.add_flag("--json", flags.json, "Print the result as JSON");
  command.add_option("--threads", flags.threads, "Threads to compute with (0: all cores)")
      ->type_name("N");
  command
      .add_option("--device", flags.device, "Where to compute: cpu, cuda or cuda:N (a Hopper GPU)")
      ->type_name("DEVICE");
}

bool loads_quietly(const CommonFlags& flags) { return flags.json || isatty(STDERR_FILENO) == 0; }

Runtime::Runtime(const CommonFlags& flags)
    : threads_(checked_threads(flags)), exec_{threads_, workspace_, cuda_device(flags.device)} {}

void add_model_flags(CLI::App& command, ModelFlags& flags) {
  command
      .add_option("--dtype", flags.dtype,
                  "auto: the fastest arithmetic that the checkpoint allows; fp32: all weights and "
                  "activations in fp32 (slow, exact)")
      ->type_name("TYPE");
  command
      .add_option(
          "--kv", flags.kv,
          "Format of the key-value cache: bf16 (default), f32 (default with fp32), fp8, higgs4; "
          "aqua4, aqua3, aqua2 with a codec of 'lathe fit-kv'; on a CPU also int8, q4, higgs3, "
          "higgs2")
      ->type_name("FORMAT");
  command
      .add_option(
          "--kv-codec", flags.kv_codec,
          "A codec of 'lathe fit-kv' for the cache (default: the one in the model's directory, "
          "where --kv asks for it)")
      ->type_name("FILE");
  command
      .add_option("--tensor-parallel", flags.tensor_parallel,
                  "Divide every layer over N GPUs of this machine, from --device on (with --device "
                  "cpu: over groups of its threads). Heads and MLP must divide by N")
      ->type_name("N");
}

ModelOptions model_options(const ModelFlags& flags) {
  ModelOptions options;
  if (flags.tensor_parallel < 1 || flags.tensor_parallel > 64) {
    fail(ErrorCode::kInvalidArgument, "--tensor-parallel ", flags.tensor_parallel, ": 1 to 64");
  }
  options.tensor_parallel = flags.tensor_parallel;
  if (flags.dtype == "fp32" || flags.dtype == "f32") {
    options.dense_dtype = DType::kF32;
    options.compute = ComputeType::kF32;
  } else if (flags.dtype != "auto") {
    fail(ErrorCode::kInvalidArgument, "--dtype ", flags.dtype, ": unknown; use auto or fp32");
  }
  return options;
}

void name_flags(const std::function<void()>& check) {
  try {
    check();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidArgument) throw;
    const std::string message = error.what();
    std::string flag = message.substr(0, message.find(' '));
    const std::string rest = message.substr(flag.size());
    std::replace(flag.begin(), flag.end(), '_', '-');
    if (flag == "max-sequence-tokens") flag = "context";
    throw Error(error.code(), "--" + flag + rest);
  }
}

CLI::Option* add_model_argument(CLI::App& command, std::string& path) {
  return command.add_option("MODEL", path, "A model directory or a GGUF file")
      ->required()
      ->type_name("");
}

}  // namespace lathe
