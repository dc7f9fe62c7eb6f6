// Flags that several commands share, and what they become.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>

#include "cache/kv_cache.h"
#include "model/model.h"
#include "tensor/exec.h"

namespace lathe {

// Every command has these.
struct CommonFlags {
  bool json = false;
  int threads = 0;  // 0: what the process may run on
  std::string device = "cpu";
};
void add_common_flags(CLI::App& command, CommonFlags& flags);
// Whether a command whose standard error belongs to scripts loads without a word: with --json, and
// where nobody watches.
bool loads_quietly(const CommonFlags& flags);

// Threads and scratch memory for one run of a command.
class Runtime {
 public:
  // Throws kInvalidArgument for a number of threads or a device that cannot be.
  explicit Runtime(const CommonFlags& flags);
  Exec& exec() { return exec_; }

 private:
  ThreadPool threads_;
  Workspace workspace_;
  Exec exec_;
};

// How a model is loaded and its cache kept.
struct ModelFlags {
  std::string dtype = "auto";  // fp32: every weight and activation in fp32
  std::string kv;              // empty: bf16, or f32 with --dtype fp32; kv_flags.h
  int tensor_parallel = 1;     // GPUs (with --device cpu: groups of threads) that share every layer
  std::string kv_codec;  // a file; empty: the one of the model's directory where kv asks for it
};
void add_model_flags(CLI::App& command, ModelFlags& flags);
ModelOptions model_options(const ModelFlags& flags);
// Runs `check`; where it refuses a field of the API ("top_p is 2; ..."), the message names the flag
// instead ("--top-p is 2; ..."). For checks whose messages begin with the field.
void name_flags(const std::function<void()>& check);
// A positional MODEL: a directory or a GGUF file.
CLI::Option* add_model_argument(CLI::App& command, std::string& path);

}  // namespace lathe
