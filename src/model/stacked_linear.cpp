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

int64_t columns(const LinearWeights& weights) {
  return weights.quantized ? weights.quantized->cols : weights.dense.dim(1);
}

}  // namespace

std::vector<LinearStack> stack_linears(std::span<const LinearWeights* const> parts) {
  LATHE_CHECK(!parts.empty());
  std::vector<LinearStack> stacks;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (columns(*parts[i]) != columns(*parts[0])) {
      fail(ErrorCode::kCorruptData, "layers that share an input have ", columns(*parts[0]), " and ",
           columns(*parts[i]), " input features");
    }
    if (i == 0 || !can_stack(*parts[i - 1], *parts[i])) {
      stacks.push_back({.parts = {}, .scheme = parts[i]->scheme});
    }
    stacks.back().parts.push_back(part_of(*parts[i]));
  }
  return stacks;
}

std::vector<LinearStack> layer_stacks(const LayerWeights& weights, LinearKind kind, int64_t expert,
                                      int64_t n, int64_t k) {
  std::vector<const LinearWeights*> parts;
  std::string name;
  int64_t rows = 0;
  for (const LayerLinear& linear : weights.linears) {
    if (linear.slot.kind != kind || linear.slot.expert != expert) continue;
    parts.push_back(&linear.weights);
    rows += linear.weights.quantized ? linear.weights.quantized->rows : linear.weights.dense.dim(0);
    name = linear.slot.module;
  }
  return with_context(name, [&] {
    std::vector<LinearStack> stacks = stack_linears(parts);
    if (rows != n || columns(*parts[0]) != k) {
      fail(ErrorCode::kCorruptData, "with the weights that share its input it is [", rows, ", ",
           columns(*parts[0]), "], the config asks for [", n, ", ", k, "]");
    }
    return stacks;
  });
}

StackedLinear::StackedLinear(std::span<const LinearStack> stacks, ComputeType compute, Exec& exec) {
  for (const LinearStack& stack : stacks) {
    packed_.push_back(pack_linear(stack.parts, stack.scheme, compute, exec));
    n_ += packed_.back()->n;
  }
  k_ = packed_.front()->k;
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
