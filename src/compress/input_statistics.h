// What calibration keeps of the inputs x [tokens, k] of a linear layer (or of several that share
// them): the Hessian H = (2 / tokens) X^T X of the layer's squared output error, and per-channel
// magnitudes. Linear layers with the same input share one.
// Source: Frantar et al., "GPTQ" (2023), section 3; spec/mr-gptq.md 4.2.
#pragma once
#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "compress/gram.h"
#include "tensor/buffer.h"
#include "tensor/exec.h"

namespace lathe {

class InputStatistics {
 public:
  // gram: also accumulate X^T X, 4 k^2 bytes.
  InputStatistics(int64_t k, bool gram);
  // What was collected elsewhere (on a GPU). gram: upper triangle of X^T X, or empty; amax and sums
  // of |x_j|, [k] each.
  InputStatistics(int64_t tokens, Buffer gram, std::vector<float> amax,
                  std::vector<double> sum_abs);

  // fp32 products and sums (see ProductArgs::in_two_terms), the upper half only; the same bits
  // however many rows come at a time. Throws kInvalidArgument on a NaN or an infinity. share: only
  // this part of the sums is made, always the same one; the parts of all ranks, each of which adds
  // the same rows, are put together by join().
  void add(const float* x, int64_t tokens, Exec& exec, const GramShare& share = {});

  int64_t k() const { return k_; }
  int64_t tokens() const { return tokens_; }
  bool has_gram() const { return gram_.size() > 0; }
  // Largest |x_j| and mean |x_j| of each channel.
  const std::vector<float>& amax() const { return amax_; }
  std::vector<float> mean_abs() const;
  // The full symmetric matrix (2 / tokens) X^T X, [k, k]. It is made in place and handed over; the
  // object has no Gram matrix afterwards.
  Buffer take_hessian(Exec& exec);
  // The same as a copy.
  Buffer copy_hessian(Exec& exec) const;
  // As if channel j of every input had been divided by t[j].
  void divide_channels(const std::vector<float>& t);
  // Puts the parts that the ranks made together at `root`, exactly: every sum was made by one of
  // them and is zero on the others. Their Gram matrix is gone afterwards.
  void join(Communicator& ranks, int root, Exec& exec);

 private:
  // Rows to gram_, but for the last ones that do not make up what a product takes at a time.
  void add_to_gram(const float* x, int64_t rows, Exec& exec);
  void add_waiting(Exec& exec);
  // Columns [first, first + columns) of x [rows, k]. Throws where one is not finite.
  void add_magnitudes(const float* x, int64_t rows, int64_t first, int64_t columns);

  int64_t k_;
  int64_t tokens_ = 0;
  Buffer gram_;                 // upper triangle of X^T X
  std::vector<float> waiting_;  // [rows, k] that are not in it yet
  GramShare share_;
  std::vector<float> amax_;
  std::vector<double> sum_abs_;
};

// H of the rotated inputs, R^T H R with R = diag(H_block, ...), in place; h [k, k] symmetric. So
// one pass over the calibration data serves every choice of rotation.
void rotate_hessian(float* h, int64_t k, int64_t block, Exec& exec);

// tr(D H D^T): the squared output error of a weight error d [n, k].
double output_error(const float* d, int64_t n, const float* h, int64_t k, Exec& exec);

}  // namespace lathe
