// CodedKvCache: coded blocks out of the cache and back into it (cache/parked_record.h). Exact sinks
// travel with the first block: keys before RoPE, keys and values of the rows that are sinks.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "cache/coded_kv_cache.h"
#include "cache/parked_record.h"
#include "cache/plain_rows.h"

namespace lathe {

int64_t CodedKvCache::sink_record_bytes() const {
  const int64_t row_bytes = live_.shape().kv_size() * kv_element_size(live_.shape().element);
  return 3 * live_.shape().num_layers * sinks_in_block(0) * row_bytes;
}

void CodedKvCache::save_sinks(BlockId block, std::byte* out) {
  const LiveBlockShape& shape = live_.shape();
  const int64_t row_bytes = shape.kv_size() * kv_element_size(shape.element);
  const int64_t num_sinks = sinks_in_block(0);
  std::vector<float> row(static_cast<std::size_t>(shape.kv_size()));
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    std::memcpy(out, raw_keys(layer, block), static_cast<std::size_t>(num_sinks * row_bytes));
    out += num_sinks * row_bytes;
    for (int64_t t = 0; t < num_sinks; ++t, out += row_bytes) {
      load_key(shape, live_.keys(layer, block), t, row.data());
      store_plain_row(shape.element, row.data(), shape.kv_size(), out);
    }
    for (int64_t t = 0; t < num_sinks; ++t, out += row_bytes) {
      load_value(shape, live_.values(layer, block), t, row.data());
      store_plain_row(shape.element, row.data(), shape.kv_size(), out);
    }
  }
}

void CodedKvCache::load_sinks(const std::byte* in, BlockId block) {
  const LiveBlockShape& shape = live_.shape();
  const int64_t row_bytes = shape.kv_size() * kv_element_size(shape.element);
  const int64_t num_sinks = sinks_in_block(0);
  std::vector<float> row(static_cast<std::size_t>(shape.kv_size()));
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    // The rows that are no sinks are never read from this block, but they may not be anything.
    std::memset(raw_keys(layer, block), 0, static_cast<std::size_t>(shape.plane_bytes()));
    std::memset(live_.keys(layer, block), 0, static_cast<std::size_t>(2 * shape.plane_bytes()));
    std::memcpy(raw_keys(layer, block), in, static_cast<std::size_t>(num_sinks * row_bytes));
    in += num_sinks * row_bytes;
    for (int64_t t = 0; t < num_sinks; ++t, in += row_bytes) {
      load_plain_row(shape.element, in, shape.kv_size(), row.data());
      store_key(shape, row.data(), t, live_.keys(layer, block));
    }
    for (int64_t t = 0; t < num_sinks; ++t, in += row_bytes) {
      load_plain_row(shape.element, in, shape.kv_size(), row.data());
      store_value(shape, row.data(), t, live_.values(layer, block));
    }
  }
}

std::vector<std::byte> CodedKvCache::save_parked(const KvSequence& sequence, int64_t first_block,
                                                 std::span<const int32_t> token_ids) {
  LATHE_CHECK(!in_step() && policy().num_sinks < kBlockSize);
  const auto num_blocks = static_cast<int64_t>(token_ids.size()) / kBlockSize;
  LATHE_CHECK(token_ids.size() % kBlockSize == 0 && num_blocks > 0 && first_block >= 0 &&
              first_block + num_blocks <= end_of_codes(sequence));
  std::vector<std::byte> block_codes(
      static_cast<std::size_t>(num_blocks * codec_.bytes_per_block()));
  for (int64_t i = 0; i < num_blocks; ++i) {
    const BlockId id = sequence.blocks[static_cast<std::size_t>(first_block + i)];
    std::memcpy(block_codes.data() + i * codec_.bytes_per_block(), codes(~id),
                static_cast<std::size_t>(codec_.bytes_per_block()));
  }
  std::vector<std::byte> sinks;
  if (first_block == 0 && policy().num_sinks > 0) {
    sinks.resize(static_cast<std::size_t>(sink_record_bytes()));
    save_sinks(sequence.sink_block, sinks.data());
  }
  return write_parked_record({.codec_fingerprint = std::string(codec_.fingerprint()),
                              .first_position = first_block * kBlockSize,
                              .token_ids = {token_ids.begin(), token_ids.end()},
                              .bytes_per_block = codec_.bytes_per_block(),
                              .sink_element = live_.shape().element,
                              .codes = block_codes,
                              .sinks = sinks});
}

bool CodedKvCache::load_parked(KvSequence& sequence, std::span<const std::byte> bytes,
                               std::span<const int32_t> token_ids, const std::string& what) {
  LATHE_CHECK(!in_step() && policy().num_sinks < kBlockSize);
  const auto num_old = static_cast<int64_t>(sequence.blocks.size());
  LATHE_CHECK(sequence.num_tokens == num_old * kBlockSize && end_of_codes(sequence) == num_old);
  const ParkedRecord record = read_parked_record(bytes, what);
  const auto refuse = [&](const auto&... parts) {
    fail(ErrorCode::kInvalidArgument, what, ": ", parts...);
  };
  if (record.codec_fingerprint != codec_.fingerprint()) {
    refuse("parked with the codec ", record.codec_fingerprint.substr(0, 12), ", this one is ",
           codec_.fingerprint().substr(0, 12));
  }
  if (record.first_position != sequence.num_tokens ||
      !std::equal(record.token_ids.begin(), record.token_ids.end(), token_ids.begin(),
                  token_ids.end())) {
    refuse(record.token_ids.size(), " tokens from position ", record.first_position,
           " are not the ", token_ids.size(), " that follow position ", sequence.num_tokens);
  }
  const bool has_sinks = record.first_position == 0 && policy().num_sinks > 0;
  if (record.bytes_per_block != codec_.bytes_per_block() ||
      static_cast<int64_t>(record.sinks.size()) != (has_sinks ? sink_record_bytes() : 0) ||
      (has_sinks && record.sink_element != live_.shape().element)) {
    refuse("blocks of ", record.bytes_per_block, " bytes with ", record.sinks.size(),
           " bytes of sinks do not fit this cache (", codec_.bytes_per_block(), ", ",
           has_sinks ? sink_record_bytes() : 0, "; bf16 and f32 caches differ)");
  }
  const int64_t num_blocks = record.num_blocks();
  if (sequence.num_tokens + num_blocks * kBlockSize > options().max_sequence_tokens) {
    refuse("a sequence of ", sequence.num_tokens + num_blocks * kBlockSize,
           " tokens; the cache was made for at most ", options().max_sequence_tokens);
  }
  if (has_sinks && live_pool().num_free() == 0) return false;
  if (!make_coded_room(num_blocks)) return false;
  if (has_sinks) {
    sequence.sink_block = *live_pool().allocate();
    load_sinks(record.sinks.data(), sequence.sink_block);
  }
  for (int64_t i = 0; i < num_blocks; ++i) {
    const BlockId coded = *coded_pool().allocate();
    std::memcpy(codes(coded), record.codes.data() + i * codec_.bytes_per_block(),
                static_cast<std::size_t>(codec_.bytes_per_block()));
    sequence.blocks.push_back(~coded);
  }
  sequence.num_tokens += num_blocks * kBlockSize;
  return true;
}

}  // namespace lathe
