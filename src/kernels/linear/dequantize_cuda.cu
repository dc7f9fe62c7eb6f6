#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>

#include "kernels/linear/dequantize_cuda.h"
#include "quant/fp8.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int kThreads = 256;

// What every byte stands for, filled on the host by the definitions themselves.
struct Tables {
  float elements[256];
  double scales[256];  // of the scale types of one byte
};

template <typename T>
__device__ T rounded(double value);
template <>
__device__ float rounded<float>(double value) {
  return static_cast<float>(value);
}
template <>
__device__ __nv_bfloat16 rounded<__nv_bfloat16>(double value) {
  return __float2bfloat16_rn(static_cast<float>(value));
}

__device__ double wide_scale(ScaleType type, const std::byte* scales, int64_t index) {
  switch (type) {
    case ScaleType::kBF16:
      return __uint_as_float(uint32_t{reinterpret_cast<const uint16_t*>(scales)[index]} << 16);
    case ScaleType::kF16: {
      const uint16_t bits = reinterpret_cast<const uint16_t*>(scales)[index];
      const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
      const double magnitude = exponent == 31 ? (mantissa == 0 ? INFINITY : NAN)
                               : exponent == 0
                                   ? ldexp(static_cast<double>(mantissa), -24)
                                   : ldexp(static_cast<double>(mantissa + 1024), exponent - 25);
      return bits >> 15 ? -magnitude : magnitude;
    }
    default:
      return reinterpret_cast<const float*>(scales)[index];
  }
}

struct RowMajorArgs {
  const uint8_t* codes;
  const std::byte* scales;
  int64_t rows, cols, group, groups;
  ScaleType scale;
  bool nibbles;
  double global_scale;
};

// A block takes kThreads * 8 columns of one row, a thread eight of them.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    row_major_kernel(const __grid_constant__ RowMajorArgs a, const Tables* tables, T* out) {
  const int64_t row = blockIdx.y;
  const int64_t begin = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8;
  for (int64_t col = begin; col < begin + 8 && col < a.cols; ++col) {
    const int64_t index = row * a.cols + col;
    const int code = a.nibbles ? a.codes[index / 2] >> (index % 2 * 4) & 15 : a.codes[index];
    const int64_t scale_index = row * a.groups + col / a.group;
    const bool narrow = a.scale == ScaleType::kE8M0 || a.scale == ScaleType::kE4M3 ||
                        a.scale == ScaleType::kLogLinear8;
    const double scale = narrow ? tables->scales[static_cast<uint8_t>(a.scales[scale_index])]
                                : wide_scale(a.scale, a.scales, scale_index);
    out[index] = rounded<T>(double{tables->elements[code]} * scale / a.global_scale);
  }
}

struct TileArgs {
  const uint32_t* codes;
  const std::byte* scales;
  const float* row_scales;
  int64_t n, k;
  int groups, scale_bytes;
  Fp4Order order;
  ScaleType scale;
  bool e2m1;
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    tile_kernel(const __grid_constant__ TileArgs a, const Tables* tables, T* out) {
  const int64_t row = blockIdx.y;
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= a.k) return;
  const int r = static_cast<int>(row % kTileRows), c = static_cast<int>(column % kTileColumns);
  const int64_t tile = row / kTileRows * (a.k / kTileColumns) + column / kTileColumns;
  const TilePlace place = tile_place(a.order, r, c);
  const uint32_t word = a.codes[tile * (kTileCodeBytes / 4) + place.thread * 4 + place.word];
  uint32_t code = word >> (4 * place.index) & 15u;
  if (a.e2m1) {
    const int sign_nibble = place.index < 4 ? 2 * place.index + 1 : 2 * (place.index - 4);
    code = (code & 7u) | (word >> (4 * sign_nibble + 3) & 1u) << 3;
  } else {
    code ^= 8u;
  }
  const std::byte* scale =
      a.scales + tile * (kTileRows * a.groups * a.scale_bytes) +
      tile_scale_offset(r, c / (kTileColumns / a.groups), a.groups, a.scale_bytes);
  double value = a.scale_bytes == 1 ? tables->scales[static_cast<uint8_t>(*scale)]
                                    : wide_scale(a.scale, scale, 0);
  value *= double{tables->elements[code]};
  if (a.row_scales != nullptr) value *= double{a.row_scales[row]};
  out[row * a.k + column] = rounded<T>(value);
}

// The tables live on the device for as long as the process: a few kilobytes for each kind in use.
Tables make_tables(ElementType element, ScaleType scale, float log_alpha, float log_beta) {
  Tables tables = {};
  for (int i = 0; i < 256; ++i) {
    const auto byte = static_cast<uint8_t>(i);
    tables.elements[i] = element_value(element, byte);
    tables.scales[i] = scale == ScaleType::kE8M0   ? double{e8m0_to_float(byte)}
                       : scale == ScaleType::kE4M3 ? double{e4m3_to_float(byte)}
                       : scale == ScaleType::kLogLinear8
                           ? std::exp2(double{log_alpha} * i + double{log_beta})
                           : 0;
  }
  return tables;
}

