#include <cmath>
#include <vector>

#include "kernels/linear/pack_fp4.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int kMaxParts = 8;

struct Source {
  const uint8_t* codes;   // [rows, k / 2]
  const uint8_t* scales;  // [rows, k / group] in the scale type
  int64_t row_begin;      // in the stack
  int64_t rows;
  double inverse_global_scale;
};
struct Sources {
  Source part[kMaxParts];
  int count;
};

// The part that holds a row of the stack; null behind the last.
__device__ const Source* find_part(const Sources& sources, int64_t row) {
  for (int i = 0; i < sources.count; ++i) {
    const Source& part = sources.part[i];
    if (row < part.row_begin + part.rows) return &part;
  }
  return nullptr;
}

// row_factors[n] and, for E8M0, the largest scale byte of the row: one warp a row.
template <ScaleType kScale>
__global__ void row_factor_kernel(const __grid_constant__ Sources sources, int64_t n,
                                  int64_t groups, float* factors, uint8_t* largest) {
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= n) return;
  const Source& part = *find_part(sources, row);
  double factor = part.inverse_global_scale;
  if constexpr (kScale == ScaleType::kE8M0) {
    const uint8_t* scales = part.scales + (row - part.row_begin) * groups;
    unsigned most = 0;
    for (int64_t g = threadIdx.x % 32; g < groups; g += 32) most = max(most, unsigned{scales[g]});
    most = __reduce_max_sync(0xffffffffu, most);
    factor *= most == 255 ? NAN : ldexp(1.0, static_cast<int>(most) - 127);
    if (threadIdx.x % 32 == 0) largest[row] = static_cast<uint8_t>(most);
  }
  if (threadIdx.x % 32 == 0) factors[row] = static_cast<float>(factor);
}

// The stored scale of a group, and what has to be done to its codes.
struct GroupScale {
  uint16_t bits = 0;
  uint8_t flip = 0;     // xor on every code
  bool cleared = true;  // codes become 0
};
template <ScaleType kScale>
__device__ GroupScale read_scale(const Source* part, int64_t row, int64_t group, int64_t groups,
                                 const uint8_t* largest) {
  GroupScale scale;
  if (part == nullptr) return scale;
  const int64_t index = (row - part->row_begin) * groups + group;
  scale.cleared = false;
  if constexpr (kScale == ScaleType::kE8M0) {
    const int relative = int{part->scales[index]} - int{largest[row]} + 127;
    scale.cleared = relative < 0;
    scale.bits = static_cast<uint16_t>(max(relative, 0));
  } else if constexpr (kScale == ScaleType::kE4M3) {
    scale.bits = part->scales[index] & 0x7f;
    scale.flip = part->scales[index] >> 4 & 8;
  } else {
    scale.bits = reinterpret_cast<const uint16_t*>(part->scales)[index];
  }
  return scale;
}

