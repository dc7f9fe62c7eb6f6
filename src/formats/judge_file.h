// judge.safetensors: a trained judge with what it was trained for. Tensors: weight [d] and bias [1]
// (standardization folded in); mean, scale and raw_weight [d] (before folding, for audits);
// calib.threshold, calib.recall, calib.rho [m]; all f32. The JSON that says the rest is the
// header's metadata under "judge" (docs/formats.md). No dates, so the same training gives the same
// bytes.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "formats/checkpoint.h"

namespace lathe {

// What a judge must be used with. Hidden states change with every one of these. Files of schema 1
// do not have those behind `hidden_size`, which are then empty.
struct JudgeTarget {
  std::string config_sha256;
  std::string weights_sha256;  // of layer 0's q and o, as stored
  std::string weight_format;
  int64_t hidden_size = 0;
  std::string layers_sha256;     // of the norms, and of weights of the first and the last layer
  std::string tokenizer_sha256;  // of what every token id stands for
  std::string compute;           // "auto" or "fp32", as --dtype has it
  std::string kv_format;         // of the cache, as --kv has it
  std::string name;              // for people; not compared
  bool operator==(const JudgeTarget&) const = default;
};
// What a checkpoint can say: all but tokenizer, compute, kv_format and name.
JudgeTarget judge_target(const Checkpoint& checkpoint);

struct JudgeFile {
  std::vector<float> weight;  // [d], folded
  float bias = 0;
  std::vector<float> mean, scale, raw_weight;  // [d]
  std::vector<float> threshold, recall, rho;   // [m], the calibration table
  JudgeTarget target;
  double default_threshold = 0;
  std::vector<double> certified;  // thresholds of the metadata's risk certificate; read only
  std::string metadata;           // the JSON
};

void write_judge_file(const std::string& path, const JudgeFile& judge);
// Throws kCorruptData for a file that is not a judge: missing or misshapen tensors, numbers that
// are not finite, thresholds outside [0, 1], metadata without its fields.
JudgeFile read_judge_file(const std::string& path);
// Throws kInvalidArgument, saying what differs, unless the judge was made for `actual`, the model
// `model` as it runs here. Returns what the file does not say: "tokenizer, cache format"; empty
// when it says all.
std::string check_judge_target(const JudgeFile& judge, const std::string& path,
                               const JudgeTarget& actual, const std::string& model);

}  // namespace lathe
