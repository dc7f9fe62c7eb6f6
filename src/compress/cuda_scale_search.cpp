#include "compress/cuda_scale_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "compress/cuda_scale_kernels.h"
#include "quant/encode.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

int64_t bytes_of(int64_t count, std::size_t size) { return count * static_cast<int64_t>(size); }

void copy_on_device(void* to, const void* from, int64_t bytes, CudaStream stream) {
  cuda_check(
      cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
      "copying on the GPU");
}

std::vector<double> read_doubles(const DeviceBuffer& buffer, int64_t count, CudaStream stream) {
  std::vector<double> out(static_cast<std::size_t>(count));
  buffer.to_host(out.data(), bytes_of(count, sizeof(double)), stream);
  return out;
}

class CudaScaleSearch {
 public:
  CudaScaleSearch(std::span<const CudaScaleProblem> fused, const ScaleSearchOptions& options,
                  CudaStream stream)
      : fused_(fused), options_(options), stream_(stream), format_(fused[0].matrix->format) {
    int64_t most_groups = 0;
    int64_t most_rows = 0;
    for (const CudaScaleProblem& problem : fused_) {
      const CudaQuantizedMatrix& matrix = *problem.matrix;
      LATHE_CHECK(matrix.format == format_);
      const int64_t groups = matrix.rows * matrix.num_groups();
      amax_.emplace_back(bytes_of(groups, sizeof(float)));
      most_groups = std::max(most_groups, groups);
      most_rows = std::max(most_rows, matrix.rows);
    }
    group_errors_ = DeviceBuffer(bytes_of(most_groups, sizeof(double)));
    row_sums_ = DeviceBuffer(bytes_of(most_rows, sizeof(double)));
    more_row_sums_ = DeviceBuffer(bytes_of(most_rows, sizeof(double)));
  }

  ScaleSearchResult run() {
    measure();
    ScaleSearchResult result;
    if (options_.keep_global) {
      LATHE_CHECK(options_.search != ScaleSearch::kAbsmax);
      result.error = search_all();
      return result;
    }
    const bool has_global = format_.scale == ScaleType::kE4M3;
    fix_global_scale(has_global);
    if (options_.search == ScaleSearch::kAbsmax) {
      store_absmax();
      return result;
    }
    result.error = search_all();
    if (has_global && options_.alternate_global && options_.search == ScaleSearch::kExhaustive) {
      alternate(result);
    }
    return result;
  }

 private:
  // The magnitudes of all groups; refuses what is not finite.
  void measure() {
    const DeviceBuffer not_finite(sizeof(int64_t));
    auto* flag = const_cast<int64_t*>(not_finite.as<int64_t>());
    for (std::size_t i = 0; i < fused_.size(); ++i) {
      const CudaQuantizedMatrix& matrix = *fused_[i].matrix;
      cuda_check(cudaMemsetAsync(flag, 0xff, sizeof(int64_t), stream_), "clearing GPU memory");
      cuda_group_amax(matrix, fused_[i].w, amax_[i].as<float>(), flag, stream_);
      int64_t group = -1;
      not_finite.to_host(&group, sizeof group, stream_);
      if (group < 0) continue;
      fail(ErrorCode::kInvalidArgument, "weight [", group / matrix.num_groups(), ", ",
           group % matrix.num_groups() * matrix.group_width(),
           "...] holds a NaN or an infinity; the checkpoint is broken");
    }
  }

  std::vector<float> group_amax(std::size_t i) const {
    const CudaQuantizedMatrix& matrix = *fused_[i].matrix;
    std::vector<float> out(static_cast<std::size_t>(matrix.rows * matrix.num_groups()));
    amax_[i].to_host(out.data(), amax_[i].size(), stream_);
    return out;
  }

  // The part of choose_absmax_scales() that concerns the whole matrix, and what choose_scales()
  // adds to it.
  void fix_global_scale(bool has_global) {
    const double limit = element_limit(format_);
    if (has_global) {
      float amax = 0;
      for (std::size_t i = 0; i < fused_.size(); ++i) {
        amax = std::max(amax, max_abs(group_amax(i)));
      }
      const float global_scale = nvfp4_global_scale(amax, limit);
      for (const CudaScaleProblem& problem : fused_) problem.matrix->global_scale = global_scale;
    } else if (format_.scale == ScaleType::kE8M0 && format_.element == ElementType::kE2M1) {
      float global_scale = mx_global_scale(options_.mx_rule);
      if (options_.search == ScaleSearch::kExhaustive) {
        const bool thirds = options_.mx_rule == MxScaleRule::kAbsmaxX3 ||
                            options_.mx_rule == MxScaleRule::kMsePow2X3;
        global_scale = thirds ? 3.0f : 1.0f;
      }
      for (const CudaScaleProblem& problem : fused_) problem.matrix->global_scale = global_scale;
    } else if (format_.scale == ScaleType::kLogLinear8) {
      for (std::size_t i = 0; i < fused_.size(); ++i) {
        // The grid is fitted by the host's code, from one weight a group: its largest magnitude.
        const std::vector<float> amax = group_amax(i);
        CudaQuantizedMatrix& matrix = *fused_[i].matrix;
        QuantizedMatrix groups = make_quantized_matrix({format_.element, format_.scale, 2}, 1,
                                                       2 * static_cast<int64_t>(amax.size()));
        std::vector<float> pairs(2 * amax.size());
        for (std::size_t g = 0; g < amax.size(); ++g) pairs[2 * g] = amax[g];
        choose_absmax_scales(groups, pairs.data());
        matrix.log_alpha = groups.log_alpha;
        matrix.log_beta = groups.log_beta;
        matrix.update_scale_values();
      }
    }
  }