// One warp quarter of a tile a warp: block (tile of a panel, panel), 128 threads.
template <ElementType kElement, ScaleType kScale>
__global__ void __launch_bounds__(128)
    tile_kernel(const __grid_constant__ Sources sources, int64_t k, const uint8_t* largest,
                uint4* codes, uint8_t* scales) {
  constexpr int kGroup = kScale == ScaleType::kE4M3 ? 16 : 32;
  constexpr int kGroups = kTileColumns / kGroup;
  constexpr int kScaleBytes = kScale == ScaleType::kBF16 ? 2 : 1;
  constexpr Fp4Order kOrder =
      kScale == ScaleType::kE8M0 ? Fp4Order::kByteFragments : Fp4Order::kHalfFragments;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t groups = k / kGroup;
  const int64_t tile = int64_t{blockIdx.y} * (k / kTileColumns) + blockIdx.x;
  uint8_t* tile_scales = scales + tile * (kTileRows * kGroups * kScaleBytes);

  uint32_t words[4];
  for (int word = 0; word < 4; ++word) {
    const int tile_row = warp * 16 + word % 2 * 8 + g;
    const int64_t row = int64_t{blockIdx.y} * kTileRows + tile_row;
    const Source* part = find_part(sources, row);
    const int64_t column = int64_t{blockIdx.x} * kTileColumns + word / 2 * 32;
    uint4 raw = {};
    if (part != nullptr) {
      raw =
          *reinterpret_cast<const uint4*>(part->codes + ((row - part->row_begin) * k + column) / 2);
    }
    const uint32_t raw_words[4] = {raw.x, raw.y, raw.z, raw.w};
    words[word] = 0;
    for (int half = 0; half < 2; ++half) {  // 16 columns each: A0..A3, B0..B3
      const int group = (word / 2 * 32 + half * 16) / kGroup;
      const GroupScale scale =
          read_scale<kScale>(part, row, int64_t{blockIdx.x} * kGroups + group, groups, largest);
      if (t == 0 && (kGroup == 16 || half == 0)) {
        uint8_t* target = tile_scales + tile_scale_offset(tile_row, group, kGroups, kScaleBytes);
        target[0] = static_cast<uint8_t>(scale.bits);
        if (kScaleBytes == 2) target[1] = static_cast<uint8_t>(scale.bits >> 8);
      }
      for (int i = 0; i < 4; ++i) {
        const int c = half * 16 +
                      (kOrder == Fp4Order::kByteFragments ? 4 * t + i : 2 * t + i / 2 * 8 + i % 2);
        uint32_t code = raw_words[c / 8] >> (c % 8 * 4) & 15u;
        const int index = half * 4 + i;
        if constexpr (kElement == ElementType::kE2M1) {
          code = scale.cleared ? 0 : code ^ scale.flip;
          words[word] |= e2m1_word_bits(code, index);
        } else {
          if (part != nullptr) words[word] |= (code ^ 8u) << (4 * index);
        }
      }
    }
  }
  codes[tile * 128 + threadIdx.x] = {words[0], words[1], words[2], words[3]};
}

template <ElementType kElement, ScaleType kScale>
void enqueue(const Sources& sources, PackedFp4& packed, CudaStream stream) {
  constexpr int kGroup = kScale == ScaleType::kE4M3 ? 16 : 32;
  DeviceBuffer largest(kScale == ScaleType::kE8M0 ? packed.n : 0);
  if (packed.row_scales.size() > 0) {
    row_factor_kernel<kScale><<<static_cast<unsigned>((packed.n + 7) / 8), 256, 0, stream>>>(
        sources, packed.n, packed.k / kGroup, packed.row_scales.as<float>(), largest.as<uint8_t>());
    cuda_check_launch("row factors of a packed weight");
  }
  const dim3 grid(static_cast<unsigned>(packed.k / kTileColumns),
                  static_cast<unsigned>((packed.n + kTileRows - 1) / kTileRows));
  tile_kernel<kElement, kScale><<<grid, 128, 0, stream>>>(sources, packed.k, largest.as<uint8_t>(),
                                                          packed.codes.as<uint4>(),
                                                          packed.scales.as<uint8_t>());
  cuda_check_launch("packing of a 4-bit weight");
  // `largest` is freed at return; cudaFree waits for the kernels.
}

}  // namespace

Fp4Tiles PackedFp4::tiles() const {
  Fp4Tiles view{element, scale, n, k, codes.data(), scales.data(), nullptr, nullptr};
  if (row_scales.size() > 0) view.row_scales = row_scales.as<float>();
  if (bias.size() > 0) view.bias = bias.as<float>();
  return view;
}

bool can_pack_fp4(const WeightFormat& format, int64_t k) {
  if (k < kTileColumns || k % kTileColumns != 0) return false;
  return format == WeightFormat{ElementType::kE2M1, ScaleType::kE8M0, 32} ||
         format == WeightFormat{ElementType::kE2M1, ScaleType::kE4M3, 16} ||
         format == WeightFormat{ElementType::kInt4, ScaleType::kBF16, 32};
}

