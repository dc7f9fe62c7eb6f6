#include <algorithm>
#include <vector>

#include "base/check.h"
#include "compress/cuda_blas.h"
#include "compress/cuda_column_block.cuh"
#include "compress/cuda_gptq.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int kThreads = 256;

// t[row, c] = d[row, c] = w[row, order[c]]; a block per row.
__global__ void gather_columns_kernel(const float* w, int64_t cols, const int32_t* order, float* t,
                                      float* d) {
  const int64_t row = int64_t{blockIdx.x} * cols;
  for (int64_t c = threadIdx.x; c < cols; c += kThreads) {
    const float value = w[row + order[c]];
    t[row + c] = value;
    d[row + c] = value;
  }
}

// targets[row, order[c]] = t[row, c]
__global__ void scatter_columns_kernel(const float* t, int64_t cols, const int32_t* place,
                                       float* targets) {
  const int64_t row = int64_t{blockIdx.x} * cols;
  for (int64_t col = threadIdx.x; col < cols; col += kThreads) {
    targets[row + col] = t[row + place[col]];
  }
}

// Codes in visiting order, one a byte -> packed codes in the matrix's order.
__global__ void pack_codes_kernel(const uint8_t* codes, int64_t cols, const int32_t* place,
                                  bool nibbles, int64_t row_bytes, uint8_t* packed) {
  const uint8_t* row = codes + int64_t{blockIdx.x} * cols;
  uint8_t* out = packed + int64_t{blockIdx.x} * row_bytes;
  for (int64_t i = threadIdx.x; i < row_bytes; i += kThreads) {
    out[i] = nibbles ? static_cast<uint8_t>((row[place[2 * i]] & 15) | row[place[2 * i + 1]] << 4)
                     : row[place[i]];
  }
}

struct BlockArgs {
  float* t;        // [rows, cols] in visiting order: what is to be rounded
  float* d;        // the same place: the weights, and D = w - w^ where it is done
  uint8_t* codes;  // the same place, one a byte
  const float* r;  // normalised factor [cols, cols]
  const float* pivot;
  const int32_t* order;
  double* row_errors;
  CudaScales scales;
  int64_t rows;
  int64_t cols;
  int64_t groups;
  int64_t group_width;
  int64_t first;  // column in visiting order
  int width;      // columns of this block
  double lowest;
  double added;
};

// Finishes the columns of one block. Every lane rounds its own column at every step, and the one
// whose turn it is tells the others its error.
template <ElementType kElement>
__global__ void __launch_bounds__(kColumnThreads) gptq_block_kernel(BlockArgs args) {
  extern __shared__ float factor[];
  load_block_factor(args.r, args.cols, args.first, args.width, factor);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t num_warps = int64_t{gridDim.x} * (kColumnThreads / 32);
  for (int64_t row = int64_t{blockIdx.x} * (kColumnThreads / 32) + threadIdx.x / 32;
       row < args.rows; row += num_warps) {
    const int64_t base = row * args.cols + args.first + lane;
    float t[kLaneColumns] = {};
    float w[kLaneColumns] = {};
    double stored[kLaneColumns] = {};
    float effective[kLaneColumns] = {};
#pragma unroll
    for (int q = 0; q < kLaneColumns; ++q) {
      if (32 * q + lane >= args.width) continue;
      t[q] = args.t[base + 32 * q];
      w[q] = args.d[base + 32 * q];
      const int64_t group = args.order[args.first + 32 * q + lane] / args.group_width;
      stored[q] = args.scales.stored(row * args.groups + group);
      effective[q] = static_cast<float>(stored[q] / args.scales.global_scale);
    }
    const auto value_of = [&](uint8_t code, int q) {
      return __fmul_rn(code_value<kElement>(code), effective[q]);
    };
#pragma unroll
    for (int q = 0; q < kLaneColumns; ++q) {
      const int steps = min(32, args.width - 32 * q);
      for (int l = 0; l < steps; ++l) {
        const uint8_t code =
            round_target<kElement>(t[q], stored[q], args.scales.global_scale, args.lowest);
        const float error = __shfl_sync(0xffffffffu, __fsub_rn(w[q], value_of(code, q)), l);
        const float* factor_row = factor + (32 * q + l) * kBlockColumns + lane;
#pragma unroll
        for (int p = q; p < kLaneColumns; ++p) {
          t[p] = __fmaf_rn(factor_row[32 * p], error, t[p]);
        }
      }
    }
    double row_error = 0;
#pragma unroll
    for (int q = 0; q < kLaneColumns; ++q) {
      if (32 * q + lane >= args.width) continue;
      const uint8_t code =
          round_target<kElement>(t[q], stored[q], args.scales.global_scale, args.lowest);
      const float value = value_of(code, q);
      const float error = __fsub_rn(w[q], value);
      args.t[base + 32 * q] = t[q];
      args.d[base + 32 * q] = error;
      args.codes[base + 32 * q] = code;
      // |D R|^2 has the damping in it; take that part out again.
      const double pivot = args.pivot[args.first + 32 * q + lane];
      const double residual = (double{t[q]} - double{value}) * pivot;
      row_error += residual * residual - args.added * double{error} * double{error};
    }
    row_error = warp_sum(row_error);
    if (lane == 0) args.row_errors[row] += row_error;
  }
}

