// The beginnings of finished and preempted sequences as parked pieces (cache/piece_parker.h) under
// the hash of their tokens (cache/parked_store.h), in memory and on disk. A later sequence that
// begins with the same tokens wakes them instead of computing them.
//
// A woken token is what the codec makes of it. The latest tokens of a sequence, at least a codec's
// window of them, are always computed anew, exactly; so are the first ones (sinks).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cache/parked_store.h"
#include "cache/piece_parker.h"
#include "tensor/exec.h"

namespace lathe {

struct ParkingStats {
  ParkedStore::Stats store;
  int64_t parked_tokens = 0;  // encoded and stored
  int64_t woken_tokens = 0;   // that were not computed again
  int64_t num_wakes = 0;
  int64_t piece_tokens = 0;
  int64_t piece_bytes = 0;       // of a piece without sinks
  int64_t live_piece_bytes = 0;  // of the same tokens in the running format
};

class PrefixParker {
 public:
  // fingerprint: of everything that the pieces' bytes depend on (model, codec, formats). exec is
  // borrowed.
  PrefixParker(std::unique_ptr<PieceParker> parker, const ParkedStoreOptions& store,
               std::string_view fingerprint, Exec& exec);

  int64_t piece_tokens() const { return parker_->piece_tokens(); }
  // Parks every whole piece of a sequence whose blocks hold the keys and values of `tokens`, unless
  // it is there already.
  void park(std::span<const int32_t> tokens, const KvSequence& sequence);
  // How many of a sequence's first tokens can be woken: whole pieces. `tokens` are all it has.
  int64_t find(std::span<const int32_t> tokens);
  // Wakes the tokens [sequence.num_tokens, num_tokens), whole pieces that find() found, into
  // blocks that the sequence has reserved, and counts them as its own. Returns how many it has
  // then: fewer than num_tokens when a piece turns out to be damaged or gone.
  int64_t wake(std::span<const int32_t> tokens, int64_t num_tokens, KvSequence& sequence);
  ParkingStats stats() const;

 private:
  void make_keys(std::span<const int32_t> tokens);

  std::unique_ptr<PieceParker> parker_;
  ParkedStore store_;
  ParkedKey root_;
  Exec& exec_;
  std::vector<ParkedKey> keys_;  // of the pieces of the last tokens asked about
  int64_t parked_tokens_ = 0;
  int64_t woken_tokens_ = 0;
  int64_t num_wakes_ = 0;
};

}  // namespace lathe
