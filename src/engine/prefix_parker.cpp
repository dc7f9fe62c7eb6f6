#include "engine/prefix_parker.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace lathe {

PrefixParker::PrefixParker(std::unique_ptr<PieceParker> parker, const ParkedStoreOptions& store,
                           std::string_view fingerprint, Exec& exec)
    : parker_(std::move(parker)), store_(store), root_(parked_root(fingerprint)), exec_(exec) {}

// Of all whole pieces.
void PrefixParker::make_keys(std::span<const int32_t> tokens) {
  keys_.clear();
  const auto size = static_cast<std::size_t>(piece_tokens());
  for (std::size_t begin = 0; begin + size <= tokens.size(); begin += size) {
    keys_.push_back(parked_key(keys_.empty() ? root_ : keys_.back(), tokens.subspan(begin, size)));
  }
}

void PrefixParker::park(std::span<const int32_t> tokens, const KvSequence& sequence) {
  LATHE_CHECK(static_cast<int64_t>(tokens.size()) <= sequence.num_tokens);
  make_keys(tokens);
  const auto count = static_cast<int64_t>(keys_.size());
  int64_t first = 0;
  while (first < count && store_.contains(keys_[static_cast<std::size_t>(first)])) ++first;
  parker_->park(sequence, first, count - first, exec_,
                [&](int64_t piece, std::span<const std::byte> bytes) {
                  store_.put(keys_[static_cast<std::size_t>(piece)], bytes);
                  parked_tokens_ += piece_tokens();
                });
  // A piece is of no use without those before it: those shall be the last to go.
  for (int64_t i = count; i-- > 0;) store_.touch(keys_[static_cast<std::size_t>(i)]);
}

int64_t PrefixParker::find(std::span<const int32_t> tokens) {
  const auto size = static_cast<int64_t>(tokens.size());
  make_keys(tokens.first(static_cast<std::size_t>(std::max<int64_t>(0, size - parker_->window()))));
  int64_t count = 0;
  for (const ParkedKey& key : keys_) {
    if (!store_.contains(key)) break;
    ++count;
  }
  return count * piece_tokens();
}

int64_t PrefixParker::wake(std::span<const int32_t> tokens, int64_t num_tokens,
                           KvSequence& sequence) {
  LATHE_CHECK(sequence.num_tokens % piece_tokens() == 0 && num_tokens % piece_tokens() == 0);
  make_keys(tokens.first(static_cast<std::size_t>(num_tokens)));
  const int64_t first = sequence.num_tokens / piece_tokens();
  std::vector<std::vector<std::byte>> pieces;
  for (auto i = static_cast<std::size_t>(first); i < keys_.size(); ++i) {
    const auto piece = store_.get(keys_[i]);
    // A damaged file has been caught by its checksum; a piece of another size is a collision of
    // hashes or somebody else's work.
    if (!piece ||
        static_cast<int64_t>(piece->size()) != parker_->piece_bytes(static_cast<int64_t>(i))) {
      break;
    }
    pieces.emplace_back(piece->begin(), piece->end());
  }
  for (auto i = pieces.size() + static_cast<std::size_t>(first); i-- > 0;) store_.touch(keys_[i]);
  if (pieces.empty()) return sequence.num_tokens;
  parker_->wake(pieces, first, sequence, exec_);
  const int64_t woken = static_cast<int64_t>(pieces.size()) * piece_tokens();
  sequence.num_tokens += woken;
  woken_tokens_ += woken;
  ++num_wakes_;
  return sequence.num_tokens;
}

ParkingStats PrefixParker::stats() const {
  return {.store = store_.stats(),
          .parked_tokens = parked_tokens_,
          .woken_tokens = woken_tokens_,
          .num_wakes = num_wakes_,
          .piece_tokens = piece_tokens(),
          .piece_bytes = parker_->piece_bytes(int64_t{1} << 20),
          .live_piece_bytes = parker_->live_bytes()};
}

}  // namespace lathe