template <ElementType kElement>
__global__ void encode_kernel(const float* w, CudaScales scales, int64_t rows, int64_t cols,
                              int64_t groups, int64_t group_width, double lowest, uint8_t* codes) {
  constexpr bool kNibbles = kElement == ElementType::kE2M1 || kElement == ElementType::kInt4;
  constexpr int kPerByte = kNibbles ? 2 : 1;
  const int64_t count = rows * cols / kPerByte;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    uint8_t byte = 0;
#pragma unroll
    for (int part = 0; part < kPerByte; ++part) {
      const int64_t at = i * kPerByte + part;
      const int64_t row = at / cols;
      const double stored = scales.stored(row * groups + (at - row * cols) / group_width);
      const uint8_t code = round_target<kElement>(w[at], stored, scales.global_scale, lowest);
      byte = static_cast<uint8_t>(byte | (kNibbles ? (code & 15) << (4 * part) : code));
    }
    codes[i] = byte;
  }
}

template <ElementType kElement>
__global__ void weight_error_kernel(const float* w, CudaScales scales, int64_t rows, int64_t cols,
                                    int64_t groups, int64_t group_width, const uint8_t* codes,
                                    float* d) {
  constexpr bool kNibbles = kElement == ElementType::kE2M1 || kElement == ElementType::kInt4;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < rows * cols;
       at += int64_t{gridDim.x} * kThreads) {
    const int64_t row = at / cols;
    const double stored = scales.stored(row * groups + (at - row * cols) / group_width);
    const uint8_t byte = codes[kNibbles ? at / 2 : at];
    const uint8_t code = !kNibbles ? byte : (at % 2 == 0 ? byte & 15 : byte >> 4);
    const double value =
        __ddiv_rn(__dmul_rn(double{code_value<kElement>(code)}, stored), scales.global_scale);
    d[at] = __fsub_rn(w[at], static_cast<float>(value));
  }
}

__global__ void copy_rows_kernel(const uint8_t* takes, const uint8_t* from_codes, uint8_t* to_codes,
                                 int64_t code_bytes, const uint8_t* from_scales, uint8_t* to_scales,
                                 int64_t scale_bytes) {
  const int64_t row = blockIdx.x;
  if (takes[row] == 0) return;
  for (int64_t i = threadIdx.x; i < code_bytes; i += kThreads) {
    to_codes[row * code_bytes + i] = from_codes[row * code_bytes + i];
  }
  for (int64_t i = threadIdx.x; i < scale_bytes; i += kThreads) {
    to_scales[row * scale_bytes + i] = from_scales[row * scale_bytes + i];
  }
}

// out[row] = sum_j a[row, j] b[row, j]; a block per row.
__global__ void row_dot_kernel(const float* a, const float* b, int64_t k, double* out) {
  __shared__ double partial[kThreads / 32];
  const int64_t row = int64_t{blockIdx.x} * k;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < k; j += kThreads) {
    sum += double{a[row + j]} * double{b[row + j]};
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads / 32; ++i) sum += partial[i];
  out[blockIdx.x] = sum;
}

unsigned grid_of(int64_t count) {
  return static_cast<unsigned>(std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, 1 << 14));
}

int64_t float_bytes(int64_t count) { return count * static_cast<int64_t>(sizeof(float)); }

}  // namespace

