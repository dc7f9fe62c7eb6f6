// How a block of the cache is stored small: the interface between the cache, which owns blocks and
// drives the order of layers, and a codec such as AQUA-KV (spec/aqua-kv.md), which turns rows of
// keys and values into bytes and back.
//
// What a codec may rely on, and what it must keep:
//   - Keys are those before RoPE (after any q/k norm).
//   - Layers come in ascending order, at encoding and at decoding. For each, `below` holds the
//     *reconstructed* rows of base_layer(layer): the closed loop that keeps errors from adding up
//     (spec section 1.2). A model with sliding and global layers can chain each kind to itself; a
//     codec without prediction, or with a latent inside the codes, has no base at all.
//   - A block is encoded and decoded alone, by any thread: nothing carries over between blocks.
//   - Decoding must do the arithmetic of encoding, bit for bit, whatever the number of threads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lathe {

// kBlockSize rows of one layer, [kBlockSize, num_kv_heads * head_dim], dense fp32.
struct KvLayerRows {
  float* keys = nullptr;
  float* values = nullptr;
};

// Which tokens stay exact, and how many are encoded at once (spec section 1.6).
struct KvCodecPolicy {
  int64_t num_sinks = 4;       // first tokens of a sequence
  int64_t window = 128;        // at least so many of the latest tokens
  int64_t chunk_tokens = 128;  // a multiple of kBlockSize
};

// Immutable after loading; used by several threads at once.
class KvCodec {
 public:
  virtual ~KvCodec() = default;

  virtual KvCodecPolicy policy() const = 0;
  // Bytes of one block's codes, all layers.
  virtual int64_t bytes_per_block() const = 0;
  // The layer that `layer` is predicted from, below it; -1: none.
  virtual int64_t base_layer(int64_t layer) const = 0;
  // Floats of scratch that encode_layer and decode_layer are given.
  virtual int64_t scratch_floats() const = 0;

  // Encodes one layer of a block: `rows` holds the exact rows and leaves with the reconstructed
  // ones, those that decode_layer will give, bit for bit. Rows before first_row are sinks: they may
  // be anything, and what is reconstructed for them is not used. `below` is other memory than
  // `rows`, and null where base_layer is -1.
  virtual void encode_layer(int64_t layer, KvLayerRows below, KvLayerRows rows, int64_t first_row,
                            std::byte* codes, float* scratch) const = 0;
  // Rebuilds one layer of a block into `rows`, which may be the memory of `below`.
  virtual void decode_layer(int64_t layer, const std::byte* codes, KvLayerRows below,
                            KvLayerRows rows, float* scratch) const = 0;
};

}  // namespace lathe