// A kernel's own copy of the tables: by value, through the launch. 3 KB of its 4 KB of parameters.
__global__ void store_tables(const __grid_constant__ Tables tables, Tables* out) {
  out->elements[threadIdx.x] = tables.elements[threadIdx.x];
  out->scales[threadIdx.x] = tables.scales[threadIdx.x];
}

// Stream-ordered memory for the tables of one call.
class StreamTables {
 public:
  StreamTables(const Tables& tables, CudaStream stream) : stream_(stream) {
    void* data = nullptr;
    cuda_check(cudaMallocAsync(&data, sizeof(Tables), stream), "allocating decode tables");
    data_ = static_cast<Tables*>(data);
    store_tables<<<1, 256, 0, stream>>>(tables, data_);
    cuda_check_launch("decode tables");
  }
  ~StreamTables() { cudaFreeAsync(data_, stream_); }
  StreamTables(const StreamTables&) = delete;
  StreamTables& operator=(const StreamTables&) = delete;
  const Tables* data() const { return data_; }

 private:
  Tables* data_ = nullptr;
  CudaStream stream_;
};

void check_output(CudaElement element, const void* out) {
  if (out == nullptr || (element != CudaElement::kBF16 && element != CudaElement::kF32)) {
    fail(ErrorCode::kInvalidArgument, "dequantizing: the output must be bf16 or f32");
  }
}

// Rows go along the grid's y, of which there are at most 65535.
constexpr int64_t kRowsPerLaunch = 65472;  // a multiple of kTileRows

}  // namespace

void dequantize_cuda(const DeviceMatrixView& matrix, CudaElement element, void* out,
                     CudaStream stream) {
  check_output(element, out);
  const WeightFormat& format = matrix.format;
  const int64_t group = format.group_size == 0 ? matrix.cols : format.group_size;
  if (matrix.rows < 1 || matrix.cols < 1 || matrix.cols % group != 0) {
    fail(ErrorCode::kInvalidArgument, "dequantizing ", matrix.rows, " x ", matrix.cols, " of ",
         weight_format_name(format));
  }
  const StreamTables tables(
      make_tables(format.element, format.scale, matrix.log_alpha, matrix.log_beta), stream);
  for (int64_t begin = 0; begin < matrix.rows; begin += kRowsPerLaunch) {
    const int64_t rows = std::min(kRowsPerLaunch, matrix.rows - begin);
    const int64_t groups = matrix.cols / group;
    const RowMajorArgs args{reinterpret_cast<const uint8_t*>(matrix.codes) +
                                begin * matrix.cols * element_bits(format.element) / 8,
                            matrix.scales + begin * groups * scale_bytes(format.scale),
                            rows,
                            matrix.cols,
                            group,
                            groups,
                            format.scale,
                            element_bits(format.element) == 4,
                            double{matrix.global_scale}};
    const dim3 grid(static_cast<unsigned>((matrix.cols + kThreads * 8 - 1) / (kThreads * 8)),
                    static_cast<unsigned>(rows));
    if (element == CudaElement::kF32) {
      row_major_kernel<<<grid, kThreads, 0, stream>>>(
          args, tables.data(), static_cast<float*>(out) + begin * matrix.cols);
    } else {
      row_major_kernel<<<grid, kThreads, 0, stream>>>(
          args, tables.data(), static_cast<__nv_bfloat16*>(out) + begin * matrix.cols);
    }
    cuda_check_launch("dequantization");
  }
}

void dequantize_cuda(const Fp4Tiles& tiles, CudaElement element, void* out, CudaStream stream) {
  check_output(element, out);
  const StreamTables tables(make_tables(tiles.element, tiles.scale, 0, 0), stream);
  const int groups = tiles.scale == ScaleType::kE4M3 ? 4 : 2;
  const auto bytes = static_cast<int>(scale_bytes(tiles.scale));
  for (int64_t begin = 0; begin < tiles.n; begin += kRowsPerLaunch) {
    const int64_t first = begin / kTileRows * (tiles.k / kTileColumns);
    const TileArgs args{reinterpret_cast<const uint32_t*>(tiles.codes + first * kTileCodeBytes),
                        tiles.scales + first * kTileRows * groups * bytes,
                        tiles.row_scales == nullptr ? nullptr : tiles.row_scales + begin,
                        tiles.n - begin,
                        tiles.k,
                        groups,
                        bytes,
                        fp4_order(tiles.scale),
                        tiles.scale,
                        tiles.element == ElementType::kE2M1};
    const dim3 grid(static_cast<unsigned>((tiles.k + kThreads - 1) / kThreads),
                    static_cast<unsigned>(std::min(kRowsPerLaunch, tiles.n - begin)));
    if (element == CudaElement::kF32) {
      tile_kernel<<<grid, kThreads, 0, stream>>>(args, tables.data(),
                                                 static_cast<float*>(out) + begin * tiles.k);
    } else {
      tile_kernel<<<grid, kThreads, 0, stream>>>(
          args, tables.data(), static_cast<__nv_bfloat16*>(out) + begin * tiles.k);
    }
    cuda_check_launch("dequantization");
  }
}

}  // namespace lathe