GptqResult cuda_gptq(CudaQuantizedMatrix& matrix, const float* w, const CudaHessianFactor& factor,
                     CudaStream stream, float* targets) {
  const int64_t rows = matrix.rows;
  const int64_t cols = matrix.cols;
  LATHE_CHECK(factor.k == cols);
  DeviceBuffer t(float_bytes(rows * cols));
  DeviceBuffer d(float_bytes(rows * cols));
  DeviceBuffer codes(rows * cols);
  DeviceBuffer row_errors(rows * static_cast<int64_t>(sizeof(double)));
  cuda_check(
      cudaMemsetAsync(row_errors.data(), 0, static_cast<std::size_t>(row_errors.size()), stream),
      "clearing memory of the GPU");
  const auto row_grid = static_cast<unsigned>(rows);
  const auto* order = factor.device_order.as<int32_t>();
  const auto* place = factor.device_place.as<int32_t>();
  const auto* r = factor.normalised.as<float>();
  gather_columns_kernel<<<row_grid, kThreads, 0, stream>>>(w, cols, order, t.as<float>(),
                                                           d.as<float>());
  cuda_check_launch("the permutation of a weight");

  BlockArgs args = {.t = t.as<float>(),
                    .d = d.as<float>(),
                    .codes = codes.as<uint8_t>(),
                    .r = r,
                    .pivot = factor.device_pivot.as<float>(),
                    .order = order,
                    .row_errors = row_errors.as<double>(),
                    .scales = scales_of(matrix),
                    .rows = rows,
                    .cols = cols,
                    .groups = matrix.num_groups(),
                    .group_width = matrix.group_width(),
                    .first = 0,
                    .width = 0,
                    .lowest = lowest_integer(matrix.format),
                    .added = factor.added};
  constexpr int kRowsPerBlock = kColumnThreads / 32;
  const auto grid = static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock);
  with_element(matrix.format.element, [&](auto element) {
    auto* kernel = gptq_block_kernel<decltype(element)::value>;
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(kFactorBytes)),
               "preparing GPTQ's column loop");
    for (int64_t first = 0; first < cols; first += kBlockColumns) {
      args.first = first;
      args.width = static_cast<int>(std::min<int64_t>(kBlockColumns, cols - first));
      kernel<<<grid, kColumnThreads, kFactorBytes, stream>>>(args);
      cuda_check_launch("GPTQ's column loop");
      // The columns behind the block feel it: t += D R.
      const int64_t next = first + args.width;
      if (next < cols) {
        cuda_gemm_a_b(rows, cols - next, args.width, d.as<float>() + first, cols,
                      r + first * cols + next, cols, 1.0f, t.as<float>() + next, cols, stream);
      }
    }
  });

  pack_codes_kernel<<<row_grid, kThreads, 0, stream>>>(
      codes.as<uint8_t>(), cols, place, element_bits(matrix.format.element) == 4,
      matrix.code_row_bytes(), matrix.codes.as<uint8_t>());
  cuda_check_launch("the packing of codes");
  if (targets != nullptr) {
    scatter_columns_kernel<<<row_grid, kThreads, 0, stream>>>(t.as<float>(), cols, place, targets);
    cuda_check_launch("the permutation of a weight");
  }

  GptqResult result;
  result.row_errors.resize(static_cast<std::size_t>(rows));
  row_errors.to_host(result.row_errors.data(), row_errors.size(), stream);
  for (double& error : result.row_errors) {
    error = std::max(error, 0.0);
    result.output_error += error;
  }
  return result;
}

void cuda_round_to_nearest(CudaQuantizedMatrix& matrix, const float* w, CudaStream stream) {
  with_element(matrix.format.element, [&](auto element) {
    encode_kernel<decltype(element)::value><<<grid_of(matrix.codes.size()), kThreads, 0, stream>>>(
        w, scales_of(matrix), matrix.rows, matrix.cols, matrix.num_groups(), matrix.group_width(),
        lowest_integer(matrix.format), matrix.codes.as<uint8_t>());
  });
  cuda_check_launch("rounding to nearest");
}

void cuda_weight_error(const CudaQuantizedMatrix& matrix, const float* w, float* d,
                       CudaStream stream) {
  with_element(matrix.format.element, [&](auto element) {
    weight_error_kernel<decltype(element)::value>
        <<<grid_of(matrix.rows * matrix.cols), kThreads, 0, stream>>>(
            w, scales_of(matrix), matrix.rows, matrix.cols, matrix.num_groups(),
            matrix.group_width(), matrix.codes.as<uint8_t>(), d);
  });
  cuda_check_launch("the decoding of a weight");
}

void cuda_copy_rows(const CudaQuantizedMatrix& from, const std::vector<uint8_t>& takes,
                    CudaQuantizedMatrix& to, CudaStream stream) {
  const DeviceBuffer flags =
      DeviceBuffer::from_host(takes.data(), static_cast<int64_t>(takes.size()));
  copy_rows_kernel<<<static_cast<unsigned>(from.rows), kThreads, 0, stream>>>(
      flags.as<uint8_t>(), from.codes.as<uint8_t>(), to.codes.as<uint8_t>(), from.code_row_bytes(),
      from.scales.as<uint8_t>(), to.scales.as<uint8_t>(), from.scales.size() / from.rows);
  cuda_check_launch("the copying of rows");
  cuda_check(cudaStreamSynchronize(stream), "waiting for the GPU");
}

double cuda_output_error(const float* d, int64_t n, const float* h, int64_t k, CudaStream stream) {
  // In pieces of rows, so that D H stays small beside D.
  constexpr int64_t kRows = 4096;
  DeviceBuffer product(h != nullptr ? float_bytes(std::min(n, kRows) * k) : 0);
  DeviceBuffer sums(n * static_cast<int64_t>(sizeof(double)));
  for (int64_t begin = 0; begin < n; begin += kRows) {
    const int64_t rows = std::min(kRows, n - begin);
    const float* piece = d + begin * k;
    if (h != nullptr) {
      cuda_gemm_a_b(rows, k, k, piece, k, h, k, 0.0f, product.as<float>(), k, stream);
    }
    row_dot_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(
        piece, h != nullptr ? product.as<float>() : piece, k, sums.as<double>() + begin);
    cuda_check_launch("a sum of squared errors");
  }
  std::vector<double> row_sums(static_cast<std::size_t>(n));
  sums.to_host(row_sums.data(), sums.size(), stream);
  double total = 0;
  for (const double sum : row_sums) total += sum;
  return total;
}

}  // namespace lathe
