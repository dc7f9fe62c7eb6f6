// The plain cache in the host's memory: every block is live.
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "cache/live_blocks.h"
#include "cache/paged_cache.h"
#include "kernels/attention/kv_codes.h"

namespace lathe {
namespace {

class PagedKvCache final : public PagedCache {
 public:
  // The memory comes before the pool: it is what finds out that there is too little of it.
  PagedKvCache(LiveBlocks live, int64_t num_blocks, int64_t max_sequence_tokens)
      : PagedCache(num_blocks, max_sequence_tokens, kv_keeps_sinks(live.shape().element)),
        live_(std::move(live)) {}

  int64_t bytes_per_block() const override { return live_.shape().block_bytes(); }
  KvElement element() const override { return live_.shape().element; }
  LiveBlocks* live_blocks() override { return &live_; }

  void begin_step(std::span<const KvRows> rows, Exec& exec) override {
    PagedCache::begin_step(rows, exec);
    view_begin_.clear();
    std::size_t num_views = 0;
    for (const KvRows& run : rows) {
      view_begin_.push_back(num_views);
      num_views += static_cast<std::size_t>(blocks_for(run.sequence->num_tokens + run.num_rows));
    }
    view_begin_.push_back(num_views);
    views_.resize(num_views);
  }

  void append(int64_t layer, const float*, const float* k, const float* v, int64_t stride,
              Exec& exec) override {
    LATHE_CHECK(in_step());
    for (std::size_t i = 0; i < rows().size(); ++i) {
      const KvRows& run = rows()[i];
      const auto& blocks = run.sequence->blocks;
      for (std::size_t b = 0; view_begin_[i] + b < view_begin_[i + 1]; ++b) {
        views_[view_begin_[i] + b] = live_.view(layer, blocks[b]);
      }
      // 8 rows at a time: a thread then writes whole cache lines of keys.
      exec.threads.parallel_for(run.num_rows, 8, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t position = run.sequence->num_tokens + row;
          const BlockId block = blocks[static_cast<std::size_t>(position / kBlockSize)];
          const int64_t token = position % kBlockSize;
          store_key(live_.shape(), k + (run.row_begin + row) * stride, token,
                    live_.keys(layer, block));
          store_value(live_.shape(), v + (run.row_begin + row) * stride, token,
                      live_.values(layer, block));
          if (!keeps_sinks() || position >= kLiveSinks) continue;
          const BlockId sinks = run.sequence->sink_block;
          store_sink(live_.shape(), k + (run.row_begin + row) * stride, token,
                     live_.keys(layer, sinks));
          store_sink(live_.shape(), v + (run.row_begin + row) * stride, token,
                     live_.values(layer, sinks));
        }
      });
    }
  }

  std::span<const KvBlockView> views(int64_t, int64_t rows_idx) override {
    LATHE_CHECK(in_step());
    const auto i = static_cast<std::size_t>(rows_idx);
    return {views_.data() + view_begin_[i], view_begin_[i + 1] - view_begin_[i]};
  }

  KvBlockView sinks(int64_t layer, int64_t rows_idx) override {
    LATHE_CHECK(in_step());
    if (!keeps_sinks()) return {};
    return live_.view(layer, rows()[static_cast<std::size_t>(rows_idx)].sequence->sink_block);
  }

  void copy_block(BlockId from, BlockId to) override { live_.copy_block(from, to); }

 private:
  LiveBlocks live_;
  // The step in progress.
  std::vector<KvBlockView> views_;       // of all runs, at the layer of the last append
  std::vector<std::size_t> view_begin_;  // [rows.size() + 1], into views_
};

}  // namespace

void check_cache_size(const ModelConfig& config, int64_t num_tokens, int64_t max_sequence_tokens) {
  if (num_tokens < 1 || max_sequence_tokens < 1) {
    fail(ErrorCode::kInvalidArgument, "a cache of ", num_tokens, " tokens for sequences of up to ",
         max_sequence_tokens);
  }
  if (config.head_dim % 2 != 0) {
    fail(ErrorCode::kUnsupported, "head_dim ", config.head_dim, " is odd");
  }
}

int64_t cache_blocks(int64_t num_tokens, int64_t max_sequence_tokens, bool keeps_sinks) {
  const int64_t sequences = (num_tokens - 1) / max_sequence_tokens + 1;
  return blocks_for(num_tokens) + (keeps_sinks ? sequences : 0);
}

KvSequence KvCache::new_sequence() const {
  KvSequence sequence;
  sequence.blocks.reserve(static_cast<std::size_t>(blocks_for(max_sequence_tokens())));
  return sequence;
}

std::unique_ptr<KvCache> make_kv_cache(const ModelConfig& config, KvFormat format,
                                       int64_t num_tokens, int64_t max_sequence_tokens) {
  check_cache_size(config, num_tokens, max_sequence_tokens);
  with_context(str("cache format ", kv_format_name(format)),
               [&] { check_kv_element(kv_element(format), config.head_dim); });
  const LiveBlockShape shape{.element = kv_element(format),
                             .num_layers = config.num_layers,
                             .num_kv_heads = config.num_kv_heads,
                             .head_dim = config.head_dim};
  const int64_t num_blocks =
      cache_blocks(num_tokens, max_sequence_tokens, kv_keeps_sinks(shape.element));
  return with_context(str("KV cache of ", num_tokens, " tokens, ", shape.block_bytes() / kBlockSize,
                          " bytes per token"),
                      [&] {
                        return std::make_unique<PagedKvCache>(LiveBlocks(shape, num_blocks),
                                                              num_blocks, max_sequence_tokens);
                      });
}

}  // namespace lathe
