// Coded blocks of a sequence outside the cache that made them, for memory and disk: a record that
// stands alone, says which codec and tokens it is of, and whose every byte is under a checksum.
// Little-endian:
//
//   0   "LATHEKV1"
//   8   fingerprint of the codec, SHA-256 (of the model too; formats/kv_codec_file.h)
//   40  int64  first position, a multiple of kBlockSize
//   48  int64  number of tokens, likewise, at least kBlockSize
//   56  int64  bytes of one block's codes
//   64  int64  bytes of the exact sinks (0: none of the tokens is a sink)
//   72  uint32 element of the sinks (0: f32, 1: bf16), uint32 0
//   80  int32  token ids [number of tokens]
//       codes [number of blocks][bytes of a block]
//       sinks [layer][keys before RoPE, keys, values][sinks, kv_size]
//       SHA-256 of everything before it
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/attention/kv_layout.h"

namespace lathe {

struct ParkedRecord {
  std::string codec_fingerprint;  // 64 hexadecimal digits
  int64_t first_position = 0;
  std::vector<int32_t> token_ids;
  int64_t bytes_per_block = 0;
  KvElement sink_element = KvElement::kBF16;
  std::span<const std::byte> codes;  // borrowed
  std::span<const std::byte> sinks;  // borrowed

  int64_t num_blocks() const { return static_cast<int64_t>(token_ids.size()) / kBlockSize; }
};

// The sizes must agree with one another (checked).
std::vector<std::byte> write_parked_record(const ParkedRecord& record);

// Borrows `bytes`. Nothing in them is believed: throws kCorruptData for a record that is torn, has
// a bit flipped anywhere, or contradicts itself. `what` names it in messages. Whether it is of this
// model, codec and text is for the reader to compare.
ParkedRecord read_parked_record(std::span<const std::byte> bytes, const std::string& what);

}  // namespace lathe
