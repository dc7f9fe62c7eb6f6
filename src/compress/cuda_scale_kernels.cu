#include <algorithm>
#include <cmath>

#include "compress/cuda_column_block.cuh"
#include "compress/cuda_elements.cuh"
#include "compress/cuda_scale_kernels.h"
#include "quant/encode.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int kThreads = 256;
// Lanes that share a group: lane i has the elements i, i + 8, ... as the lanes of an AVX2 register
// have them in group_error_avx2(), so that the fp32 sums come out the same.
constexpr int kLanes = 8;

struct SearchArgs {
  const float* w;
  const float* column_weights;
  const float* amax;
  double* errors;  // [rows, groups]
  CudaScales scales;
  ElementType element;
  int64_t group_width;
  int64_t groups;
  bool whole_row;  // one group a row
  int64_t num_groups_total;
  double limit;
  double lowest;
  double norm;
  ScaleSearch search;
  MxScaleRule mx_rule;
};

__device__ inline unsigned lane_mask() { return 0xffu << (threadIdx.x % 32 / kLanes * kLanes); }

template <typename T>
__device__ inline T lane_sum(T value) {
  // 0 + 4, then + 2, then + 1: the order of sum_lanes().
  for (int distance = 4; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(lane_mask(), value, distance);
  }
  return value;
}

// A group as its eight lanes see it. kPerLane > 0: the values are in registers; 0: read every time.
template <int kPerLane>
struct Group {
  const float* x;        // of this lane: stride kLanes
  const float* weights;  // likewise, or null
  int per_lane;
  float values[kPerLane > 0 ? kPerLane : 1];
  float factors[kPerLane > 0 ? kPerLane : 1];

  __device__ Group(const SearchArgs& args, int64_t index, int lane) {
    x = args.w + index * args.group_width + lane;
    weights = args.column_weights == nullptr
                  ? nullptr
                  : args.column_weights + index % args.groups * args.group_width + lane;
    per_lane = static_cast<int>((args.group_width - lane + kLanes - 1) / kLanes);
    if constexpr (kPerLane > 0) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        values[i] = x[i * kLanes];
        factors[i] = weights != nullptr ? weights[i * kLanes] : 1.0f;
      }
    }
  }

  // body(x, weight) for the lane's elements in order.
  template <typename Body>
  __device__ void for_each(Body&& body) const {
    if constexpr (kPerLane > 0) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) body(values[i], factors[i]);
    } else {
      for (int i = 0; i < per_lane; ++i) {
        body(x[i * kLanes], weights != nullptr ? weights[i * kLanes] : 1.0f);
      }
    }
  }
};

// group_error_avx2(). A weight of 1 multiplies exactly, so the case without weights is the same.
template <int kPerLane>
__device__ double fast_error(const SearchArgs& args, const Group<kPerLane>& group, double scale) {
  const auto s = static_cast<float>(scale);
  const auto inverse = static_cast<float>(1.0 / scale);
  float total = 0;
  if (args.element == ElementType::kE2M1) {
    group.for_each([&](float x, float weight) {
      const float a = fabsf(x);
      const float r = __fmul_rn(a, inverse);
      const float inverse_step = r >= 4.0f ? 0.5f : (r < 2.0f ? 2.0f : 1.0f);
      const float step = r >= 4.0f ? 2.0f : (r < 2.0f ? 0.5f : 1.0f);
      const float q = fminf(__fmul_rn(rintf(__fmul_rn(r, inverse_step)), step), 6.0f);
      const float error = __fmaf_rn(-q, s, a);
      total = __fadd_rn(total, __fmul_rn(__fmul_rn(error, error), weight));
    });
  } else {
    const auto low = static_cast<float>(args.lowest);
    const float high = args.element == ElementType::kInt4 ? 7.0f : 127.0f;
    group.for_each([&](float x, float weight) {
      const float q = fminf(fmaxf(rintf(__fmul_rn(x, inverse)), low), high);
      const float error = __fmaf_rn(-q, s, x);
      total = __fadd_rn(total, __fmul_rn(__fmul_rn(error, error), weight));
    });
  }
  return double{lane_sum(total)};
}

// group_error_ref(), but for the order of the sum.
template <int kPerLane>
__device__ __noinline__ double exact_error(const SearchArgs& args, const Group<kPerLane>& group,
                                           double scale, double norm) {
  double total = 0;
  group.for_each([&](float value, float weight) {
    const double x = value;
    double decoded = 0;
    if (scale > 0) {
      const uint8_t code = element_code(args.element, x / scale, args.lowest);
      decoded = __dmul_rn(double{code_value(args.element, code)}, scale);
    }
    const double distance = fabs(x - decoded);
    total += double{weight} * (norm == 2 ? distance * distance : pow(distance, norm));
  });
  return lane_sum(total);
}

