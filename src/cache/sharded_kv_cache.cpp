#include "cache/sharded_kv_cache.h"

#include <utility>

#include "base/check.h"

namespace lathe {

ShardedKvCache::ShardedKvCache(std::vector<std::unique_ptr<PagedCache>> parts,
                               int64_t max_sequence_tokens)
    : PagedCache(parts.front()->num_blocks(), max_sequence_tokens, parts.front()->keeps_sinks()),
      parts_(std::move(parts)) {
  for (const auto& part : parts_) LATHE_CHECK(part->num_blocks() == num_blocks());
}

int64_t ShardedKvCache::bytes_per_block() const {
  int64_t bytes = 0;
  for (const auto& part : parts_) bytes += part->bytes_per_block();
  return bytes;
}

void ShardedKvCache::append(int64_t, const float*, const float*, const float*, int64_t, Exec&) {
  LATHE_UNREACHABLE("rows are appended to the ranks' parts");
}

std::span<const KvBlockView> ShardedKvCache::views(int64_t, int64_t) {
  LATHE_UNREACHABLE("views are those of the ranks' parts");
}

void ShardedKvCache::copy_block(BlockId from, BlockId to) {
  for (const auto& part : parts_) part->copy_block(from, to);
}

}  // namespace lathe
