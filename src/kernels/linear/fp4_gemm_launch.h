// Host side of fp4_gemm_sm90.h: tensor maps and the launch of one instantiation.
#pragma once
#include <algorithm>

#include "kernels/linear/fp4_gemm_check.h"
#include "kernels/linear/fp4_gemm_sm90.h"
#include "kernels/linear/linear_cuda.h"
#include "kernels/linear/tensor_map.h"
#include "tensor/cuda_check.h"

namespace lathe {

// `group`: token tiles that are worked on together.
template <class Decode, class Shape>
void launch_fp4_gemm(const Fp4Tiles& w, const uint8_t* exponents, const CudaLinearInput& x,
                     const CudaLinearOutput& y, int group, CudaStream stream) {
  const int x_bytes = x.element == CudaElement::kE4M3 ? 1 : 2;
  const int num_sms = hopper_multiprocessors();
  Fp4GemmParams p = {};
  p.x_map = make_tensor_map(x.data, x_bytes, x.m, x.k, x.k * x_bytes,
                            Shape::kTokens / Shape::kShare);
  p.num_panels = static_cast<int>((w.n + 63) / 64);
  p.code_map =
      make_pieces_map(w.codes, p.num_panels, w.k / 64, kTileCodeBytes, 2, Shape::kStageTiles);
  p.scale_map = make_pieces_map(w.scales, p.num_panels, w.k / 64, Decode::kTileScaleBytes, 2,
                                Shape::kStageTiles);
  p.path = y.element == CudaElement::kF32 ? Fp4OutputPath::kF32
           // The copy engine writes whole 16-byte pieces, also of a row's end.
           : w.n % 8 == 0 && y.stride % 8 == 0 && reinterpret_cast<uintptr_t>(y.data) % 16 == 0
               ? Fp4OutputPath::kBf16Tiles
               : Fp4OutputPath::kBf16;
  if (p.path == Fp4OutputPath::kBf16Tiles) {
    p.y_map = make_tensor_map(y.data, 2, x.m, w.n, y.stride * 2, Shape::kChunk);
  }
  p.exponents = exponents;
  p.row_scales = w.row_scales;
  p.bias = w.bias;
  p.x_row_scales = x.row_scales;
  p.y = y.data;
  p.y_stride = y.stride;
  p.m = static_cast<int>(x.m);
  p.n = static_cast<int>(w.n);
  p.steps = static_cast<int>((w.k + Decode::kColumns - 1) / Decode::kColumns);
  if (p.steps < Shape::kSplits) {
    fail(ErrorCode::kInvalidArgument, "a sum over ", w.k, " columns cannot be split ", Shape::kSplits,
         " times");
  }
  p.row_tiles = (p.num_panels + 2 * Shape::kShare - 1) / (2 * Shape::kShare);
  p.token_tiles = (p.m + Shape::kTokens - 1) / Shape::kTokens;
  p.group = group;

  const auto kernel = fp4_gemm<Decode, Shape>;
  static const cudaError_t raised = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  cuda_check(raised, "asking for ", Shape::kSharedBytes, " bytes of shared memory");
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = Shape::kCluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  const int tiles = p.row_tiles * p.token_tiles;
  config.gridDim = dim3(static_cast<unsigned>(
      Shape::kCluster *
      (Shape::kSplits > 1 ? tiles : std::min(num_sms / Shape::kCluster, tiles))));
  config.blockDim = dim3(384);
  config.dynamicSmemBytes = Shape::kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  cuda_check(cudaLaunchKernelEx(&config, kernel, p), "launching fp4_gemm");
}

}  // namespace lathe