template <int kPerLane>
__device__ double error_under(const SearchArgs& args, const Group<kPerLane>& group, double scale,
                              double norm) {
  const bool fast = norm == 2 && args.element != ElementType::kE4M3 &&
                    args.group_width % kLanes == 0 && scale > 1e-37;
  return fast ? fast_error(args, group, scale) : exact_error(args, group, scale, norm);
}

// mx_scale_byte() for a group of one value.
__device__ uint32_t mx_byte(MxScaleRule rule, float amax) {
  const auto byte_of = [](int exponent) {
    return static_cast<uint32_t>(min(max(exponent, -127), 127) + 127);
  };
  if (rule == MxScaleRule::kQuest) return byte_of(ilogb(1e-8));
  if (amax == 0) return 0;
  const int exponent = ilogbf(amax);
  const double significand = ldexp(double{amax}, -exponent);
  switch (rule) {
    case MxScaleRule::kOcpFloor:
      return byte_of(exponent - 2);
    case MxScaleRule::kCtEven:
      return byte_of(exponent - 2 + (significand >= 1.75));
    case MxScaleRule::kCeil:
      return byte_of(exponent - 2 + (significand > 1.5));
    case MxScaleRule::kAbsmaxX3:
      return byte_of(exponent);
    case MxScaleRule::kPaperEq1:
      return byte_of(static_cast<int>(rint(log2(double{amax} / 6))));
    default:
      break;
  }
  const double divisor = rule == MxScaleRule::kMsePow2X3 ? 3 : 1;
  int best = exponent;
  double best_error = 0;
  for (int e = exponent - 5; e <= exponent; ++e) {
    const double scale = ldexp(1.0, e) / divisor;
    const double decoded = __dmul_rn(double{e2m1_value(e2m1_code(double{amax} / scale))}, scale);
    const double error = double{amax} - decoded;
    if (e == exponent - 5 || error * error < best_error) {
      best = e;
      best_error = error * error;
    }
  }
  return byte_of(best);
}

// The least-squares scale for the codes that `scale` gives.
template <int kPerLane>
__device__ double refitted(const SearchArgs& args, const Group<kPerLane>& group, double scale) {
  double xe = 0;
  double ee = 0;
  group.for_each([&](float x, float weight) {
    const double e =
        code_value(args.element, element_code(args.element, double{x} / scale, args.lowest));
    xe += double{weight} * double{x} * e;
    ee += double{weight} * e * e;
  });
  xe = lane_sum(xe);
  ee = lane_sum(ee);
  return ee > 0 && xe > 0 ? xe / ee : scale;
}

// The best candidate so far.
template <int kPerLane>
struct Choice {
  const SearchArgs& args;
  const Group<kPerLane>& group;
  double best_error = HUGE_VAL;
  uint32_t best = 0;

  __device__ void consider(double stored) {
    if (!(stored >= 0)) return;
    const uint32_t bits = args.scales.bits_of(stored);
    const double scale = args.scales.value_of(bits) / args.scales.global_scale;
    const double error = error_under(args, group, scale, args.norm);
    if (error < best_error) {
      best_error = error;
      best = bits;
    }
  }
};

// exhaustive_candidates() of scale_search.cpp, judged one after the other.
template <int kPerLane>
__device__ void search_exhaustively(Choice<kPerLane>& choice, float amax) {
  const SearchArgs& args = choice.args;
  const double absmax_scale = double{amax} * args.scales.global_scale / args.limit;
  const bool fp8 = args.element == ElementType::kE4M3;
  switch (args.scales.type) {
    case ScaleType::kE4M3: {
      const int base = e4m3_code(absmax_scale);
      const int above = args.element == ElementType::kE2M1 ? 6 : 1;
      for (int byte = max(base - 8, 1); byte <= min(base + above, 126); ++byte) {
        choice.consider(double{e4m3_value(static_cast<uint8_t>(byte))});
      }
      if (base <= 1) choice.consider(0);
      return;
    }
    case ScaleType::kE8M0: {
      int exponent = ilogb(absmax_scale);
      if (ldexp(1.0, exponent) < absmax_scale) ++exponent;
      int count = 0;
      for (int e = exponent - (fp8 ? 0 : 4); e <= exponent + (fp8 ? 0 : 1); ++e) {
        if (e < -127 || e > 127) continue;
        choice.consider(ldexp(1.0, e));
        ++count;
      }
      if (count == 0) choice.consider(ldexp(1.0, min(max(exponent, -127), 127)));
      return;
    }
    case ScaleType::kLogLinear8: {
      choice.consider(absmax_scale);
      const double alpha = args.scales.log_alpha;
      const double beta = args.scales.log_beta;
      if (alpha <= 0) return;
      const double low = (log2(0.6 * absmax_scale) - beta) / alpha;
      const double high = (log2(1.6 * absmax_scale) - beta) / alpha;
      const double step = fmax(1.0, (high - low) / 24);
      for (double q = ceil(low); q <= high; q += step) {
        const double code = fmin(fmax(rint(q), 0.0), 255.0);
        choice.consider(exp2(__dadd_rn(__dmul_rn(alpha, code), beta)));
      }
      return;
    }
    default: {
      choice.consider(absmax_scale);
      if (fp8) return;
      const int steps = args.whole_row ? 11 : 19;
      for (int i = 0; i < steps; ++i) {
        choice.consider(__dmul_rn(absmax_scale, __dsub_rn(1.05, __dmul_rn(0.025, double(i)))));
      }
      const double best = args.scales.value_of(choice.best);
      choice.consider(refitted(args, choice.group, best));
      return;
    }
  }
}

