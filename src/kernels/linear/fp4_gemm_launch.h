// Host side of fp4_gemm_sm90.h: tensor maps and the launch of one instantiation.
#pragma once
#include <algorithm>

#include "kernels/linear/fp4_gemm_check.h"
#include "kernels/linear/fp4_gemm_sm90.h"
#include "kernels/linear/linear_cuda.h"
#include "kernels/linear/tensor_map.h"
#include "tensor/cuda_check.h"
#include "tensor/once_per_device.h"

namespace lathe {

// token_group: token tiles that are worked on together.
template <class Decode, class Shape>
void launch_fp4_gemm(const Fp4Tiles& w, const uint8_t* exponents, const CudaLinearInput& x,
                     const CudaLinearOutput& y, int token_group, CudaStream stream) {
  const int x_bytes = x.element == CudaElement::kE4M3 ? 1 : 2;
  const int num_sms = hopper_multiprocessors();
  Fp4GemmParams p = {};
  p.x_map =
      make_tensor_map(x.data, x_bytes, x.m, x.k, x.k * x_bytes, Shape::kTokens / Shape::kShare);
  p.num_panels = static_cast<int>((w.n + 63) / 64);
  p.code_map = make_pieces_map(w.codes, p.num_panels, w.k / 64, kTileCodeBytes, Shape::kPanels,
                               Shape::kStageTiles);
  p.scale_map = make_pieces_map(w.scales, p.num_panels, w.k / 64, Decode::kTileScaleBytes,
                                Shape::kPanels, Shape::kStageTiles);
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
    fail(ErrorCode::kInvalidArgument, "a sum over ", w.k, " columns cannot be split ",
         Shape::kSplits, " times");
  }
  constexpr int kClusterPanels = Shape::kPanels * Shape::kShare;
  p.row_tiles = (p.num_panels + kClusterPanels - 1) / kClusterPanels;
  p.token_tiles = (p.m + Shape::kTokens - 1) / Shape::kTokens;
  p.group = token_group;

  const auto kernel = fp4_gemm<Decode, Shape>;
  static OncePerDevice prepare;
  prepare([&] {
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    Shape::kSharedBytes),
               "asking for ", Shape::kSharedBytes, " bytes of shared memory");
  });
  const int tiles = p.row_tiles * p.token_tiles;
  const int clusters = Shape::kSplits > 1 ? tiles : std::min(num_sms / Shape::kCluster, tiles);
  // Consumers that do not end a tile together could leave the tensor cores to each other during
  // their epilogues. Not settled: once 188 to 169 us (28672 x 4096, 1024 rows, H100), 191 us on an
  // H200 with it, and 3-6 % slower with two or three tiles a block, hence only above four.
  p.skew_ns = tiles > 4 * clusters ? 500 : 0;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = Shape::kCluster;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  // The kernel waits for the one ahead of it in the stream itself, but for W, which it may load
  // before.
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(Shape::kCluster * clusters));
  config.blockDim = dim3(Shape::kThreads);
  config.dynamicSmemBytes = Shape::kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  cuda_check(cudaLaunchKernelEx(&config, kernel, p), "launching fp4_gemm");
}

}  // namespace lathe
