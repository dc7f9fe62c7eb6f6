#include "compress/residual_rotation.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "compress/blas.h"

namespace lathe {
namespace {

// Rows of independent normal numbers, orthonormalised (twice, for rounding): uniformly distributed.
std::vector<double> random_orthogonal(int64_t m, Rng& rng) {
  std::vector<double> q(static_cast<std::size_t>(m * m));
  for (double& v : q) v = rng.normal();
  for (int64_t i = 0; i < m; ++i) {
    double* row = q.data() + i * m;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        const double* other = q.data() + j * m;
        double dot = 0;
        for (int64_t c = 0; c < m; ++c) dot += row[c] * other[c];
        for (int64_t c = 0; c < m; ++c) row[c] -= dot * other[c];
      }
    }
    double norm = 0;
    for (int64_t c = 0; c < m; ++c) norm += row[c] * row[c];
    for (int64_t c = 0; c < m; ++c) row[c] /= std::sqrt(norm);
  }
  return q;
}

}  // namespace

ResidualRotation::ResidualRotation(int64_t hidden_size, uint64_t seed)
    : q_(DType::kF32, {hidden_size, hidden_size}) {
  Rng rng(seed);
  const int64_t p = hidden_size & -hidden_size;
  const int64_t m = hidden_size / p;
  const std::vector<double> o = random_orthogonal(m, rng);
  const double normalisation = 1 / std::sqrt(static_cast<double>(p));
  float* q = q_.as<float>();
  for (int64_t i = 0; i < hidden_size; ++i) {
    const double sign = (rng.next_u64() & 1) != 0 ? -1 : 1;
    for (int64_t j = 0; j < hidden_size; ++j) {
      const bool negative = (std::popcount(static_cast<uint64_t>(i % p & j % p)) & 1) != 0;
      const double h = negative ? -normalisation : normalisation;
      q[i * hidden_size + j] =
          static_cast<float>(sign * h * o[static_cast<std::size_t>(i / p * m + j / p)]);
    }
  }
}

void ResidualRotation::rotate_rows(float* rows, int64_t n, Exec& exec) const {
  const int64_t hidden_size = q_.dim(0);
  constexpr int64_t kRows = 1024;
  const BlasThreads threads(exec.threads.num_threads());
  std::vector<float> product(static_cast<std::size_t>(std::min(n, kRows) * hidden_size));
  for (int64_t begin = 0; begin < n; begin += kRows) {
    const int64_t count = std::min(kRows, n - begin);
    float* piece = rows + begin * hidden_size;
    gemm_a_b(count, hidden_size, hidden_size, piece, hidden_size, q_.as<float>(), hidden_size, 0,
             product.data(), hidden_size);
    std::memcpy(piece, product.data(),
                static_cast<std::size_t>(count * hidden_size) * sizeof(float));
  }
}

void ResidualRotation::rotate_reader(float* w, int64_t n, const float* gain, Exec& exec) const {
  const int64_t hidden_size = q_.dim(0);
  if (gain != nullptr) {
    for (int64_t i = 0; i < n * hidden_size; ++i) w[i] *= gain[i % hidden_size];
  }
  rotate_rows(w, n, exec);
}

void ResidualRotation::rotate_writer(float* w, int64_t k, float* bias, Exec& exec) const {
  const int64_t hidden_size = q_.dim(0);
  {
    const BlasThreads threads(exec.threads.num_threads());
    std::vector<float> product(static_cast<std::size_t>(hidden_size * k));
    gemm_at_b(hidden_size, k, hidden_size, q_.as<float>(), hidden_size, w, k, 0, product.data(), k);
    std::memcpy(w, product.data(), product.size() * sizeof(float));
  }
  if (bias != nullptr) rotate_rows(bias, 1, exec);
}

void ResidualRotation::rotate_layer(LayerWeights& weights, const ModelConfig& config,
                                    Exec& exec) const {
  if (config.sandwich_norms) {
    fail(ErrorCode::kUnsupported, "quarot cannot rotate ", config.model_type,
         ": norms behind attention and MLP do not commute with a rotation; take mr-gptq");
  }
  for (LayerLinear& linear : weights.linears) {
    float* w = linear.weights.dense.as<float>();
    float* bias = linear.weights.bias.empty() ? nullptr : linear.weights.bias.as<float>();
    switch (linear.slot.kind) {
      case LinearKind::kQkv:
        rotate_reader(w, linear.slot.n, weights.input_norm.as<float>(), exec);
        break;
      case LinearKind::kGateUp:
        rotate_reader(w, linear.slot.n, weights.mlp_norm.as<float>(), exec);
        break;
      case LinearKind::kO:
      case LinearKind::kDown:
        rotate_writer(w, linear.slot.k, bias, exec);
        break;
    }
  }
  if (!weights.router.empty()) {
    rotate_reader(weights.router.as<float>(), weights.router.dim(0), weights.mlp_norm.as<float>(),
                  exec);
  }
  for (Tensor* gain : {&weights.input_norm, &weights.mlp_norm}) {
    for (int64_t j = 0; j < gain->num_elements(); ++j) gain->as<float>()[j] = 1.0f;
  }
}

}  // namespace lathe