// The authors' search: unrounded trial scales, the first strict minimum.
template <int kPerLane>
__device__ uint32_t paper_grid_bits(const SearchArgs& args, const Group<kPerLane>& group,
                                    float amax) {
  const double absmax_scale = double{amax} / args.limit;
  double best_factor = 1;
  double best = HUGE_VAL;
  for (int i = 0; i < 100; ++i) {
    const double factor = __dsub_rn(1, __dmul_rn(0.008, double(i)));
    const double error = error_under(args, group, factor * absmax_scale, 2.4);
    if (error < best) {
      best = error;
      best_factor = factor;
    }
  }
  if (args.scales.type == ScaleType::kE8M0 && args.element == ElementType::kE2M1) {
    return mx_byte(args.mx_rule, static_cast<float>(best_factor * double{amax}));
  }
  return args.scales.bits_of(best_factor * double{amax} * args.scales.global_scale / args.limit);
}

template <int kPerLane>
__global__ void search_kernel(SearchArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  if (index >= args.num_groups_total) return;
  const float amax = args.amax[index];
  if (amax == 0) {
    if (lane == 0) {
      // Zeros under any scale; byte 0 where there is one.
      args.scales.store_bits(index, args.scales.bits_of(0));
      args.errors[index] = 0;
    }
    return;
  }
  const Group<kPerLane> group(args, index, lane);
  Choice<kPerLane> choice{args, group};
  if (args.search == ScaleSearch::kPaperGrid) {
    choice.best = paper_grid_bits(args, group, amax);
    choice.best_error = error_under(
        args, group, args.scales.value_of(choice.best) / args.scales.global_scale, args.norm);
  } else {
    search_exhaustively(choice, amax);
  }
  if (lane == 0) {
    args.scales.store_bits(index, choice.best);
    args.errors[index] = choice.best_error;
  }
}

__global__ void row_sum_kernel(const double* errors, int64_t groups, double* row_errors) {
  __shared__ double partial[kThreads / 32];
  double sum = 0;
  for (int64_t g = threadIdx.x; g < groups; g += kThreads) {
    sum += errors[int64_t{blockIdx.x} * groups + g];
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads / 32; ++i) sum += partial[i];
  row_errors[blockIdx.x] = sum;
}

__global__ void amax_kernel(const float* w, int64_t group_width, int64_t count, float* amax,
                            int64_t* not_finite) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  if (index >= count) return;
  float largest = 0;
  for (int64_t i = lane; i < group_width; i += kLanes) {
    const float a = fabsf(w[index * group_width + i]);
    if (!isfinite(a)) *not_finite = index;
    largest = fmaxf(largest, a);
  }
  for (int distance = 4; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(lane_mask(), largest, distance));
  }
  if (lane == 0) amax[index] = largest;
}

__global__ void absmax_scale_kernel(CudaScales scales, ElementType element, MxScaleRule rule,
                                    double limit, const float* amax, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const double a = amax[i];
  uint32_t bits = 0;
  if (scales.type == ScaleType::kE4M3) {
    bits = scales.bits_of(scales.global_scale * a / limit);
  } else if (scales.type != ScaleType::kE8M0) {
    bits = scales.bits_of(a / limit);
  } else if (element == ElementType::kE2M1) {
    bits = mx_byte(rule, amax[i]);
  } else if (a > 0) {
    const int exponent = ilogb(a / limit);
    const bool exact = ldexp(1.0, exponent) * limit >= a;
    bits = static_cast<uint32_t>(min(max(exact ? exponent : exponent + 1, -127), 127) + 127);
  }
  scales.store_bits(i, bits);
}

