// Pieces of a cache whose older blocks are codes already (piece_parker.h): parking copies them and
// encodes the whole pieces of the window, waking copies them back. A woken sequence has the codes
// that it had, so it goes on with the same bits. In it, woken blocks are coded ones.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "cache/coded_kv_cache.h"
#include "cache/plain_rows.h"

namespace lathe {

class CodedKvCache::Parker final : public PieceParker {
 public:
  explicit Parker(CodedKvCache& cache) : cache_(cache) {
    if (cache.policy().num_sinks < kBlockSize) return;
    fail(ErrorCode::kUnsupported, "parking of codes behind ", cache.policy().num_sinks,
         " exact tokens: those must be fewer than the ", kBlockSize, " of a block");
  }

  int64_t piece_tokens() const override { return cache_.policy().chunk_tokens; }
  int64_t window() const override { return cache_.policy().window; }
  int64_t piece_bytes(int64_t piece_idx) const override {
    return code_bytes() + (piece_idx == 0 ? sink_bytes() : 0);
  }
  int64_t live_bytes() const override { return code_bytes(); }

  void park(const KvSequence& sequence, int64_t begin, int64_t count, Exec& exec,
            const std::function<void(int64_t, std::span<const std::byte>)>& done) override;
  void wake(std::span<const std::vector<std::byte>> pieces, int64_t begin,
            const KvSequence& sequence, Exec& exec) override;

 private:
  const LiveBlockShape& shape() const { return cache_.live_.shape(); }
  int64_t piece_blocks() const { return piece_tokens() / kBlockSize; }
  int64_t block_bytes() const { return cache_.bytes_per_coded_block(); }
  int64_t code_bytes() const { return piece_blocks() * block_bytes(); }
  int64_t num_sinks() const { return cache_.policy().num_sinks; }
  int64_t sink_row_bytes() const { return shape().kv_size() * kv_element_size(shape().element); }
  int64_t sink_bytes() const { return 2 * shape().num_layers * num_sinks() * sink_row_bytes(); }

  void save_codes(const KvSequence& sequence, int64_t first_block, int64_t num_blocks,
                  std::byte* out, Exec& exec);
  void save_sinks(BlockId block, std::byte* out);
  void load_sinks(const std::byte* in, BlockId block);

