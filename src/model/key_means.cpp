#include "model/key_means.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "kernels/attention/kv_codes.h"

namespace lathe {

KeyMeanTexts::KeyMeanTexts(std::span<const std::vector<int32_t>> texts) : sequences_(texts.size()) {
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::vector<int32_t>& text = texts[i];
    if (text.empty()) fail(ErrorCode::kInvalidArgument, "a text for key means has no token");
    const auto num_tokens = static_cast<int64_t>(text.size());
    cache_tokens_ += blocks_for(num_tokens) * kBlockSize;
    longest_ = std::max(longest_, num_tokens);
    rows_.push_back({&sequences_[i], static_cast<int64_t>(token_ids_.size()), num_tokens});
    token_ids_.insert(token_ids_.end(), text.begin(), text.end());
    for (int64_t t = 0; t < num_tokens; ++t) positions_.push_back(t);
  }
}

void KeyMeanTexts::reserve(KvCache& cache) {
  for (const KvRows& rows : rows_) LATHE_CHECK(cache.reserve(*rows.sequence, rows.num_rows));
}

void KeyMeanTexts::release(KvCache& cache) {
  for (KvSequence& sequence : sequences_) cache.release(sequence);
}

ForwardBatch KeyMeanTexts::batch() const {
  return {.token_ids = token_ids_, .positions = positions_, .sequences = rows_, .logit_rows = {}};
}

void KeyMeans::add_layer(std::span<const int64_t> positions, const float* keys, int64_t stride,
                         int64_t kv_size) {
  std::vector<double> sums(static_cast<std::size_t>(kv_size));
  int64_t count = 0;
  for (std::size_t row = 0; row < positions.size(); ++row) {
    if (positions[row] < kLiveSinks) continue;
    ++count;
    const float* key = keys + static_cast<int64_t>(row) * stride;
    for (std::size_t j = 0; j < sums.size(); ++j) sums[j] += double{key[j]};
  }
  Tensor mean(DType::kF32, {kv_size});
  for (std::size_t j = 0; j < sums.size(); ++j) {
    mean.as<float>()[j] = static_cast<float>(sums[j] / static_cast<double>(count));
    is_finite &= std::isfinite(mean.as<float>()[j]);
  }
  layers.push_back(std::move(mean));
}

}  // namespace lathe
