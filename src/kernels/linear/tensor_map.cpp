#include "kernels/linear/tensor_map.h"

#include "tensor/cuda_check.h"

namespace lathe {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

// From the driver that is there, so that the program does not need libcuda to start.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                              cudaEnableDefault, &found),
             "asking the driver for cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    fail(ErrorCode::kDevice,
         "the NVIDIA driver has no cuTensorMapEncodeTiled; it is older than "
         "CUDA 12");
  }
  return reinterpret_cast<Encode>(function);
}

}  // namespace

CUtensorMap make_tensor_map(const void* data, int element_bytes, int64_t rows, int64_t columns,
                            int64_t stride_bytes, int box_rows) {
  static const Encode encode = find_encode();
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(128 / element_bytes),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUtensorMapDataType type = element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                   : element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                        : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  CUtensorMap map;
  const CUresult status =
      encode(&map, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    fail(ErrorCode::kInvalidArgument, "the driver refuses a tensor map of ", rows, " x ", columns,
         " elements of ", element_bytes, " bytes, stride ", stride_bytes, " bytes, at address ",
         data, ": error ", static_cast<int>(status));
  }
  return map;
}

CUtensorMap make_pieces_map(const void* data, int64_t rows, int64_t pieces, int bytes, int box_rows,
                            int box_pieces) {
  static const Encode encode = find_encode();
  // A box has at most 256 elements along a dimension.
  const cuuint64_t words = static_cast<cuuint64_t>(bytes / 8);
  const cuuint64_t sizes[3] = {words, static_cast<cuuint64_t>(pieces),
                               static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(bytes),
                                 static_cast<cuuint64_t>(pieces) * static_cast<cuuint64_t>(bytes)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(words), static_cast<cuuint32_t>(box_pieces),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT64, 3, const_cast<void*>(data), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    fail(ErrorCode::kInvalidArgument, "the driver refuses a tensor map of ", rows, " x ", pieces,
         " x ", bytes, " bytes at address ", data, ": error ", static_cast<int>(status));
  }
  return map;
}

}  // namespace lathe
