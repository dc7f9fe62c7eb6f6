// Pieces of sequences as bytes that stand alone: a piece is chunk_tokens tokens of all layers in a
// codec's codes, and the first tokens of a sequence (sinks) as they were. Nothing of the cache that
// they come from and go back to is kept in the meantime. That is a plain one with live blocks: so
// finished and preempted sequences cost 2 to 4 bits a number instead of 16, and decoding runs on
// live blocks at full speed. Or it has coded blocks itself (CodedKvCache::make_parker()): then the
// codes are those, and woken tokens have the bits that they had.
//
// A piece: codes of its blocks, one after the other; then, for each layer, the keys (as attention
// reads them) and the values of its sinks, [num_sinks, kv_size] in bf16 from bf16 blocks, else
// fp32.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "cache/kv_cache.h"

namespace lathe {

class PieceParker {
 public:
  virtual ~PieceParker() = default;

  virtual int64_t piece_tokens() const = 0;
  // At least so many of a sequence's latest tokens should stay exact.
  virtual int64_t window() const = 0;
  virtual int64_t piece_bytes(int64_t piece_idx) const = 0;
  // Bytes of a piece's tokens in the cache, when they are woken.
  virtual int64_t live_bytes() const = 0;

  // Encodes pieces [begin, begin + count) of a sequence, whole ones that are committed.
  // done(piece_idx, bytes) is then called for each, in ascending order, in this thread.
  virtual void park(const KvSequence& sequence, int64_t begin, int64_t count, Exec& exec,
                    const std::function<void(int64_t, std::span<const std::byte>)>& done) = 0;
  // Rebuilds pieces [begin, begin + pieces.size()) into blocks that the sequence has reserved
  // (KvCache::reserve_woken()) and shares with nobody. The caller counts the tokens. Any bytes of
  // the right size become something; kCorruptData for another size.
  virtual void wake(std::span<const std::vector<std::byte>> pieces, int64_t begin,
                    const KvSequence& sequence, Exec& exec) = 0;
};

}  // namespace lathe
