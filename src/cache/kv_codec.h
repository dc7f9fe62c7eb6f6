// How blocks of the cache are stored small: the interface between the cache, which owns blocks and
// decides when they are encoded and read, and a codec such as AQUA-KV (spec/aqua-kv.md), which
// turns rows of keys and values into bytes and back.
//
// What a codec may rely on, and what it must keep:
//   - Keys are those before RoPE (after any q/k norm).
//   - Layers are decoded in ascending order, with `state` kept in between: there the codec has the
//     *reconstructed* rows that later layers are predicted from. That loop is closed: encoding
//     predicts from the same rows, so errors do not add up (spec section 1.2).
//   - Several blocks are encoded or decoded together, which makes their predictions one matrix
//     product. Still every row is coded alone: its bytes, and the bits that they decode to, do not
//     depend on the other rows, on the number of threads or on the machine.
//   - A call runs in the calling thread; different threads work on different blocks at once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tensor/exec.h"

namespace lathe {

// Rows of one layer of some blocks, [num_blocks * kBlockSize, num_kv_heads * head_dim], dense fp32.
struct KvLayerRows {
  float* keys = nullptr;
  float* values = nullptr;
};

// Where encode() gets the exact rows from. A layer may be asked for more than once.
class KvExactRows {
 public:
  virtual ~KvExactRows() = default;
  virtual void load(int64_t layer, KvLayerRows rows) const = 0;
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
  // What the codes mean, the model included: 64 hexadecimal digits. Codes of one fingerprint are
  // the same numbers everywhere.
  virtual std::string_view fingerprint() const = 0;
  // Bytes of one block's codes, all layers.
  virtual int64_t bytes_per_block() const = 0;
  // Floats of state, kept from layer to layer, and of scratch, for num_blocks blocks at once.
  virtual int64_t state_floats(int64_t num_blocks) const = 0;
  virtual int64_t scratch_floats(int64_t num_blocks) const = 0;

  // All layers of num_blocks blocks; codes[b] has bytes_per_block() of block b.
  virtual void encode(const KvExactRows& exact, int64_t num_blocks, std::byte* const* codes,
                      float* state, float* scratch, Exec& exec) const = 0;
  // Rebuilds one layer; called for layers 0, 1, 2, ... with the same state. The rows returned are
  // part of `state`, valid and unchanged until the next call with it. Any bytes decode to
  // something.
  virtual KvLayerRows decode_layer(int64_t layer, const std::byte* const* codes, int64_t num_blocks,
                                   float* state, float* scratch, Exec& exec) const = 0;
};

}  // namespace lathe