  void store_absmax() {
    const bool by_rule = format_.scale == ScaleType::kE8M0 && format_.element == ElementType::kE2M1;
    for (std::size_t i = 0; i < fused_.size(); ++i) {
      CudaQuantizedMatrix& matrix = *fused_[i].matrix;
      if (!by_rule || follows_from_amax(options_.mx_rule)) {
        cuda_store_absmax_scales(matrix, amax_[i].as<float>(), options_.mx_rule, stream_);
        continue;
      }
      // Rules that look at every value: rarely asked for, left to the host.
      QuantizedMatrix host = make_quantized_matrix(format_, matrix.rows, matrix.cols);
      std::vector<float> w(static_cast<std::size_t>(matrix.rows * matrix.cols));
      cuda_check(cudaStreamSynchronize(stream_), "waiting for the GPU");
      cuda_check(
          cudaMemcpy(w.data(), fused_[i].w, w.size() * sizeof(float), cudaMemcpyDeviceToHost),
          "copying a weight from the GPU");
      choose_absmax_scales(host, w.data(), options_.mx_rule);
      matrix.scales = DeviceBuffer::from_host(host.scales.data(), host.scales.size());
    }
  }

  double search_all() {
    double total = 0;
    for (std::size_t i = 0; i < fused_.size(); ++i) {
      cuda_search_scales(fused_[i], options_, amax_[i].as<float>(), group_errors_.as<double>(),
                         row_sums_.as<double>(), stream_);
      for (const double error : read_doubles(row_sums_, fused_[i].matrix->rows, stream_)) {
        total += error;
      }
    }
    return total;
  }

  // The least-squares global scale of the present codes.
  double refitted_global_scale() {
    double xy = 0;
    double yy = 0;
    for (const CudaScaleProblem& problem : fused_) {
      cuda_global_scale_sums(problem, row_sums_.as<double>(), more_row_sums_.as<double>(), stream_);
      for (const double sum : read_doubles(row_sums_, problem.matrix->rows, stream_)) xy += sum;
      for (const double sum : read_doubles(more_row_sums_, problem.matrix->rows, stream_)) {
        yy += sum;
      }
    }
    return xy > 0 && yy > 0 ? yy / xy : double{fused_[0].matrix->global_scale};
  }

  // As in choose_scales().
  void alternate(ScaleSearchResult& result) {
    std::vector<DeviceBuffer> best_scales(fused_.size());
    for (int round = 0; round < kMaxGlobalRounds; ++round) {
      const float previous = fused_[0].matrix->global_scale;
      const auto refitted = static_cast<float>(refitted_global_scale());
      if (!std::isfinite(refitted) || refitted <= 0) break;
      for (std::size_t i = 0; i < fused_.size(); ++i) {
        const DeviceBuffer& scales = fused_[i].matrix->scales;
        best_scales[i].reserve(scales.size());
        copy_on_device(best_scales[i].data(), scales.data(), scales.size(), stream_);
        fused_[i].matrix->global_scale = refitted;
      }
      const double error = search_all();
      if (error >= result.error) {
        for (std::size_t i = 0; i < fused_.size(); ++i) {
          DeviceBuffer& scales = fused_[i].matrix->scales;
          copy_on_device(scales.data(), best_scales[i].data(), scales.size(), stream_);
          fused_[i].matrix->global_scale = previous;
        }
        // The copies are freed when this returns.
        cuda_check(cudaStreamSynchronize(stream_), "waiting for the GPU");
        break;
      }
      const double gain = (result.error - error) / result.error;
      result.error = error;
      ++result.global_rounds;
      if (gain < kMinGlobalGain) break;
    }
  }

  std::span<const CudaScaleProblem> fused_;
  const ScaleSearchOptions& options_;
  CudaStream stream_;
  WeightFormat format_;
  std::vector<DeviceBuffer> amax_;  // of each problem's groups
  DeviceBuffer group_errors_;
  DeviceBuffer row_sums_;
  DeviceBuffer more_row_sums_;
};

}  // namespace

ScaleSearchResult cuda_choose_scales(std::span<const CudaScaleProblem> fused,
                                     const ScaleSearchOptions& options, CudaStream stream) {
  LATHE_CHECK(!fused.empty());
  return CudaScaleSearch(fused, options, stream).run();
}

}  // namespace lathe
