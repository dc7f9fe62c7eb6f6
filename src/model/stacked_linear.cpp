#include "model/stacked_linear.h"

#include "base/check.h"
#include "base/error.h"

namespace lathe {
namespace {

bool same_scheme(const LinearScheme& a, const LinearScheme& b) {
  return a.activations == b.activations && a.input_global_scale == b.input_global_scale &&
         a.hadamard == b.hadamard;
}

bool can_stack(const LinearWeights& a, const LinearWeights& b) {
  if (a.quantized.has_value() != b.quantized.has_value()) return false;
  if (!same_scheme(a.scheme, b.scheme)) return false;
  if (!a.quantized) return a.dense.dtype() == b.dense.dtype();
  if (!(a.quantized->format == b.quantized->format)) return false;
  // A scale that pack_linear cannot fold into rows: the fitted grid of the whole matrix.
  return a.quantized->log_alpha == b.quantized->log_alpha &&
         a.quantized->log_beta == b.quantized->log_beta;
}

LinearPart part_of(const LinearWeights& weights) {
  LinearPart part;
  if (weights.quantized) {
    part.quantized = &*weights.quantized;
  } else {
    part.dense = &weights.dense;
  }
  if (!weights.bias.empty()) part.bias = weights.bias.as<float>();
  return part;
}

}  // namespace

StackedLinear::StackedLinear(std::span<const LinearWeights* const> parts, ComputeType compute,
                             Exec& exec) {
  LATHE_CHECK(!parts.empty());
  std::vector<LinearPart> stack;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    stack.push_back(part_of(*parts[i]));
    if (i + 1 < parts.size() && can_stack(*parts[i], *parts[i + 1])) continue;
    packed_.push_back(pack_linear(stack, parts[i]->scheme, compute, exec));
    stack.clear();
  }
  k_ = packed_.front()->k;
  for (const auto& weight : packed_) {
    if (weight->k != k_) {
      fail(ErrorCode::kCorruptData, "layers that share an input have ", k_, " and ", weight->k,
           " input features");
    }
    n_ += weight->n;
  }
}

int64_t StackedLinear::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& weight : packed_) bytes += weight->weight_bytes;
  return bytes;
}

std::string StackedLinear::kernels() const {
  std::string names;
  for (const auto& weight : packed_) {
    if (!names.empty()) names += " + ";
    names += weight->kernel;
  }
  return names;
}

void StackedLinear::run(const float* x, int64_t m, float* y, int64_t y_stride, Exec& exec) const {
  if (m == 0) return;
  for (const auto& weight : packed_) {
    const Workspace::Scope scope(exec.workspace);
    linear(prepare_input(x, m, *weight, exec), *weight, y, y_stride, exec);
    y += weight->n;
  }
}

}  // namespace lathe
