#include "cache/kv_layer_coder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/kv_rows/kv_rows.h"

namespace lathe {
namespace {

// Rows that a thread takes at a time: enough for the products to reuse their weights, few enough
// for rows of 1024 numbers to stay in the L2 cache.
constexpr int64_t kRunRows = 128;

}  // namespace

KvPlaneCoder::KvPlaneCoder(const KvCodecFile& file, const KvPlane& plane)
    : shape_(file.shape),
      format_(plane.format),
      code_bytes_(row_bytes(plane.format, file.shape)),
      inputs_(plane.predictor.inputs),
      bias_(plane.predictor.bias),
      sigma_(plane.sigma) {
  using Weight = KvPredictor::Weight;
  check_row_format(format_, shape_);
  const KvPredictor& predictor = plane.predictor;
  const int64_t width = shape_.width();
  const int64_t in = kv_input_width(file, predictor);
  for (const auto& input : inputs_) input_widths_.push_back(kv_input_width(file, input));
  if (bias_.empty()) bias_.assign(static_cast<std::size_t>(width), 0.0f);
  for (const float s : sigma_) inverse_sigma_.push_back(1 / s);
  const int64_t out = predictor.weight == Weight::kLowRank ? predictor.rank : width;
  int64_t column = 0;
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    const auto input = static_cast<int64_t>(i);
    if (predictor.weight == Weight::kBlockDiagonal) {
      const int64_t e = shape_.head_dim;
      const int64_t stride = static_cast<int64_t>(inputs_.size()) * e;
      for (int64_t head = 0; head < shape_.num_heads; ++head) {
        add_part(predictor.w1.data() + head * e * stride + input * e, stride,
                 {input, head * e, head * e, e, e, {}});
      }
      continue;
    }
    add_part(predictor.w1.data() + column, in, {input, 0, 0, input_widths_[i], out, {}});
    column += input_widths_[i];
  }
  if (predictor.weight == Weight::kLowRank) {
    rank_ = predictor.rank;
    second_.swap(parts_);
    add_part(predictor.w2.data(), rank_, {0, 0, 0, rank_, width, {}});
    second_.swap(parts_);
  }
}

void KvPlaneCoder::add_part(const float* w, int64_t stride, Part part) {
  part.w.resize(static_cast<std::size_t>(multiply_add_weight_floats(part.n, part.k)));
  pack_multiply_add_weight(w, part.n, part.k, stride, part.w.data());
  parts_.push_back(std::move(part));
}

void KvPlaneCoder::predict(const float* const* inputs, float* rows, int64_t num_rows,
                           float* scratch, Exec& exec) const {
  const int64_t width = shape_.width();
  for (int64_t t = 0; t < num_rows; ++t) {
    std::memcpy(rows + t * width, bias_.data(), bias_.size() * sizeof(float));
  }
  float* target = rows;
  int64_t target_stride = width;
  if (rank_ > 0) {
    std::fill(scratch, scratch + num_rows * rank_, 0.0f);
    target = scratch;
    target_stride = rank_;
  }
  for (const Part& part : parts_) {
    multiply_add_rows({.x = inputs[part.input] + part.x_offset,
                       .w = part.w.data(),
                       .y = target + part.y_offset,
                       .num_rows = num_rows,
                       .k = part.k,
                       .n = part.n,
                       .x_stride = input_widths_[static_cast<std::size_t>(part.input)],
                       .y_stride = target_stride},
                      exec);
  }
  for (const Part& part : second_) {
    multiply_add_rows({.x = scratch,
                       .w = part.w.data(),
                       .y = rows,
                       .num_rows = num_rows,
                       .k = part.k,
                       .n = part.n,
                       .x_stride = rank_,
                       .y_stride = width},
                      exec);
  }
}

void KvPlaneCoder::encode(const float* const* inputs, const float* exact, float* rows,
                          int64_t num_rows, std::byte* codes, int64_t code_stride, float* scratch,
                          Exec& exec) const {
  predict(inputs, rows, num_rows, scratch, exec);
  encode_residual(exact, rows, num_rows, codes, code_stride, exec);
}

