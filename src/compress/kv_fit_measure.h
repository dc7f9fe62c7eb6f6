// What a fit measures of predicted and reconstructed rows.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "cache/kv_layer_coder.h"
#include "comm/communicator.h"
#include "tensor/buffer.h"
#include "tensor/exec.h"

namespace lathe {

// Sums over chosen rows, in fp64; with ranks (null: this process alone), over those of all of them.
struct RowErrors {
  double error = 0;     // |exact - made|^2
  double energy = 0;    // |exact|^2
  double variance = 0;  // |exact - mean of exact|^2

  // Rows of zeros that come out as zeros have no error, and what never varies nothing to explain.
  double relative_mse() const { return energy > 0 ? error / energy : (error > 0 ? 1 : 0); }
  double explained_variance() const { return variance > 0 ? 1 - error / variance : 0; }
};
RowErrors row_errors(const float* exact, const float* made, int64_t width,
                     std::span<const int32_t> rows, Communicator* ranks = nullptr);

// Root mean square of each column of exact - made; never zero.
std::vector<float> residual_sigma(const float* exact, const float* made, int64_t width,
                                  std::span<const int32_t> rows, Communicator* ranks = nullptr);

// KvPlaneCoder::predict on any number of rows, on all threads.
void predict_rows(const KvPlaneCoder& coder, const float* const* inputs, float* rows,
                  int64_t num_rows, Exec& exec);

// A latent before it is coded, [num_rows, rank]: parts as KvLatentCoder::encode takes them.
Buffer project_rows(const KvLatent& latent, std::span<const float* const> parts, int64_t num_rows,
                    int64_t width, Exec& exec);

}  // namespace lathe
