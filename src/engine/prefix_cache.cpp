#include "engine/prefix_cache.h"

#include <algorithm>
#include <utility>

namespace lathe {

int64_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  const std::size_t size = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + static_cast<int64_t>(size), b.begin()).first -
         a.begin();
}

PrefixCache::~PrefixCache() {
  while (evict_oldest()) {
  }
}

void PrefixCache::add(std::vector<int32_t> tokens, KvSequence kv) {
  tokens.resize(static_cast<std::size_t>(kv.num_tokens));
  tokens.shrink_to_fit();              // a running sequence has room for its largest size
  cache_.truncate(kv, kv.num_tokens);  // room that was reserved and not used
  if (kv.num_tokens < kMinTokens) {
    cache_.release(kv);
    return;
  }
  for (std::size_t i = entries_.size(); i-- > 0;) {
    const std::vector<int32_t>& other = entries_[i].tokens;
    if (common_prefix(tokens, other) == static_cast<int64_t>(other.size())) erase(i);
  }
  if (entries_.size() == kMaxEntries) evict_oldest();
  cache_.set_idle(kv, true);
  entries_.push_back({std::move(tokens), std::move(kv), ++clock_});
}

PrefixCache::Match PrefixCache::find(std::span<const int32_t> tokens) {
  Entry* best = nullptr;
  int64_t best_size = kMinTokens - 1;
  for (Entry& entry : entries_) {
    const int64_t size = common_prefix(tokens, entry.tokens);
    if (size <= best_size) continue;
    best = &entry;
    best_size = size;
  }
  if (best == nullptr) return {};
  best->last_use = ++clock_;
  return {&best->kv, best_size};
}

bool PrefixCache::evict_oldest() {
  if (entries_.empty()) return false;
  const auto oldest =
      std::min_element(entries_.begin(), entries_.end(),
                       [](const Entry& a, const Entry& b) { return a.last_use < b.last_use; });
  erase(static_cast<std::size_t>(oldest - entries_.begin()));
  return true;
}

void PrefixCache::erase(std::size_t idx) {
  cache_.set_idle(entries_[idx].kv, false);
  cache_.release(entries_[idx].kv);
  if (idx + 1 != entries_.size()) std::swap(entries_[idx], entries_.back());
  entries_.pop_back();
}

}  // namespace lathe
