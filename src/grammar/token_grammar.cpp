#include "grammar/token_grammar.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace lathe {
namespace {

// A state with fewer nodes to look at is as fast without a mask (10 us), and a mask of 152,000
// tokens takes 19 KB.
constexpr int64_t kWorthAMask = 2000;
// Nodes to look at in all. A state that is left then is walked for every token: some milliseconds
// (docs/structured-output.md).
constexpr int64_t kWalkBudget = 15'000'000;
constexpr int64_t kMaxMaskWords = 2'000'000;  // 16 MB
constexpr int64_t kMaxExits = 2'000'000;      // 16 MB

}  // namespace

TokenGrammar::TokenGrammar(std::shared_ptr<const Grammar> grammar,
                           std::shared_ptr<const TokenTrie> trie)
    : grammar_(std::move(grammar)),
      trie_(std::move(trie)),
      num_words_((trie_->vocab_size() + 63) / 64) {
  const StateId first = grammar_->num_plain_states();
  entry_of_.assign(static_cast<std::size_t>(grammar_->num_states() - first), -1);
  int64_t seen = 0;
  for (StateId s = first; s < grammar_->num_states(); ++s) {
    if (seen > kWalkBudget || std::ssize(masks_) + num_words_ > kMaxMaskWords ||
        std::ssize(exits_) > kMaxExits) {
      break;
    }
    seen += prepare(s);
  }
  const bool counts = std::any_of(grammar_->rules().begin(), grammar_->rules().end(),
                                  [](const Grammar::Rule& r) { return r.counts_characters; });
  for (const Grammar::Table& table : grammar_->tables()) {
    if (counts && table.body >= 0) prepare_counted(table.first_state + table.body);
  }
}

int64_t TokenGrammar::prepare(StateId s) {
  const std::size_t mask_begin = masks_.size();
  const std::size_t exits_begin = exits_.size();
  masks_.resize(mask_begin + static_cast<std::size_t>(num_words_), 0);
  const std::span<uint64_t> mask = std::span(masks_).subspan(mask_begin);
  const auto nodes = trie_->nodes();
  const int64_t seen = walk_table(
      *grammar_, s, nodes, 0, static_cast<int32_t>(nodes.size()),
      [&](const TokenTrie::Node& node, StateId, int32_t) { trie_->set(node.token, mask); },
      [&](int32_t node, int32_t characters) {
        exits_.push_back({node, characters});
      });
  if (seen < kWorthAMask) {
    masks_.resize(mask_begin);
    exits_.resize(exits_begin);
    return seen;
  }
  entry_of_[static_cast<std::size_t>(s - grammar_->num_plain_states())] =
      static_cast<int32_t>(entries_.size());
  entries_.push_back({mask_begin, exits_begin, exits_.size()});
  return seen;
}

void TokenGrammar::prepare_counted(StateId body) {
  LATHE_CHECK(counted_body_ < 0);
  if (!has_tokens(body)) return;  // a small vocabulary: it is walked
  counted_body_ = body;
  short_masks_.assign(static_cast<std::size_t>(kShortCharacters * num_words_), 0);
  const std::span<uint64_t> masks(short_masks_);
  const auto nodes = trie_->nodes();
  const auto words = static_cast<std::size_t>(num_words_);
  walk_table(
      *grammar_, body, nodes, 0, static_cast<int32_t>(nodes.size()),
      [&](const TokenTrie::Node& node, StateId state, int32_t characters) {
        if (grammar_->table_accepts(state)) {
          closing_tokens_.push_back({node.token, characters});
          return;
        }
        for (int32_t n = characters; n < kShortCharacters; ++n) {
          trie_->set(node.token, masks.subspan(static_cast<std::size_t>(n) * words, words));
        }
        if (characters >= kShortCharacters) long_tokens_.push_back({node.token, characters});
      },
      [](int32_t, int32_t) {});
  std::sort(long_tokens_.begin(), long_tokens_.end(),
            [](CountedToken a, CountedToken b) { return a.characters < b.characters; });
}

TokenGrammar::StateTokens TokenGrammar::tokens(StateId s) const {
  const Entry& e = entries_[static_cast<std::size_t>(entry(s))];
  return {std::span(masks_).subspan(e.mask_begin, static_cast<std::size_t>(num_words_)),
          std::span(exits_).subspan(e.exits_begin, e.exits_end - e.exits_begin)};
}

std::span<const uint64_t> TokenGrammar::short_tokens(int64_t characters) const {
  return std::span(short_masks_)
      .subspan(static_cast<std::size_t>(characters * num_words_),
               static_cast<std::size_t>(num_words_));
}

}  // namespace lathe
