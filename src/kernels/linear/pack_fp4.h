// 4-bit weights from their storage order (weight_format.h) to the tiles of fp4_tiles.h, on the GPU.
// Two freedoms of the layout are settled here:
//   MXFP4  the E8M0 bytes of a row are stored relative to its largest, which becomes 127 (scale 1);
//          2^(largest - 127) goes into the row's factor. Groups that lie more than 127 binades
//          below the largest become zeros. So every decoder knows the range that it has to hold.
//   NVFP4  scale bytes are 0..0x7f: the sign of a negative scale is moved into the codes.
// 1 / global_scale goes into the row's factor as well.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/linear/fp4_tiles.h"
#include "kernels/linear/linear_cuda.h"
#include "quant/weight_format.h"
#include "tensor/device_buffer.h"

namespace lathe {

// One of the matrices that are stacked along n; their rows are consecutive, whatever their number.
struct PackPart {
  const QuantizedMatrix* matrix = nullptr;  // host memory
  const float* bias = nullptr;              // [rows] on the host, or null
};

// A quantized matrix whose codes and scales are on the device, laid out as in QuantizedMatrix.
struct DeviceMatrixView {
  WeightFormat format;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;
  float global_scale = 1;
  float log_alpha = 0;  // kLogLinear8 only
  float log_beta = 0;
};

struct PackedFp4 {
  ElementType element = ElementType::kE2M1;
  ScaleType scale = ScaleType::kE8M0;
  int64_t n = 0;
  int64_t k = 0;
  DeviceBuffer codes;
  DeviceBuffer scales;
  DeviceBuffer row_scales;  // float [n]; empty where all are one
  DeviceBuffer bias;        // float [n]; empty where no part has one

  Fp4Tiles tiles() const;
  // What one pass over the weight reads.
  int64_t weight_bytes() const { return codes.size() + scales.size(); }
};

// mxfp4, nvfp4 and int4 (group 32, bf16 scale) with k a multiple of 64.
bool can_pack_fp4(const WeightFormat& format, int64_t k);
// The order of codes within a word that the kernels expect of a format.
Fp4Order fp4_order(ScaleType scale);

// Parts of one format and k. Copies host memory through staging buffers on the device; returns when
// done. Throws kInvalidArgument (parts that do not fit together), kUnsupported (can_pack_fp4() is
// false), kOutOfMemory, kDevice.
PackedFp4 pack_fp4(std::span<const PackPart> parts, CudaStream stream);
// The same from device memory, enqueued on stream; at most 8 parts, without a bias.
PackedFp4 pack_fp4(std::span<const DeviceMatrixView> parts, CudaStream stream);

}  // namespace lathe
