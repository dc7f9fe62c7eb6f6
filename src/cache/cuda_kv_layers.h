// A cache in a GPU's memory as the decoder of that GPU reads and fills it, layer by layer in a
// step: what KvCache's append() and views() are on a CPU.
#pragma once
#include <cstdint>

#include "cache/block_pool.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/latent_attention_cuda.h"

namespace lathe {

// The block tables of a step's layers.
struct KvCudaTables {
  const int32_t* data = nullptr;  // of layer 0
  int64_t layer_stride = 0;       // to the next layer's; 0: one for all

  const int32_t* of(int64_t layer) const { return data + layer * layer_stride; }
};

// The most rebuilt blocks (16k rows) of a step that is captured in a graph: with more, kernels take
// longer than launching them.
inline constexpr int64_t kMostCapturedBlocks = 512;

class CudaKvLayers {
 public:
  virtual ~CudaKvLayers() = default;

  virtual KvCudaLayer layer(int64_t layer) = 0;
  // Tells caches apart that have more memory than layer() shows; 0: this one has not.
  virtual int64_t cache_id() const { return 0; }
  // What stands in the table that is sent to the device for a block of a sequence; behind
  // begin_step().
  virtual int32_t table_entry(BlockId id) const { return id; }
  // Blocks that the step in progress rebuilds: what prepare_layer() launches depends on it (and
  // what begin_step() sent to the device, on nothing else).
  virtual int64_t num_rebuilt_blocks() const { return 0; }
  // int32 that start_layers() needs for tables of `count` entries.
  virtual int64_t table_ints(int64_t) const { return 0; }
  // Enqueues the making of all layers' tables from batch.block_tables, into `memory`
  // [table_ints()].
  virtual KvCudaTables start_layers(const CudaBatch& batch, int32_t*) {
    return {batch.block_tables, 0};
  }
  // Enqueues what the layer's blocks need before attention reads them. Layers in ascending order.
  virtual void prepare_layer(int64_t) {}
  // Where the step in progress attends to codes as they lie, instead of to layer(): the layer's
  // codes, for latent_attention_cuda(). Null: it does not.
  virtual const LatentKvCuda* codes(int64_t) { return nullptr; }
};

}  // namespace lathe
