#include "text/bpe.h"

#include <algorithm>
#include <functional>

#include "base/check.h"
#include "base/error.h"
#include "text/unicode.h"

namespace lathe {
namespace {

// Longest piece that a scan merges: up to here its n^2 comparisons, all in one cache line or two,
// cost less than the heap.
constexpr size_t kMaxScannedSymbols = 48;

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Multiplicative hashing with a fold: ids are dense small numbers, so the high bits must reach
// down.
uint64_t hash_pair(uint64_t key) {
  key *= 0x9E3779B97F4A7C15;
  return key ^ key >> 29;
}

std::string byte_token_text(int byte) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  return {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'};
}

}  // namespace

Bpe::Bpe(const TokenizerSpec& spec, const std::vector<std::string_view>& token_texts)
    : ids_(token_texts.size()),
      byte_level_(spec.byte_level),
      byte_fallback_(spec.byte_fallback),
      ignore_merges_(spec.ignore_merges),
      fuse_unknown_(spec.fuse_unknown),
      unknown_id_(spec.unknown_id.value_or(-1)) {
  LATHE_CHECK(token_texts.size() == spec.tokens.size());
  for (size_t id = 0; id < token_texts.size(); ++id) {
    if (spec.in_model[id]) ids_.insert(token_texts[id], static_cast<int32_t>(id));
  }

  has_all_bytes_ = true;
  for (int byte = 0; byte < 256; ++byte) {
    const char raw = static_cast<char>(byte);
    byte_ids_[byte] = byte_level_ ? find({&raw, 1}) : find(byte_token_text(byte));
    if (byte < 128) ascii_ids_[byte] = find({&raw, 1});
    has_all_bytes_ = has_all_bytes_ && byte_ids_[byte] >= 0;
  }

  uint64_t num_slots = 16;
  while (num_slots < 2 * spec.merges.size()) num_slots *= 2;
  pairs_.slots.assign(num_slots, {0, kNoRank});
  pairs_.mask = num_slots - 1;
  results_.reserve(spec.merges.size());
  for (const BpeMerge& merge : spec.merges) {
    const uint64_t key = pair_key(merge.left, merge.right);
    uint64_t slot = hash_pair(key) & pairs_.mask;
    while (pairs_.slots[slot].rank != kNoRank && pairs_.slots[slot].pair != key) {
      slot = (slot + 1) & pairs_.mask;
    }
    // A pair listed twice has its last rank, as in a map filled in order.
    pairs_.slots[slot] = {key, static_cast<uint32_t>(results_.size())};
    results_.push_back(merge.result);
  }
}

uint32_t Bpe::rank(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  uint64_t slot = hash_pair(key) & pairs_.mask;
  while (pairs_.slots[slot].rank != kNoRank) {
    if (pairs_.slots[slot].pair == key) return pairs_.slots[slot].rank;
    slot = (slot + 1) & pairs_.mask;
  }
  return kNoRank;
}

void Bpe::split_into_symbols(std::string_view piece, Workspace& work) const {
  auto& symbols = work.symbols;
  symbols.clear();
  const auto add = [&](int32_t id) { symbols.push_back({id, 0, 0}); };
  bool in_unknown = false;
  const auto add_unknown = [&] {
    if (unknown_id_ >= 0 && !(in_unknown && fuse_unknown_)) add(unknown_id_);
    in_unknown = unknown_id_ >= 0;
  };

  if (byte_level_) {
    for (const char c : piece) {
      const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
      id >= 0 ? (in_unknown = false, add(id)) : add_unknown();
    }
    return;
  }
  for (size_t pos = 0; pos < piece.size();) {
    const auto lead = static_cast<uint8_t>(piece[pos]);
    const size_t length =
        lead < 0x80 ? 1 : static_cast<size_t>(std::max(1, utf8_char_length(piece, pos)));
    const int32_t id = lead < 0x80 ? ascii_ids_[lead] : find(piece.substr(pos, length));
    if (id >= 0) {
      add(id);
      in_unknown = false;
    } else if (byte_fallback_ && has_all_bytes_) {
      for (size_t i = 0; i < length; ++i) add(byte_ids_[static_cast<uint8_t>(piece[pos + i])]);
      in_unknown = false;
    } else {
      add_unknown();
    }
    pos += length;
  }
}

void Bpe::merge_by_scan(Workspace& work) const {
  auto& symbols = work.symbols;
  auto& ranks = work.ranks;
  ranks.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    ranks.push_back(rank(symbols[i].id, symbols[i + 1].id));
  }
  while (!ranks.empty()) {
    const auto best = std::min_element(ranks.begin(), ranks.end());  // the leftmost of equals
    if (*best == kNoRank) break;
    const auto left = best - ranks.begin();
    symbols[left].id = results_[*best];
    symbols.erase(symbols.begin() + left + 1);
    ranks.erase(best);
    if (left > 0) ranks[left - 1] = rank(symbols[left - 1].id, symbols[left].id);
    if (left < std::ssize(ranks)) ranks[left] = rank(symbols[left].id, symbols[left + 1].id);
  }
}

