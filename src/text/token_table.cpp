#include "text/token_table.h"

#include "base/check.h"

namespace lathe {
namespace {

// FNV's low bits are weak: fold the high ones in.
uint64_t mixed(TokenTable::Hash hash) {
  const uint64_t product = (hash.state ^ hash.state >> 32) * 0x9E3779B97F4A7C15;
  return product ^ product >> 29;
}

}  // namespace

TokenTable::TokenTable(size_t capacity) {
  size_t num_slots = 16;
  while (num_slots < 2 * capacity) num_slots *= 2;
  slots_.resize(num_slots);
  entries_.reserve(capacity);
}

size_t TokenTable::locate(std::string_view text, Hash hash) const {
  const uint64_t bits = mixed(hash);
  const auto tag = static_cast<uint32_t>(bits >> 32);
  size_t at = bits & (slots_.size() - 1);
  while (slots_[at].entry >= 0) {
    if (slots_[at].tag == tag && entries_[slots_[at].entry].text == text) break;
    at = (at + 1) & (slots_.size() - 1);
  }
  return at;
}

void TokenTable::insert(std::string_view text, int32_t id) {
  const Hash hash = Hash::of(text);
  LATHE_CHECK(2 * entries_.size() < slots_.size());
  Slot& slot = slots_[locate(text, hash)];
  if (slot.entry >= 0) {
    entries_[slot.entry].id = id;
    return;
  }
  slot = {static_cast<uint32_t>(mixed(hash) >> 32), static_cast<int32_t>(entries_.size())};
  entries_.push_back({text, id});
}

int32_t TokenTable::find(std::string_view text, Hash hash) const {
  if (slots_.empty()) return -1;
  const Slot& slot = slots_[locate(text, hash)];
  return slot.entry < 0 ? -1 : entries_[slot.entry].id;
}

}  // namespace lathe