  CodedKvCache& cache_;
};

std::unique_ptr<PieceParker> CodedKvCache::make_parker() { return std::make_unique<Parker>(*this); }

// --- parking ------------------------------------------------------------------------------------

void CodedKvCache::Parker::park(
    const KvSequence& sequence, int64_t begin, int64_t count, Exec& exec,
    const std::function<void(int64_t, std::span<const std::byte>)>& done) {
  LATHE_CHECK(!cache_.in_step() && begin >= 0 &&
              (begin + count) * piece_tokens() <= sequence.num_tokens);
  // As many at once as there are threads: a long sequence's codes are large.
  const int64_t stride = exec.threads.num_threads();
  std::vector<std::byte> codes(static_cast<std::size_t>(std::min(stride, count) * code_bytes()));
  for (int64_t first = begin; first < begin + count; first += stride) {
    const int64_t num = std::min(stride, begin + count - first);
    save_codes(sequence, first * piece_blocks(), num * piece_blocks(), codes.data(), exec);
    for (int64_t i = 0; i < num; ++i) {
      const std::span<const std::byte> piece = {codes.data() + i * code_bytes(),
                                                static_cast<std::size_t>(code_bytes())};
      if (first + i > 0 || num_sinks() == 0) {
        done(first + i, piece);
        continue;
      }
      std::vector<std::byte> with_sinks(static_cast<std::size_t>(piece_bytes(0)));
      std::copy(piece.begin(), piece.end(), with_sinks.begin());
      const bool is_live = sequence.blocks[0] >= 0;
      save_sinks(is_live ? sequence.blocks[0] : sequence.sink_block,
                 with_sinks.data() + code_bytes());
      done(0, with_sinks);
    }
  }
}

// Those that there are, and new ones of live blocks; the sequence keeps what it has.
void CodedKvCache::Parker::save_codes(const KvSequence& sequence, int64_t first_block,
                                      int64_t num_blocks, std::byte* out, Exec& exec) {
  std::vector<EncodeJob> jobs;
  std::vector<std::byte*> targets;
  for (int64_t b = first_block; b < first_block + num_blocks; ++b, out += block_bytes()) {
    const BlockId id = sequence.blocks[static_cast<std::size_t>(b)];
    if (const BlockId coded = cache_.codes_of_block(id); coded >= 0) {
      std::memcpy(out, cache_.codes(coded), static_cast<std::size_t>(block_bytes()));
    } else {
      jobs.push_back({.live = id, .coded = -1, .first_position = b * kBlockSize});
      targets.push_back(out);
    }
  }
  if (!jobs.empty()) {
    cache_.encode_to(
        jobs, [&](int64_t i) { return targets[static_cast<std::size_t>(i)]; }, exec);
  }
}

void CodedKvCache::Parker::save_sinks(BlockId block, std::byte* out) {
  std::vector<float> row(static_cast<std::size_t>(shape().kv_size()));
  for (int64_t layer = 0; layer < shape().num_layers; ++layer) {
    for (int64_t t = 0; t < num_sinks(); ++t, out += sink_row_bytes()) {
      load_key(shape(), cache_.live_.keys(layer, block), t, row.data());
      store_plain_row(shape().element, row.data(), shape().kv_size(), out);
    }
    for (int64_t t = 0; t < num_sinks(); ++t, out += sink_row_bytes()) {
      load_value(shape(), cache_.live_.values(layer, block), t, row.data());
      store_plain_row(shape().element, row.data(), shape().kv_size(), out);
    }
  }
}

// --- waking -------------------------------------------------------------------------------------

void CodedKvCache::Parker::wake(std::span<const std::vector<std::byte>> pieces, int64_t begin,
                                const KvSequence& sequence, Exec&) {
  const auto count = static_cast<int64_t>(pieces.size());
  LATHE_CHECK(!cache_.in_step() &&
              cache_.end_of_codes(sequence) >= (begin + count) * piece_blocks());
  for (int64_t i = 0; i < count; ++i) {
    const auto size = static_cast<int64_t>(pieces[static_cast<std::size_t>(i)].size());
    if (size == piece_bytes(begin + i)) continue;
    fail(ErrorCode::kCorruptData, "a parked piece of ", size, " bytes; ", piece_bytes(begin + i),
         " expected");
  }
  for (int64_t i = 0; i < count; ++i) {
    const std::byte* piece = pieces[static_cast<std::size_t>(i)].data();
    const int64_t first_block = (begin + i) * piece_blocks();
    for (int64_t b = first_block; b < first_block + piece_blocks(); ++b, piece += block_bytes()) {
      std::memcpy(cache_.codes(~sequence.blocks[static_cast<std::size_t>(b)]), piece,
                  static_cast<std::size_t>(block_bytes()));
    }
    if (begin + i == 0 && num_sinks() > 0) load_sinks(piece, sequence.sink_block);
  }
}

void CodedKvCache::Parker::load_sinks(const std::byte* in, BlockId block) {
  std::vector<float> row(static_cast<std::size_t>(shape().kv_size()));
  for (int64_t layer = 0; layer < shape().num_layers; ++layer) {
    for (int64_t t = 0; t < num_sinks(); ++t, in += sink_row_bytes()) {
      load_plain_row(shape().element, in, shape().kv_size(), row.data());
      store_key(shape(), row.data(), t, cache_.live_.keys(layer, block));
    }
    for (int64_t t = 0; t < num_sinks(); ++t, in += sink_row_bytes()) {
      load_plain_row(shape().element, in, shape().kv_size(), row.data());
      store_value(shape(), row.data(), t, cache_.live_.values(layer, block));
    }
  }
}

}  // namespace lathe
