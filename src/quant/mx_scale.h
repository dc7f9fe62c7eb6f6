// The ways to choose the power-of-two scale of a group of E2M1 elements (MXFP4), a = max|x|.
// Source: spec/mr-gptq.md 1.5, where the rules are compared.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

namespace lathe {

enum class MxScaleRule {
  kOcpFloor,   // 2^(floor(log2 a) - 2); OCP MX specification; clips 6..8 to 6
  kCtEven,     // as above, one more when the significand of a is >= 1.75; compressed-tensors
  kCeil,       // the smallest power of two with a / scale <= 6; never clips
  kAbsmaxX3,   // 2^floor(log2 a) / 3; the authors' kernels; never clips; global scale 3
  kPaperEq1,   // 4/3 * 2^round(log2(a / 6)); the paper's equation 1; global scale 3/4
  kQuest,      // 2^floor(log2(sigma * 2.92247856 / 6 + 1e-8)); QuEST; clips
  kMsePow2,    // the power of two with the least squared error
  kMsePow2X3,  // the same on the grid 2^e / 3; global scale 3
};

// ocp_floor, ct_even, ceil, absmax_x3, paper_eq1, quest, mse_pow2, mse_pow2_x3. Throws
// kInvalidArgument listing them.
MxScaleRule mx_scale_rule_from_name(std::string_view name);
std::string_view mx_scale_rule_name(MxScaleRule rule);

// The constant that a matrix quantized by this rule is divided by at decode
// (QuantizedMatrix::global_scale).
float mx_global_scale(MxScaleRule rule);

// The E8M0 byte. A group of zeros gets byte 0 (quest: whatever its formula says). Values must be
// finite.
uint8_t mx_scale_byte(MxScaleRule rule, std::span<const float> group);

}  // namespace lathe