Fp4Order fp4_order(ScaleType scale) {
  return scale == ScaleType::kE8M0 ? Fp4Order::kByteFragments : Fp4Order::kHalfFragments;
}

PackedFp4 pack_fp4(std::span<const DeviceMatrixView> parts, CudaStream stream) {
  if (parts.empty() || parts.size() > kMaxParts) {
    fail(ErrorCode::kInvalidArgument, "packing ", parts.size(), " stacked weights; 1 to ",
         kMaxParts, " can be");
  }
  const WeightFormat format = parts[0].format;
  PackedFp4 packed;
  packed.element = format.element;
  packed.scale = format.scale;
  packed.k = parts[0].cols;
  if (!can_pack_fp4(format, packed.k)) {
    fail(ErrorCode::kUnsupported, "4-bit tiles hold mxfp4, nvfp4 and int4 with a multiple of ",
         kTileColumns, " columns, not ", weight_format_name(format), " with ", packed.k);
  }
  Sources sources = {};
  bool factors = format.scale == ScaleType::kE8M0;
  for (const DeviceMatrixView& part : parts) {
    if (part.format != format || part.cols != packed.k || part.rows < 1) {
      fail(ErrorCode::kInvalidArgument, "stacked weights differ: ", weight_format_name(format),
           " x ", packed.k, " and ", weight_format_name(part.format), " x ", part.cols);
    }
    sources.part[sources.count++] = {reinterpret_cast<const uint8_t*>(part.codes),
                                     reinterpret_cast<const uint8_t*>(part.scales), packed.n,
                                     part.rows, 1.0 / double{part.global_scale}};
    packed.n += part.rows;
    factors = factors || part.global_scale != 1;
  }
  const int64_t tiles = (packed.n + kTileRows - 1) / kTileRows * (packed.k / kTileColumns);
  packed.codes = DeviceBuffer(tiles * kTileCodeBytes);
  packed.scales = DeviceBuffer(tiles * kTileRows * (kTileColumns / format.group_size) *
                               scale_bytes(format.scale));
  if (factors) packed.row_scales = DeviceBuffer(packed.n * static_cast<int64_t>(sizeof(float)));
  switch (format.scale) {
    case ScaleType::kE8M0:
      enqueue<ElementType::kE2M1, ScaleType::kE8M0>(sources, packed, stream);
      break;
    case ScaleType::kE4M3:
      enqueue<ElementType::kE2M1, ScaleType::kE4M3>(sources, packed, stream);
      break;
    default:
      enqueue<ElementType::kInt4, ScaleType::kBF16>(sources, packed, stream);
  }
  return packed;
}

PackedFp4 pack_fp4(std::span<const PackPart> parts, CudaStream stream) {
  std::vector<DeviceBuffer> staging;
  std::vector<DeviceMatrixView> views;
  std::vector<float> bias;
  bool has_bias = false;
  for (const PackPart& part : parts) {
    const QuantizedMatrix& matrix = *part.matrix;
    staging.push_back(DeviceBuffer::from_host(matrix.codes.data(), matrix.codes.size()));
    const std::byte* codes = staging.back().data();
    staging.push_back(DeviceBuffer::from_host(matrix.scales.data(), matrix.scales.size()));
    views.push_back({matrix.format, matrix.rows, matrix.cols, codes, staging.back().data(),
                     matrix.global_scale, matrix.log_alpha, matrix.log_beta});
    has_bias = has_bias || part.bias != nullptr;
    for (int64_t row = 0; row < matrix.rows; ++row) {
      bias.push_back(part.bias == nullptr ? 0 : part.bias[row]);
    }
  }
  PackedFp4 packed = pack_fp4(std::span<const DeviceMatrixView>(views), stream);
  if (has_bias) {
    packed.bias = DeviceBuffer::from_host(bias.data(), static_cast<int64_t>(bias.size() * 4));
  }
  cuda_check(cudaStreamSynchronize(stream), "packing a 4-bit weight");
  return packed;
}

}  // namespace lathe
