// The caches of the ranks of one model (model/tensor_parallel.h) as one: each holds its own KV
// heads in blocks of the same numbers, so there is one pool and one block table for all.
#pragma once
#include <memory>
#include <vector>

#include "cache/paged_cache.h"

namespace lathe {

class ShardedKvCache final : public PagedCache {
 public:
  // parts: of equally many blocks, one for each rank.
  ShardedKvCache(std::vector<std::unique_ptr<PagedCache>> parts, int64_t max_sequence_tokens);

  // A rank's own, for its step over copies of the sequences; its pool is not used.
  PagedCache& part(int rank) { return *parts_[static_cast<std::size_t>(rank)]; }

  int64_t bytes_per_block() const override;  // of all ranks together
  KvElement element() const override { return parts_.front()->element(); }
  // Rows go to the parts: these abort.
  void append(int64_t layer, const float* k_raw, const float* k, const float* v, int64_t stride,
              Exec& exec) override;
  std::span<const KvBlockView> views(int64_t layer, int64_t rows_idx) override;
  void copy_block(BlockId from, BlockId to) override;

 private:
  std::vector<std::unique_ptr<PagedCache>> parts_;
};

}  // namespace lathe