void KvPlaneCoder::encode_residual(const float* exact, float* rows, int64_t num_rows,
                                   std::byte* codes, int64_t code_stride, Exec& exec) const {
  encode_kv_rows({.format = format_,
                  .shape = shape_,
                  .sigma = sigma_.empty() ? nullptr : sigma_.data(),
                  .inverse_sigma = sigma_.empty() ? nullptr : inverse_sigma_.data(),
                  .exact = exact,
                  .rows = rows,
                  .codes = codes,
                  .code_stride = code_stride,
                  .num_rows = num_rows},
                 exec);
}

void KvPlaneCoder::decode(const float* const* inputs, const std::byte* codes, int64_t code_stride,
                          float* rows, int64_t num_rows, float* scratch, Exec& exec) const {
  predict(inputs, rows, num_rows, scratch, exec);
  decode_residual(codes, code_stride, rows, num_rows, exec);
}

void KvPlaneCoder::decode_residual(const std::byte* codes, int64_t code_stride, float* rows,
                                   int64_t num_rows, Exec& exec) const {
  decode_kv_rows({.format = format_,
                  .shape = shape_,
                  .sigma = sigma_.empty() ? nullptr : sigma_.data(),
                  .rows = rows,
                  .codes = const_cast<std::byte*>(codes),  // only read
                  .code_stride = code_stride,
                  .num_rows = num_rows},
                 exec);
}

// --- latents -------------------------------------------------------------------------------------

KvLatentCoder::KvLatentCoder(const KvCodecFile& file, const KvLatent& latent)
    : layers_(latent.layers),
      with_values_(latent.with_values),
      width_(file.shape.width()),
      rank_(latent.rank),
      bits_(latent.bits),
      code_bytes_(kv_latent_bytes(latent)),
      mean_(latent.mean) {
  const auto num_parts = static_cast<int64_t>(layers_.size()) * (with_values_ ? 2 : 1);
  for (int64_t part = 0; part < num_parts; ++part) {
    std::vector<float> packed(static_cast<std::size_t>(multiply_add_weight_floats(rank_, width_)));
    pack_multiply_add_weight(latent.projection.data() + part * width_, rank_, width_,
                             num_parts * width_, packed.data());
    projection_.push_back(std::move(packed));
  }
  // 8 bits: +-127 steps are 5.3 standard deviations, and a step's error 1/24/sqrt(12) of one.
  for (const float s : latent.sigma) step_.push_back(bits_ == 8 ? s / 24 : s);
  for (const float s : step_) inverse_step_.push_back(1 / s);
}

void KvLatentCoder::encode(const float* const* parts, float* z, int64_t num_rows, std::byte* codes,
                           int64_t code_stride, float* scratch, Exec& exec) const {
  std::fill(z, z + num_rows * rank_, 0.0f);
  for (std::size_t part = 0; part < projection_.size(); ++part) {
    const float* mean = mean_.data() + static_cast<int64_t>(part) * width_;
    for (int64_t t = 0; t < num_rows; ++t) {
      for (int64_t j = 0; j < width_; ++j) {
        scratch[t * width_ + j] = parts[part][t * width_ + j] - mean[j];
      }
    }
    multiply_add_rows({.x = scratch,
                       .w = projection_[part].data(),
                       .y = z,
                       .num_rows = num_rows,
                       .k = width_,
                       .n = rank_,
                       .x_stride = width_,
                       .y_stride = rank_},
                      exec);
  }
  const HiggsGrid& grid = higgs_grid(4, 1);
  uint8_t values[kMaxRowWidth];
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t j = 0; j < rank_; ++j) {
      const float y = z[t * rank_ + j] * inverse_step_[static_cast<std::size_t>(j)];
      if (bits_ == 4) {
        values[j] = static_cast<uint8_t>(nearest_point(grid, &y));
      } else {
        const float q = std::nearbyint(y);  // NaN becomes zero
        values[j] = static_cast<uint8_t>(static_cast<int8_t>(q >= 127    ? 127
                                                             : q <= -127 ? -127
                                                             : q == q    ? q
                                                                         : 0.0f));
      }
    }
    pack_codes(values, rank_, bits_, codes + t * code_stride);
  }
  decode(codes, code_stride, z, num_rows);
}

