#include "kernels/linear/cuda_linear.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kernels/linear/dequantize_cuda.h"
#include "kernels/linear/gemm_cublas.h"
#include "kernels/linear/gemm_fp8_cublaslt.h"
#include "kernels/linear/linear_fp4_small_sm90.h"
#include "kernels/linear/linear_kernels.h"
#include "kernels/linear/linear_mxfp4_sm90.h"
#include "kernels/linear/linear_nvfp4_sm90.h"
#include "kernels/linear/linear_w8_small_sm90.h"
#include "kernels/linear/pack_fp4.h"
#include "kernels/linear/scale_bias_cuda.h"
#include "quant/hadamard.h"
#include "tensor/copy_to_device.h"

namespace lathe {
namespace {

// Steps of more rows than this go to the wgmma kernels, whose smallest tile of 128 rows costs less
// than the memory-bound kernel does beyond here (docs/results/hopper.md).
constexpr int64_t kFewRows = kSmallLinearMaxRows;

// What is alike for all weights: sizes, scheme, factors of y's columns.
class CudaWeight : public CudaLinear {
 public:
  CudaWeight(std::span<const LinearPart> parts, int64_t k, const LinearScheme& scheme,
             CudaContext& context)
      : context_(context), scheme_(scheme), k_(k) {
    std::vector<float> bias;
    bool has_bias = false;
    for (const LinearPart& part : parts) {
      const int64_t rows = part_rows(part);
      n_ += rows;
      has_bias = has_bias || part.bias != nullptr;
      const std::size_t old_size = bias.size();
      bias.resize(old_size + static_cast<std::size_t>(rows), 0.0f);
      if (part.bias != nullptr) std::copy_n(part.bias, rows, bias.begin() + old_size);
    }
    if (has_bias) {
      bias_ = DeviceBuffer::from_host(bias.data(), n_ * static_cast<int64_t>(sizeof(float)));
    }
    check_hadamard(scheme.hadamard, k);
  }

  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }

 protected:
  CudaInputClass input(ActivationFormat format, CudaElement element) const {
    return {.format = format,
            .hadamard = scheme_.hadamard,
            .element = element,
            .global_scale = format == ActivationFormat::kNvfp4 ? scheme_.input_global_scale : 0.0f};
  }
  const float* bias() const { return bias_.size() > 0 ? bias_.as<float>() : nullptr; }
  // y = x w^T by cuBLAS, and the rest of y behind it. w: [n, k] of x's element.
  void run_dense(const CudaLinearInput& x, const void* w, const CudaLinearOutput& y) const {
    gemm_cublas(x, w, n_, y, context_);
    scale_bias_cuda(y, x.m, n_, x.row_scales, nullptr, bias(), context_.stream());
  }

  CudaContext& context_;
  LinearScheme scheme_;

 private:
  int64_t n_ = 0;
  int64_t k_ = 0;
  DeviceBuffer bias_;  // [n] or nothing
};

class DenseCudaWeight final : public CudaWeight {
 public:
  DenseCudaWeight(std::span<const LinearPart> parts, const LinearScheme& scheme, bool is_exact,
                  CudaContext& context)
      : CudaWeight(parts, parts.front().dense->dim(1), scheme, context),
        element_(is_exact ? CudaElement::kF32 : CudaElement::kBF16),
        weight_(n() * k() * (is_exact ? 4 : 2)) {
    int64_t done = 0;
    for (const LinearPart& part : parts) {
      const Tensor converted = convert(part.dense->view(), is_exact ? DType::kF32 : DType::kBF16);
      copy_to_device(weight_.data() + done, converted.data(), converted.num_bytes());
      done += converted.num_bytes();
    }
  }

  int64_t weight_bytes() const override { return weight_.size(); }
  std::string kernels() const override {
    return element_ == CudaElement::kF32 ? "f32 cublas" : "bf16 cublas";
  }
  CudaInputClass input_class(int64_t) const override {
    return input(scheme_.activations, element_);
  }
  void run(const CudaLinearInput& x, const CudaLinearOutput& y) const override {
    run_dense(x, weight_.data(), y);
  }

 private:
  CudaElement element_;
  DeviceBuffer weight_;
};

// Integers and E4M3, row-major as the checkpoint has them.
class EightBitCudaWeight final : public CudaWeight {
 public:
  EightBitCudaWeight(std::span<const LinearPart> parts, const LinearScheme& scheme,
                     CudaContext& context)
      : CudaWeight(parts, parts.front().quantized->cols, scheme, context),
        format_(parts.front().quantized->format),
        codes_(stacked(parts, &QuantizedMatrix::codes)),
        scales_(stacked(parts, &QuantizedMatrix::scales)) {
    std::vector<float> factors;
    bool is_needed = false;
    for (const LinearPart& part : parts) {
      is_needed = is_needed || part.quantized->global_scale != 1;
      factors.insert(factors.end(), static_cast<std::size_t>(part.quantized->rows),
                     1 / part.quantized->global_scale);
    }
    if (is_needed) {
      factors_ = DeviceBuffer::from_host(factors.data(),
                                         static_cast<int64_t>(factors.size() * sizeof(float)));
    }
  }

