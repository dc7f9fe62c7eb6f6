#include "eval/windows.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/error.h"

namespace lathe {

std::vector<std::vector<int32_t>> cut_windows(std::span<const int32_t> ids,
                                              std::optional<int32_t> bos,
                                              const WindowOptions& options) {
  if (options.seq_len < 2) {
    fail(ErrorCode::kInvalidArgument, "window length ", options.seq_len,
         ": at least 2, since a window's first token is not scored");
  }
  if (options.max_windows < 0) {
    fail(ErrorCode::kInvalidArgument, "number of windows ", options.max_windows,
         ": 0 (all) or more");
  }
  const int64_t text_tokens = options.seq_len - (bos ? 1 : 0);
  int64_t count = static_cast<int64_t>(ids.size()) / text_tokens;
  if (count == 0) {
    fail(ErrorCode::kInvalidArgument, "the text has ", ids.size(),
         " tokens, which do not fill one window of ", options.seq_len,
         ": give more text or a shorter window");
  }
  if (options.max_windows > 0) count = std::min(count, options.max_windows);
  std::vector<std::vector<int32_t>> windows(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < windows.size(); ++i) {
    if (bos) windows[i].push_back(*bos);
    const auto piece = ids.subspan(i * static_cast<std::size_t>(text_tokens),
                                   static_cast<std::size_t>(text_tokens));
    windows[i].insert(windows[i].end(), piece.begin(), piece.end());
  }
  return windows;
}

LogitStream::LogitStream(Model& model, KvFormat kv_format, int64_t max_seq_len, Exec& exec,
                         bool stay)
    : LogitStream(model, model.make_cache(kv_format, max_seq_len, max_seq_len), max_seq_len, 0,
                  exec, stay) {}

LogitStream::LogitStream(Model& model, std::unique_ptr<KvCache> cache, int64_t max_seq_len,
                         int64_t chunk_rows, Exec& exec, bool stay)
    : model_(model),
      exec_(exec),
      stays_(stay && exec.on_cuda()),
      chunk_rows_(chunk_rows > 0 ? chunk_rows
                  : stays_       ? kDeviceChunkRows
                                 : kChunkRows),
      cache_(std::move(cache)),
      vocab_size_(model.config().vocab_size),
      logits_(stays_ ? 0
                     : std::min(chunk_rows_, max_seq_len) * vocab_size_ *
                           static_cast<int64_t>(sizeof(float))) {}

LogitStream::~LogitStream() { cache_->release(sequence_); }

void LogitStream::begin(std::span<const int32_t> window, bool with_last, int64_t first_wanted) {
  cache_->release(sequence_);
  sequence_ = {};
  window_ = window;
  first_wanted_ = first_wanted;
  end_ = static_cast<int64_t>(window.size()) - (with_last ? 0 : 1);
  num_computed_ = 0;
  first_position_ = 0;
  num_rows_ = 0;
}

bool LogitStream::next() {
  num_rows_ = 0;
  while (num_rows_ == 0 && num_computed_ < end_) {
    compute(num_computed_, std::min(num_computed_ + chunk_rows_, end_));
  }
  return num_rows_ > 0;
}

void LogitStream::compute(int64_t begin, int64_t end) {
  first_position_ = std::clamp(first_wanted_, begin, end);
  num_rows_ = end - first_position_;
  positions_.resize(static_cast<std::size_t>(end - begin));
  std::iota(positions_.begin(), positions_.end(), begin);
  logit_rows_.resize(static_cast<std::size_t>(num_rows_));
  std::iota(logit_rows_.begin(), logit_rows_.end(), static_cast<int32_t>(first_position_ - begin));
  LATHE_CHECK(cache_->reserve(sequence_, end - begin));  // sized for the longest window
  const KvRows rows[] = {{&sequence_, 0, end - begin}};
  const ForwardBatch batch = {
      .token_ids = window_.subspan(static_cast<std::size_t>(begin), positions_.size()),
      .positions = positions_,
      .sequences = rows,
      .logit_rows = logit_rows_,
  };
  if (stays_ && num_rows_ > 0) {
    device_rows_ = model_.forward_on_device(batch, *cache_, exec_);
  } else {
    model_.forward(batch, *cache_, num_rows_ > 0 ? logits_.as<float>() : nullptr, nullptr, exec_);
  }
  num_computed_ = end;
}

double log_sum_exp_f32(std::span<const float> logits) {
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += static_cast<double>(std::exp(logit - max));
  return static_cast<double>(max) + std::log(sum);
}

}  // namespace lathe