void KvLatentCoder::decode(const std::byte* codes, int64_t code_stride, float* z,
                           int64_t num_rows) const {
  const HiggsGrid& grid = higgs_grid(4, 1);
  uint8_t values[kMaxRowWidth];
  for (int64_t t = 0; t < num_rows; ++t) {
    unpack_codes(codes + t * code_stride, rank_, bits_, values);
    for (int64_t j = 0; j < rank_; ++j) {
      const float unit =
          bits_ == 4 ? grid.points[values[j]] : static_cast<float>(static_cast<int8_t>(values[j]));
      z[t * rank_ + j] = unit * step_[static_cast<std::size_t>(j)];
    }
  }
}

// --- all layers ----------------------------------------------------------------------------------

KvLayerCoder::KvLayerCoder(const KvCodecFile& file) : width_(file.shape.width()) {
  for (const KvPlane& plane : file.keys) keys_.emplace_back(file, plane);
  for (const KvPlane& plane : file.values) values_.emplace_back(file, plane);
  for (const KvLatent& latent : file.latents) latents_.emplace_back(file, latent);
}

void encode_rows(const KvPlaneCoder& coder, const float* const* inputs, const float* exact,
                 float* rows, int64_t num_rows, Exec& exec) {
  const Workspace::Scope scope(exec.workspace);
  const int64_t scratch_floats = coder.scratch_floats(kRunRows);
  const int64_t code_bytes = kRunRows * coder.code_bytes();
  const auto num_threads = static_cast<int64_t>(exec.threads.num_threads());
  float* scratch = exec.workspace.allocate_as<float>(num_threads * scratch_floats);
  std::byte* codes = exec.workspace.allocate(num_threads * code_bytes);
  exec.threads.parallel_for(num_rows, kRunRows, [&](int64_t begin, int64_t end, int thread_idx) {
    const float* parts[16];
    LATHE_CHECK(coder.inputs().size() <= std::size(parts));
    for (std::size_t i = 0; i < coder.inputs().size(); ++i) {
      parts[i] = inputs[i] + begin * coder.input_width(i);
    }
    coder.encode(parts, exact + begin * coder.width(), rows + begin * coder.width(), end - begin,
                 codes + thread_idx * code_bytes, coder.code_bytes(),
                 scratch + thread_idx * scratch_floats, exec);
  });
}

void encode_rows(const KvLatentCoder& coder, const float* const* parts, float* z, int64_t num_rows,
                 Exec& exec) {
  const Workspace::Scope scope(exec.workspace);
  const int64_t scratch_floats = coder.scratch_floats(kRunRows);
  const int64_t code_bytes = kRunRows * coder.code_bytes();
  const auto num_threads = static_cast<int64_t>(exec.threads.num_threads());
  float* scratch = exec.workspace.allocate_as<float>(num_threads * scratch_floats);
  std::byte* codes = exec.workspace.allocate(num_threads * code_bytes);
  exec.threads.parallel_for(num_rows, kRunRows, [&](int64_t begin, int64_t end, int thread_idx) {
    std::vector<const float*> own(coder.num_parts());
    for (std::size_t i = 0; i < own.size(); ++i) own[i] = parts[i] + begin * coder.width();
    coder.encode(own.data(), z + begin * coder.rank(), end - begin, codes + thread_idx * code_bytes,
                 coder.code_bytes(), scratch + thread_idx * scratch_floats, exec);
  });
}

}  // namespace lathe