void Bpe::merge_by_heap(Workspace& work) const {
  auto& symbols = work.symbols;
  auto& heap = work.heap;
  constexpr int32_t kGone = -2;
  const auto count = static_cast<int32_t>(symbols.size());
  const auto push = [&](int32_t left) {
    const uint32_t best = rank(symbols[left].id, symbols[symbols[left].next].id);
    if (best == kNoRank) return false;
    heap.push_back(static_cast<uint64_t>(best) << 32 | static_cast<uint32_t>(left));
    return true;
  };
  heap.clear();
  for (int32_t i = 0; i < count; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < count ? i + 1 : -1;
  }
  for (int32_t i = 0; i + 1 < count; ++i) push(i);
  std::make_heap(heap.begin(), heap.end(), std::greater<>());

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto best = static_cast<uint32_t>(heap.back() >> 32);
    const auto left = static_cast<int32_t>(heap.back() & 0xFFFFFFFF);
    heap.pop_back();
    // An entry is stale when its left symbol is gone or either symbol has changed since.
    const int32_t right = symbols[left].next;
    if (right < 0 || rank(symbols[left].id, symbols[right].id) != best) continue;
    symbols[left].id = results_[best];
    symbols[left].next = symbols[right].next;
    symbols[right].next = kGone;
    if (symbols[left].next >= 0) {
      symbols[symbols[left].next].previous = left;
      if (push(left)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
    const int32_t previous = symbols[left].previous;
    if (previous >= 0 && push(previous)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
  }
  size_t kept = 0;
  for (const auto& symbol : symbols) {
    if (symbol.next != kGone) symbols[kept++] = symbol;
  }
  symbols.resize(kept);
}

void Bpe::encode(std::string_view piece, Workspace& work, std::vector<int32_t>& ids) const {
  if (piece.empty()) return;
  if (piece.size() >= (size_t{1} << 31)) {
    fail(ErrorCode::kInvalidArgument, "text of ", piece.size(), " bytes is too long to tokenize");
  }
  if (ignore_merges_) {
    if (const int32_t id = find(piece); id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  split_into_symbols(piece, work);
  work.symbols.size() <= kMaxScannedSymbols ? merge_by_scan(work) : merge_by_heap(work);
  for (const auto& symbol : work.symbols) ids.push_back(symbol.id);
}

std::vector<BpeMerge> merges_from_vocabulary(const std::vector<std::string>& tokens,
                                             const std::vector<bool>& usable,
                                             const std::vector<int32_t>& order) {
  TokenTable ids(tokens.size());
  std::vector<int32_t> by_order;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!usable[id] || tokens[id].empty()) continue;
    ids.insert(tokens[id], static_cast<int32_t>(id));
    by_order.push_back(static_cast<int32_t>(id));
  }
  std::stable_sort(by_order.begin(), by_order.end(),
                   [&](int32_t a, int32_t b) { return order[a] < order[b]; });

  // A text of n bytes has n cuts, so a hostile vocabulary of huge tokens would cost n^2.
  constexpr size_t kMaxTokenBytes = 1024;
  std::vector<BpeMerge> merges;
  for (const int32_t id : by_order) {
    const std::string_view text = tokens[id];
    if (text.size() > kMaxTokenBytes) continue;
    TokenTable::Hash prefix;
    for (size_t cut = 1; cut < text.size(); ++cut) {
      prefix.add(text[cut - 1]);
      if ((static_cast<uint8_t>(text[cut]) & 0xC0) == 0x80) continue;  // inside a character
      const int32_t left = ids.find(text.substr(0, cut), prefix);
      if (left < 0) continue;
      const int32_t right = ids.find(text.substr(cut));
      if (right >= 0) merges.push_back({left, right, id});
    }
  }
  return merges;
}

}  // namespace lathe
