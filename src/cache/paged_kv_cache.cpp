// The plain cache: every block is live.
#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "cache/block_pool.h"
#include "cache/kv_cache.h"
#include "cache/live_blocks.h"

namespace lathe {
namespace {

int64_t blocks_for(int64_t num_tokens) { return (num_tokens + kBlockSize - 1) / kBlockSize; }

class PagedKvCache final : public KvCache {
 public:
  PagedKvCache(const LiveBlockShape& shape, int64_t num_blocks, int64_t max_sequence_tokens)
      : max_sequence_tokens_(max_sequence_tokens), live_(shape, num_blocks), pool_(num_blocks) {}

  int64_t num_blocks() const override { return pool_.num_blocks(); }
  int64_t num_free_blocks() const override { return pool_.num_free(); }
  int64_t bytes_per_block() const override { return live_.shape().block_bytes(); }
  int64_t max_sequence_tokens() const override { return max_sequence_tokens_; }
  KvElement element() const override { return live_.shape().element; }

  bool reserve(KvSequence& sequence, int64_t num_rows) override {
    LATHE_CHECK(num_rows >= 0);
    const int64_t wanted_tokens = sequence.num_tokens + num_rows;
    if (wanted_tokens > max_sequence_tokens_) {
      fail(ErrorCode::kInvalidArgument, "a sequence of ", wanted_tokens,
           " tokens; the cache was made for at most ", max_sequence_tokens_);
    }
    auto& blocks = sequence.blocks;
    const auto num_old = static_cast<int64_t>(blocks.size());
    const int64_t num_new = std::max<int64_t>(0, blocks_for(wanted_tokens) - num_old);
    const int64_t first_block = sequence.num_tokens / kBlockSize;  // written by the first row
    const bool copies = num_rows > 0 && first_block < num_old &&
                        pool_.num_references(blocks[static_cast<std::size_t>(first_block)]) > 1;
    if (num_new + (copies ? 1 : 0) > pool_.num_free()) return false;
    if (copies) {
      BlockId& shared = blocks[static_cast<std::size_t>(first_block)];
      const BlockId own = *pool_.allocate();
      live_.copy_block(shared, own);
      pool_.release(shared);
      shared = own;
    }
    for (int64_t i = 0; i < num_new; ++i) blocks.push_back(*pool_.allocate());
    return true;
  }

  void truncate(KvSequence& sequence, int64_t num_tokens) override {
    LATHE_CHECK(num_tokens >= 0 && num_tokens <= sequence.num_tokens);
    const auto kept = static_cast<std::size_t>(blocks_for(num_tokens));
    while (sequence.blocks.size() > kept) {
      pool_.release(sequence.blocks.back());
      sequence.blocks.pop_back();
    }
    sequence.num_tokens = num_tokens;
  }

  void release(KvSequence& sequence) override { truncate(sequence, 0); }

  void fork(const KvSequence& source, int64_t num_tokens, KvSequence& target) override {
    LATHE_CHECK(num_tokens >= 0 && num_tokens <= source.num_tokens);
    LATHE_CHECK(target.blocks.empty() && target.num_tokens == 0);
    for (int64_t b = 0; b < blocks_for(num_tokens); ++b) {
      const BlockId block = source.blocks[static_cast<std::size_t>(b)];
      pool_.add_reference(block);
      target.blocks.push_back(block);
    }
    target.num_tokens = num_tokens;
  }

  void begin_step(std::span<const KvRows> rows, Exec&) override {
    LATHE_CHECK(!in_step_);
    in_step_ = true;
    rows_ = rows;
    view_begin_.clear();
    std::size_t num_views = 0;
    for (const KvRows& run : rows) {
      const int64_t num_tokens = run.sequence->num_tokens + run.num_rows;
      LATHE_CHECK(static_cast<int64_t>(run.sequence->blocks.size()) >= blocks_for(num_tokens));
      view_begin_.push_back(num_views);
      num_views += static_cast<std::size_t>(blocks_for(num_tokens));
    }
    view_begin_.push_back(num_views);
    views_.resize(num_views);
  }

  void append(int64_t layer, const float*, const float* k, const float* v, int64_t stride,
              Exec& exec) override {
    LATHE_CHECK(in_step_);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const KvRows& run = rows_[i];
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
        }
      });
    }
  }

  std::span<const KvBlockView> views(int64_t, int64_t rows_idx) override {
    LATHE_CHECK(in_step_);
    const auto i = static_cast<std::size_t>(rows_idx);
    return {views_.data() + view_begin_[i], view_begin_[i + 1] - view_begin_[i]};
  }

  void commit() override {
    LATHE_CHECK(in_step_);
    for (const KvRows& run : rows_) run.sequence->num_tokens += run.num_rows;
    in_step_ = false;
  }

  void abandon_step() override { in_step_ = false; }

 private:
  int64_t max_sequence_tokens_;
  LiveBlocks live_;  // before the pool: it is what finds out that there is too little memory
  BlockPool pool_;

  // The step in progress.
  bool in_step_ = false;
  std::span<const KvRows> rows_;
  std::vector<KvBlockView> views_;       // of all runs, at the layer of the last append
  std::vector<std::size_t> view_begin_;  // [rows.size() + 1], into views_
};

}  // namespace

KvFormat kv_format_from_name(std::string_view name) {
  if (name == "f32") return KvFormat::kF32;
  if (name == "bf16") return KvFormat::kBF16;
  fail(ErrorCode::kUnsupported, "cache format '", name, "' (f32, bf16)");
}

KvSequence KvCache::new_sequence() const {
  KvSequence sequence;
  sequence.blocks.reserve(static_cast<std::size_t>(blocks_for(max_sequence_tokens())));
  return sequence;
}

std::unique_ptr<KvCache> make_kv_cache(const ModelConfig& config, KvFormat format,
                                       int64_t num_tokens, int64_t max_sequence_tokens) {
  if (num_tokens < 1 || max_sequence_tokens < 1) {
    fail(ErrorCode::kInvalidArgument, "a cache of ", num_tokens, " tokens for sequences of up to ",
         max_sequence_tokens);
  }
  if (config.head_dim % 2 != 0) {
    fail(ErrorCode::kUnsupported, "head_dim ", config.head_dim, " is odd");
  }
  const LiveBlockShape shape{
      .element = format == KvFormat::kF32 ? KvElement::kF32 : KvElement::kBF16,
      .num_layers = config.num_layers,
      .num_kv_heads = config.num_kv_heads,
      .head_dim = config.head_dim};
  const int64_t num_blocks = blocks_for(num_tokens);
  return with_context(
      str("KV cache of ", num_tokens, " tokens, ", shape.block_bytes() / kBlockSize,
          " bytes per token"),
      [&] { return std::make_unique<PagedKvCache>(shape, num_blocks, max_sequence_tokens); });
}

}  // namespace lathe