__global__ void global_sums_kernel(const float* w, const float* column_weights, CudaScales scales,
                                   ElementType element, double lowest, int64_t cols,
                                   int64_t group_width, double* xy, double* yy) {
  __shared__ double partial[2][kThreads / 32];
  const int64_t row = blockIdx.x;
  const int64_t groups = cols / group_width;
  double a = 0;
  double b = 0;
  for (int64_t col = threadIdx.x; col < cols; col += kThreads) {
    const double scale = scales.stored(row * groups + col / group_width);
    if (scale == 0) continue;
    const double x = w[row * cols + col];
    const double y = double{code_value(
                         element, element_code(element, x * scales.global_scale / scale, lowest))} *
                     scale;
    const double h = column_weights != nullptr ? double{column_weights[col]} : 1.0;
    a += h * x * y;
    b += h * y * y;
  }
  a = warp_sum(a);
  b = warp_sum(b);
  if (threadIdx.x % 32 == 0) {
    partial[0][threadIdx.x / 32] = a;
    partial[1][threadIdx.x / 32] = b;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads / 32; ++i) {
    a += partial[0][i];
    b += partial[1][i];
  }
  xy[row] = a;
  yy[row] = b;
}

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

}  // namespace

void cuda_group_amax(const CudaQuantizedMatrix& matrix, const float* w, float* amax,
                     int64_t* not_finite, CudaStream stream) {
  const int64_t count = matrix.rows * matrix.num_groups();
  amax_kernel<<<blocks_for(count * kLanes), kThreads, 0, stream>>>(w, matrix.group_width(), count,
                                                                   amax, not_finite);
  cuda_check_launch("the largest magnitudes of a weight");
}

bool follows_from_amax(MxScaleRule rule) {
  return rule != MxScaleRule::kQuest && rule != MxScaleRule::kMsePow2 &&
         rule != MxScaleRule::kMsePow2X3;
}

void cuda_store_absmax_scales(CudaQuantizedMatrix& matrix, const float* amax, MxScaleRule rule,
                              CudaStream stream) {
  const int64_t count = matrix.rows * matrix.num_groups();
  absmax_scale_kernel<<<blocks_for(count), kThreads, 0, stream>>>(
      scales_of(matrix), matrix.format.element, rule, element_limit(matrix.format), amax, count);
  cuda_check_launch("the scales of a weight");
}

void cuda_search_scales(const CudaScaleProblem& problem, const ScaleSearchOptions& options,
                        const float* amax, double* group_errors, double* row_errors,
                        CudaStream stream) {
  CudaQuantizedMatrix& matrix = *problem.matrix;
  const int64_t count = matrix.rows * matrix.num_groups();
  const SearchArgs args = {.w = problem.w,
                           .column_weights = problem.column_weights,
                           .amax = amax,
                           .errors = group_errors,
                           .scales = scales_of(matrix),
                           .element = matrix.format.element,
                           .group_width = matrix.group_width(),
                           .groups = matrix.num_groups(),
                           .whole_row = matrix.format.group_size == 0,
                           .num_groups_total = count,
                           .limit = element_limit(matrix.format),
                           .lowest = lowest_integer(matrix.format),
                           .norm = options.norm,
                           .search = options.search,
                           .mx_rule = options.mx_rule};
  const unsigned grid = blocks_for(count * kLanes);
  switch (matrix.format.group_size) {
    case 16:
      search_kernel<2><<<grid, kThreads, 0, stream>>>(args);
      break;
    case 32:
      search_kernel<4><<<grid, kThreads, 0, stream>>>(args);
      break;
    default:
      search_kernel<0><<<grid, kThreads, 0, stream>>>(args);
      break;
  }
  cuda_check_launch("the search for scales");
  row_sum_kernel<<<static_cast<unsigned>(matrix.rows), kThreads, 0, stream>>>(
      group_errors, matrix.num_groups(), row_errors);
  cuda_check_launch("the sum of a search's errors");
}

void cuda_global_scale_sums(const CudaScaleProblem& problem, double* xy, double* yy,
                            CudaStream stream) {
  const CudaQuantizedMatrix& matrix = *problem.matrix;
  global_sums_kernel<<<static_cast<unsigned>(matrix.rows), kThreads, 0, stream>>>(
      problem.w, problem.column_weights, scales_of(matrix), matrix.format.element,
      lowest_integer(matrix.format), matrix.cols, matrix.group_width(), xy, yy);
  cuda_check_launch("the fit of a global scale");
}

}  // namespace lathe