  static bool takes(const WeightFormat& format, int64_t k) {
    const bool has_codes =
        format.element == ElementType::kInt8 || format.element == ElementType::kE4M3;
    const ScaleType group_scale =
        format.element == ElementType::kInt8 ? ScaleType::kBF16 : ScaleType::kE8M0;
    const bool is_grouped = format.group_size == 32 && format.scale == group_scale;
    const bool is_by_row = format.group_size == 0 && format.scale == ScaleType::kF32;
    return has_codes && (is_grouped || is_by_row) && k % 32 == 0;
  }

  int64_t weight_bytes() const override { return codes_.size() + scales_.size(); }
  std::string kernels() const override {
    return str(weight_format_name(format_),
               multiplies_fp8() ? " small | cublas fp8" : " small | decoded bf16 cublas");
  }
  CudaInputClass input_class(int64_t m) const override {
    const bool is_fp8 = m > kW8SmallMaxRows && multiplies_fp8();
    return input(scheme_.activations, is_fp8 ? CudaElement::kE4M3 : CudaElement::kBF16);
  }
  void run(const CudaLinearInput& x, const CudaLinearOutput& y) const override {
    if (x.m == 0) return;
    if (x.element == CudaElement::kE4M3) {
      context_.fp8_gemm().run(x,
                              {.n = n(),
                               .k = k(),
                               .codes = codes_.data(),
                               .scales = scales_.as<float>(),
                               .bias = bias()},
                              y);
    } else if (x.m <= kW8SmallMaxRows) {
      linear_w8_small_sm90({.element = format_.element,
                            .scale = format_.scale,
                            .group_size = format_.group_size,
                            .n = n(),
                            .k = k(),
                            .codes = codes_.data(),
                            .scales = scales_.data(),
                            .row_scales = factors_.size() > 0 ? factors_.as<float>() : nullptr,
                            .bias = bias()},
                           x, y, choose_w8_small_config(x.m, n(), k(), context_.num_sms()),
                           context_.stream());
    } else {
      const DeviceWorkspace::Scope scope(context_.workspace());
      void* dense = context_.workspace().allocate(n() * k() * 2);
      dequantize_cuda({.format = format_,
                       .rows = n(),
                       .cols = k(),
                       .codes = codes_.data(),
                       .scales = scales_.data()},
                      CudaElement::kBF16, dense, context_.stream());
      gemm_cublas(x, dense, n(), y, context_);
      scale_bias_cuda(y, x.m, n(), x.row_scales,
                      factors_.size() > 0 ? factors_.as<float>() : nullptr, bias(),
                      context_.stream());
    }
  }

 private:
  // Products of E4M3 by E4M3 with a factor for each row of both.
  bool multiplies_fp8() const {
    return format_.element == ElementType::kE4M3 && format_.scale == ScaleType::kF32 &&
           scheme_.activations == ActivationFormat::kFp8 && factors_.size() == 0 &&
           Fp8Gemm::supports(n(), k(), n());
  }
  static DeviceBuffer stacked(std::span<const LinearPart> parts, Buffer QuantizedMatrix::*buffer) {
    int64_t size = 0;
    for (const LinearPart& part : parts) size += (part.quantized->*buffer).size();
    DeviceBuffer all(size);
    int64_t done = 0;
    for (const LinearPart& part : parts) {
      const Buffer& from = part.quantized->*buffer;
      copy_to_device(all.data() + done, from.data(), from.size());
      done += from.size();
    }
    return all;
  }

  WeightFormat format_;
  DeviceBuffer codes_, scales_;
  DeviceBuffer factors_;  // 1 / global scale of each row of W, or nothing
};

// Stays as the checkpoint has it, and is decoded for each product: the exact arithmetic, and
// formats without kernels of their own.
class DecodedCudaWeight final : public CudaWeight {
 public:
  DecodedCudaWeight(std::span<const LinearPart> parts, const LinearScheme& scheme, bool is_exact,
                    CudaContext& context)
      : CudaWeight(parts, parts.front().quantized->cols, scheme, context),
        format_(parts.front().quantized->format),
        element_(is_exact ? CudaElement::kF32 : CudaElement::kBF16) {
    for (const LinearPart& part : parts) {
      const QuantizedMatrix& matrix = *part.quantized;
      Part& copy = parts_.emplace_back();
      copy.codes = DeviceBuffer::from_host(matrix.codes.data(), matrix.codes.size());
      copy.scales = DeviceBuffer::from_host(matrix.scales.data(), matrix.scales.size());
      copy.view = {.format = matrix.format,
                   .rows = matrix.rows,
                   .cols = matrix.cols,
                   .codes = copy.codes.data(),
                   .scales = copy.scales.data(),
                   .global_scale = matrix.global_scale,
                   .log_alpha = matrix.log_alpha,
                   .log_beta = matrix.log_beta};
    }
  }

