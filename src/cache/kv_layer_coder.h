// The arithmetic of a KvCodecFile on any number of rows: what the cache does to its blocks, and
// what a fit does to its calibration tokens, so that predictors are fitted on exactly what the
// cache will rebuild. A row's result does not depend on the other rows, on the number of threads or
// on the machine's instructions, and encoding leaves the bits that decoding will give.
//
// Of one plane (keys or values of one layer), rows [num_rows, d]:
//   p = bias; p += W_i input_i, in the order of the predictor's inputs (fma chains in the order of
//   k); low-rank: h = 0 += W1_i input_i, then p += W2 h
//   codes = row codes of (exact - p);  reconstructed = p + decode(codes)     (quant/row_codes.h)
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "formats/kv_codec_file.h"
#include "tensor/exec.h"

namespace lathe {

enum class KvSide { kKeys, kValues };

class KvPlaneCoder {
 public:
  // Copies what it needs of the plane; `file` gives the sizes of its inputs.
  KvPlaneCoder(const KvCodecFile& file, const KvPlane& plane);

  std::span<const KvPredictorInput> inputs() const { return inputs_; }
  int64_t input_width(std::size_t input) const { return input_widths_[input]; }
  int64_t width() const { return shape_.width(); }
  int64_t code_bytes() const { return code_bytes_; }  // of one row
  int64_t scratch_floats(int64_t num_rows) const { return num_rows * rank_; }

  // inputs: one pointer for each of inputs(), to dense rows. They may not overlap `rows`; `exact`
  // may not either. Runs in the calling thread; exec is passed to kernels. codes: rows of
  // code_stride bytes.
  void encode(const float* const* inputs, const float* exact, float* rows, int64_t num_rows,
              std::byte* codes, int64_t code_stride, float* scratch, Exec& exec) const;
  void decode(const float* const* inputs, const std::byte* codes, int64_t code_stride, float* rows,
              int64_t num_rows, float* scratch, Exec& exec) const;
  // Their two halves: the prediction, and codes of what it misses (rows holds the prediction and
  // leaves reconstructed).
  void predict(const float* const* inputs, float* rows, int64_t num_rows, float* scratch,
               Exec& exec) const;
  void encode_residual(const float* exact, float* rows, int64_t num_rows, std::byte* codes,
                       int64_t code_stride, Exec& exec) const;
  void decode_residual(const std::byte* codes, int64_t code_stride, float* rows, int64_t num_rows,
                       Exec& exec) const;

 private:
  struct Part {  // of a weight, packed
    int64_t input = 0;
    int64_t x_offset = 0, y_offset = 0;  // columns, for block-diagonal weights
    int64_t k = 0, n = 0;
    std::vector<float> w;
  };
  void add_part(const float* w, int64_t stride, Part part);

  RowShape shape_;
  RowFormat format_;
  int64_t code_bytes_ = 0;
  int64_t rank_ = 0;
  std::vector<KvPredictorInput> inputs_;
  std::vector<int64_t> input_widths_;
  std::vector<Part> parts_;   // to the rows, or to the rank's vector
  std::vector<Part> second_;  // from the rank's vector to the rows
  std::vector<float> bias_;   // [width]
  std::vector<float> sigma_, inverse_sigma_;
};

// One latent of a group of layers.
class KvLatentCoder {
 public:
  KvLatentCoder(const KvCodecFile& file, const KvLatent& latent);

  const std::vector<int64_t>& layers() const { return layers_; }
  bool with_values() const { return with_values_; }
  std::size_t num_parts() const { return projection_.size(); }
  int64_t width() const { return width_; }
  int64_t rank() const { return rank_; }
  int64_t code_bytes() const { return code_bytes_; }
  int64_t scratch_floats(int64_t num_rows) const { return num_rows * width_; }

  // parts: exact keys of every layer, then exact values where the latent has them, [num_rows, d]
  // each. Leaves the reconstructed latents in z [num_rows, rank].
  void encode(const float* const* parts, float* z, int64_t num_rows, std::byte* codes,
              int64_t code_stride, float* scratch, Exec& exec) const;
  void decode(const std::byte* codes, int64_t code_stride, float* z, int64_t num_rows) const;

 private:
  std::vector<int64_t> layers_;
  bool with_values_;
  int64_t width_, rank_;
  int bits_;
  int64_t code_bytes_;
  std::vector<std::vector<float>> projection_;  // per part, packed
  std::vector<float> mean_, step_, inverse_step_;
};

class KvLayerCoder {
 public:
  // The file must have been validated. Nothing of it is borrowed.
  explicit KvLayerCoder(const KvCodecFile& file);

  int64_t num_layers() const { return static_cast<int64_t>(keys_.size()); }
  int64_t width() const { return width_; }
  const KvPlaneCoder& plane(int64_t layer, KvSide side) const {
    return (side == KvSide::kKeys ? keys_ : values_)[static_cast<std::size_t>(layer)];
  }
  std::span<const KvLatentCoder> latents() const { return latents_; }

 private:
  int64_t width_;
  std::vector<KvPlaneCoder> keys_, values_;
  std::vector<KvLatentCoder> latents_;
};

// For fits: reconstructed rows of any number of exact rows, on all threads; the codes are not kept.
void encode_rows(const KvPlaneCoder& coder, const float* const* inputs, const float* exact,
                 float* rows, int64_t num_rows, Exec& exec);
void encode_rows(const KvLatentCoder& coder, const float* const* parts, float* z, int64_t num_rows,
                 Exec& exec);

}  // namespace lathe
