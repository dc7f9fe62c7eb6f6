// Random weights for timing linear layers; linear_speed.h says what the formats' names mean.
#pragma once
#include <string>
#include <vector>

#include "cli/linear_speed.h"
#include "kernels/linear/linear.h"

namespace lathe {

struct RandomLinear {
  QuantizedMatrix quantized;
  Tensor dense;  // instead of `quantized`
  LinearScheme scheme;
  ComputeType compute = ComputeType::kAuto;

  LinearPart part() const {
    return dense.empty() ? LinearPart{.quantized = &quantized} : LinearPart{.dense = &dense};
  }
};
// Throws kInvalidArgument for a name that is no format.
RandomLinear make_random_linear(const std::string& format, const LinearShape& shape);

// A short sequence of normal numbers, repeated: the numbers do not matter, the time to make them
// does.
std::vector<float> repeated_normal(int64_t count, uint64_t seed);

}  // namespace lathe