  int64_t weight_bytes() const override {
    int64_t bytes = 0;
    for (const Part& part : parts_) bytes += part.codes.size() + part.scales.size();
    return bytes;
  }
  std::string kernels() const override {
    return str(weight_format_name(format_),
               element_ == CudaElement::kF32 ? " decoded f32 cublas" : " decoded bf16 cublas");
  }
  CudaInputClass input_class(int64_t) const override {
    return input(scheme_.activations, element_);
  }
  void run(const CudaLinearInput& x, const CudaLinearOutput& y) const override {
    const DeviceWorkspace::Scope scope(context_.workspace());
    const int64_t row_bytes = k() * (element_ == CudaElement::kF32 ? 4 : 2);
    std::byte* dense = context_.workspace().allocate(n() * row_bytes);
    int64_t row = 0;
    for (const Part& part : parts_) {
      dequantize_cuda(part.view, element_, dense + row * row_bytes, context_.stream());
      row += part.view.rows;
    }
    run_dense(x, dense, y);
  }

 private:
  struct Part {
    DeviceBuffer codes, scales;
    DeviceMatrixView view;
  };
  WeightFormat format_;
  CudaElement element_;
  std::vector<Part> parts_;
};

// 4-bit weights in tiles.
class TiledCudaWeight final : public CudaWeight {
 public:
  TiledCudaWeight(std::span<const LinearPart> parts, const LinearScheme& scheme,
                  CudaContext& context)
      : CudaWeight(parts, parts.front().quantized->cols, scheme, context),
        format_(parts.front().quantized->format) {
    std::vector<PackPart> to_pack;
    for (const LinearPart& part : parts) to_pack.push_back({part.quantized, part.bias});
    packed_ = pack_fp4(to_pack, context.stream());
    if (is_mxfp4()) {
      row_exponents_ = DeviceBuffer((n() + kTileRows - 1) / kTileRows * kTileRows);
      mxfp4_row_exponents(packed_.tiles(), row_exponents_.as<uint8_t>(), context.stream());
    }
  }

  int64_t weight_bytes() const override { return packed_.weight_bytes(); }
  std::string kernels() const override {
    return str(weight_format_name(format_),
               is_mxfp4() ? " small | wgmma fp8" : " small | wgmma bf16");
  }

  CudaInputClass input_class(int64_t m) const override {
    const ActivationFormat format = scheme_.activations;
    if (m <= kFewRows || !is_mxfp4()) return input(format, CudaElement::kBF16);
    switch (format) {
      case ActivationFormat::kNone:  // FP8 inputs cost less than the weights' own 4 bits do
        return input(ActivationFormat::kFp8, CudaElement::kE4M3);
      case ActivationFormat::kFp8:
      case ActivationFormat::kMxfp4:
        return input(format, CudaElement::kE4M3);
      default:
        return input(format, CudaElement::kBF16);
    }
  }

  void run(const CudaLinearInput& x, const CudaLinearOutput& y) const override {
    if (x.m == 0) return;
    const Fp4Tiles tiles = packed_.tiles();
    const int num_sms = context_.num_sms();
    const DeviceWorkspace::Scope scope(context_.workspace());
    if (x.element == CudaElement::kE4M3) {
      linear_mxfp4_sm90(tiles, row_exponents_.as<uint8_t>(), x, y,
                        choose_mxfp4_config(x.m, n(), k(), num_sms), context_.stream());
    } else if (x.m <= kFewRows) {
      linear_fp4_small_sm90(tiles, x, y, choose_small_linear_config(x.m, n(), num_sms),
                            context_.stream());
    } else if (!is_mxfp4()) {
      linear_nvfp4_sm90(tiles, x, y, choose_nvfp4_config(x.m, n(), k(), num_sms),
                        context_.stream());
    } else {  // MXFP4 with inputs that E4M3 does not hold: NVFP4's, integers
      void* dense = context_.workspace().allocate(n() * k() * 2);
      dequantize_cuda(tiles, CudaElement::kBF16, dense, context_.stream());
      run_dense(x, dense, y);
    }
  }

 private:
  bool is_mxfp4() const { return format_.scale == ScaleType::kE8M0; }

  WeightFormat format_;
  PackedFp4 packed_;
  DeviceBuffer row_exponents_;
};

}  // namespace

std::unique_ptr<CudaLinear> make_cuda_linear(std::span<const LinearPart> parts,
                                             const LinearScheme& scheme, ComputeType compute,
                                             CudaContext& context) {
  const LinearParts all = check_parts(parts);
  const bool is_exact = compute == ComputeType::kF32;
  if (all.format == nullptr) {
    return std::make_unique<DenseCudaWeight>(parts, scheme, is_exact, context);
  }
  if (!is_exact && can_pack_fp4(*all.format, all.k)) {
    return std::make_unique<TiledCudaWeight>(parts, scheme, context);
  }
  if (!is_exact && EightBitCudaWeight::takes(*all.format, all.k)) {
    return std::make_unique<EightBitCudaWeight>(parts, scheme, context);
  }
  return std::make_unique<DecodedCudaWeight>(parts, scheme, is_exact, context);
}

}  // namespace lathe
