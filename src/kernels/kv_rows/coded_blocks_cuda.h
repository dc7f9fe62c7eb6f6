// What a cache whose older blocks are codes (cache/cuda_coded_kv_cache.h) asks for beside rows and
// codes: block tables for each layer, and exact sinks over what was rebuilt. All functions only
// enqueue work on a stream.
#pragma once
#include <cstdint>

#include "kernels/attention/attention_cuda.h"

namespace lathe {

// Rebuilt blocks are the first num_rebuilt of a plane, followed by layer 0's live blocks, layer
// 1's, ... An entry of `entries` [count] is a rebuilt block's number, or num_rebuilt + a live
// block's; tables [num_layers, count] has each layer's numbers in the plane. Entries that stand for
// nothing may hold anything.
void layer_tables_cuda(const int32_t* entries, int64_t count, int64_t num_layers,
                       int64_t num_rebuilt, int64_t live_per_layer, int32_t* tables,
                       CudaStream stream);

// Keys and values of tokens 0 .. tokens[i] - 1 of block first_block + from[i] to block to[i], of
// planes of numbers (not of codes).
struct CopyTokensCudaArgs {
  KvCudaLayer layer;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t first_block = 0;
  // All on the device. `count` pairs, which a graph may be replayed with more or fewer of.
  const int32_t* count = nullptr;
  const int32_t* from = nullptr;
  const int32_t* to = nullptr;
  const int32_t* tokens = nullptr;
};
void copy_tokens_cuda(const CopyTokensCudaArgs& args, CudaStream stream);

}  // namespace lathe
