// Speed of one linear layer on this machine, checked against the reference kernel first.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "tensor/exec.h"

namespace lathe {

struct LinearShape {
  int64_t n = 0;  // output features
  int64_t k = 0;  // input features
};
// "NxK". Throws kInvalidArgument.
LinearShape linear_shape_from_text(const std::string& text);

struct LinearSpeedOptions {
  // A weight format's name (the machine's choice of activations), bf16, f16 or f32 (dense), or
  // FORMAT/ACTIVATIONS: mxfp4/f32 (floating point), mxfp4/mxfp4, nvfp4/nvfp4, ...
  std::string format = "mxfp4";
  LinearShape shape;
  std::vector<int64_t> rows = {1};
  std::string kernel;    // a row of the table by name ("ref", "avx2"); empty: the best one here
  double seconds = 0.3;  // of repetitions, at least; and never fewer than ten
  // A weight is copied until the copies have this many bytes, and the repetitions walk through them
  // as a model walks through its layers: weights come from memory. 1: stay in the cache.
  int64_t bytes_of_copies = int64_t{96} << 20;
};

struct LinearSpeed {
  int64_t rows = 0;
  std::string kernel;         // as PackedLinear says it
  int64_t weight_bytes = 0;   // read once per call
  double median_seconds = 0;  // of linear()
  double fastest_seconds = 0;
  double prepare_seconds = 0;  // of prepare_input(), median
  double macs_per_cycle = 0;   // multiply-adds per core and cycle of the clock at that moment
  double difference = 0;       // from the reference, relative to its largest value
};

// One result for each number of rows. Throws kInvalidArgument for names and sizes that cannot be,
// kInternal when a kernel does not compute what the reference computes: no speed is reported then.
std::vector<LinearSpeed> measure_linear_speed(const LinearSpeedOptions& options, Exec& exec);

}  // namespace lathe
