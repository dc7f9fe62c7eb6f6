#include "grammar/token_grammar.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "grammar/state_classes.h"

namespace lathe {
namespace {

// A state with fewer nodes to look at is as fast without a mask (10 us), and a mask of 152,000
// tokens takes 19 KB.
constexpr int64_t kWorthAMask = 2000;
// Nodes to look at in all. A state that is left then is walked for every token: some milliseconds.
constexpr int64_t kWalkBudget = 15'000'000;
constexpr int64_t kMaxMaskWords = 2'000'000;  // 16 MB
constexpr int64_t kMaxExits = 2'000'000;      // 16 MB
// Nodes on the way to tokens of shortest_walk_ bytes and more: 0.2 ms.
constexpr int64_t kMaxLongNodes = 20'000;
// Of 100 bytes and more a vocabulary has a handful of tokens, and refinement costs time.
constexpr int32_t kMaxRounds = 32;
constexpr int64_t kRefineBudget = 20'000'000;  // table entries read in all: 0.2 s

}  // namespace

TokenGrammar::TokenGrammar(std::shared_ptr<const Grammar> grammar,
                           std::shared_ptr<const TokenTrie> trie)
    : grammar_(std::move(grammar)),
      trie_(std::move(trie)),
      num_words_((trie_->vocab_size() + 63) / 64) {
  const StateId first = grammar_->num_plain_states();
  entry_of_.assign(static_cast<std::size_t>(grammar_->num_states() - first), -1);
  find_shortest_walk();
  const int64_t num_nodes = std::ssize(trie_->nodes());
  for (const Grammar::Table& table : grammar_->tables()) {
    if (table.body < 0 && table.num_states * num_nodes > kWalkBudget) {
      prepare_large(table);
      continue;
    }
    for (int32_t i = 0; i < table.num_states && !is_spent(); ++i) prepare(table.first_state + i);
  }
  const bool counts = std::any_of(grammar_->rules().begin(), grammar_->rules().end(),
                                  [](const Grammar::Rule& r) { return r.counts_characters; });
  for (const Grammar::Table& table : grammar_->tables()) {
    if (counts && table.body >= 0) prepare_counted(table.first_state + table.body);
  }
}

bool TokenGrammar::is_spent() const {
  return seen_ > kWalkBudget || std::ssize(masks_) + num_words_ > kMaxMaskWords ||
         std::ssize(exits_) > kMaxExits;
}

// The smallest number of bytes that few tokens have, and the masks of what is shorter.
void TokenGrammar::find_shortest_walk() {
  std::array<int64_t, 256> nodes_of{};  // by the longest token below
  for (const TokenTrie::Node& node : trie_->nodes()) ++nodes_of[node.longest];
  int64_t count = 0;
  int32_t bytes = 256;
  while (bytes > 2 && count + nodes_of[static_cast<std::size_t>(bytes - 1)] <= kMaxLongNodes) {
    count += nodes_of[static_cast<std::size_t>(--bytes)];
  }
  shortest_walk_ = bytes;
}

// As prepare() for each state, but a state like one that was walked shares its mask.
void TokenGrammar::prepare_large(const Grammar::Table& table) {
  const int64_t round_cost = int64_t{table.num_states} * (table.num_classes + 1);
  const auto max_rounds = static_cast<int32_t>(
      std::clamp<int64_t>((kRefineBudget - refined_) / round_cost, 0, kMaxRounds));
  const StateClasses classes(*grammar_, table, max_rounds);
  refined_ += classes.num_rounds() * round_cost;
  // Behind round i, states of one class agree on i bytes: tokens of i + 1 and more are walked.
  const int32_t first_round = std::max(shortest_walk_ - 1, 1);
  std::vector<std::vector<StateId>> walked;  // [round - first_round, class]; -1: none yet
  for (int32_t round = first_round; round <= classes.num_rounds(); ++round) {
    walked.emplace_back(static_cast<std::size_t>(classes.num_classes(round)), -1);
  }
  for (int32_t i = 0; i < table.num_states && !is_spent(); ++i) {
    const StateId s = table.first_state + i;
    const auto place = [&](int32_t round) -> StateId& {
      return walked[static_cast<std::size_t>(round - first_round)]
                   [static_cast<std::size_t>(classes.class_of(round, i))];
    };
    int32_t round = classes.num_rounds();
    while (round >= first_round && place(round) < 0) --round;
    if (round >= first_round) {
      share(s, place(round), round + 1);
      continue;
    }
    prepare(s);
    for (round = first_round; round <= classes.num_rounds(); ++round) {
      if (place(round) < 0) place(round) = s;
    }
  }
}

void TokenGrammar::share(StateId s, StateId like, int32_t min_depth) {
  if (entry(like) < 0) return;  // not worth a mask, and neither is this
  if (shorter_masks_.empty()) {
    const auto words = static_cast<std::size_t>(num_words_);
    const auto depths = static_cast<std::size_t>(kMaxRounds + 2 - shortest_walk_);
    shorter_masks_.assign(depths * words, 0);
    const std::span<uint64_t> masks(shorter_masks_);
    for (const TokenTrie::Node& node : trie_->nodes()) {
      if (node.token < 0 || node.depth > kMaxRounds) continue;
      const int32_t least = std::max<int32_t>(node.depth + 1, shortest_walk_);
      trie_->set(node.token,
                 masks.subspan(static_cast<std::size_t>(least - shortest_walk_) * words, words));
    }
    for (std::size_t i = words; i < shorter_masks_.size(); ++i) masks[i] |= masks[i - words];
  }
  const Entry& from = entries_[static_cast<std::size_t>(entry(like))];
  entry_of_[static_cast<std::size_t>(s - grammar_->num_plain_states())] =
      static_cast<int32_t>(entries_.size());
  entries_.push_back({from.mask_begin, from.exits_begin, from.exits_end, min_depth});
}

void TokenGrammar::prepare(StateId s) {
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
  seen_ += seen;
  if (seen < kWorthAMask) {
    masks_.resize(mask_begin);
    exits_.resize(exits_begin);
    return;
  }
  entry_of_[static_cast<std::size_t>(s - grammar_->num_plain_states())] =
      static_cast<int32_t>(entries_.size());
  entries_.push_back({mask_begin, exits_begin, exits_.size(), 0});
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
  const auto words = static_cast<std::size_t>(num_words_);
  StateTokens tokens = {std::span(masks_).subspan(e.mask_begin, words),
                        std::span(exits_).subspan(e.exits_begin, e.exits_end - e.exits_begin),
                        e.min_depth,
                        {}};
  if (e.min_depth > 0) {
    const auto row = static_cast<std::size_t>(e.min_depth - shortest_walk_);
    tokens.shorter = std::span(shorter_masks_).subspan(row * words, words);
  }
  return tokens;
}

std::span<const uint64_t> TokenGrammar::short_tokens(int64_t characters) const {
  return std::span(short_masks_)
      .subspan(static_cast<std::size_t>(characters * num_words_),
               static_cast<std::size_t>(num_words_));
}

}  // namespace lathe
