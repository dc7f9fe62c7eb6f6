// A grammar made ready for one vocabulary: for the states in the middle of a lexeme, which of the
// 150,000 tokens stay inside it does not depend on what is around, so it is computed once.
//
// For a table's state s:  mask(s) = tokens that stay in the lexeme to their last byte
//                         exits(s) = places in the token tree where the lexeme is complete and the
//                                    token goes on; only those are looked at for each token
// States of a large table that allow the same short tokens share a mask; for the few long ones they
// are walked (state_classes.h).
// As in XGrammar (Dong et al., 2024, arXiv 2411.15100, "adaptive token mask cache").
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "grammar/grammar.h"
#include "grammar/token_trie.h"

namespace lathe {

// Walks the part [begin, end) of the token tree with a lexeme's table alone.
//   on_token(node, state, characters): the token(s) that end at this node stay in the lexeme
//   on_exit(node, characters): the lexeme is complete at this node, which has children
// `characters`: of a counted string, how many began on the way. Nodes of less than min_depth bytes
// are passed, not reported. Returns the number of nodes seen.
template <typename OnToken, typename OnExit>
int64_t walk_table(const Grammar& grammar, StateId start, std::span<const TokenTrie::Node> nodes,
                   int32_t begin, int32_t end, OnToken&& on_token, OnExit&& on_exit,
                   int32_t min_depth = 0) {
  struct Level {
    StateId state;
    int32_t characters;
  };
  std::array<Level, TokenTrie::kMaxTokenBytes + 1> levels;
  const Grammar::Table& table = grammar.table_of(start);
  const StateId body = table.body < 0 ? -1 : table.first_state + table.body;
  if (begin >= end) return 0;
  const int base = nodes[static_cast<std::size_t>(begin)].depth - 1;
  levels[0] = {start, 0};
  int64_t seen = 0;
  for (int32_t i = begin; i < end;) {
    const TokenTrie::Node& node = nodes[static_cast<std::size_t>(i)];
    if (node.longest < min_depth) {
      i = node.subtree_end;
      continue;
    }
    ++seen;
    const auto depth = static_cast<std::size_t>(node.depth - base);
    const Level& from = levels[depth - 1];
    const StateId to = table.next[static_cast<std::size_t>(
        (from.state - table.first_state) * table.num_classes + table.class_of[node.byte])];
    if (to < 0) {
      i = node.subtree_end;
      continue;
    }
    Level& level = levels[depth];
    level.state = to;
    level.characters = from.characters + (from.state == body && node.byte != '"' ? 1 : 0);
    const bool reports = node.depth >= min_depth;
    if (node.token >= 0 && reports) on_token(node, to, level.characters);
    ++i;
    if (i < node.subtree_end && reports && grammar.table_accepts(to)) {
      on_exit(i - 1, level.characters);
    }
  }
  return seen;
}

class TokenGrammar {
 public:
  struct Exit {
    int32_t node;        // its children go on behind the lexeme
    int32_t characters;  // of a counted string, from the state to here
  };
  struct CountedToken {
    int32_t token;
    int32_t characters;
  };
  // What is known about a state.
  struct StateTokens {
    std::span<const uint64_t> mask;
    std::span<const Exit> exits;
    // 0, or both hold for less than so many bytes only, and what is longer must be walked.
    int32_t min_depth;
    std::span<const uint64_t> shorter;  // the tokens of less than min_depth bytes
  };
  static constexpr int32_t kShortCharacters = 16;

  TokenGrammar(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> trie);

  const Grammar& grammar() const { return *grammar_; }
  const TokenTrie& trie() const { return *trie_; }
  bool has_tokens(StateId s) const { return entry(s) >= 0; }
  StateTokens tokens(StateId s) const;
  // Of the body of counted strings, when counts_characters(s): tokens without the closing quote
  // that begin at most n characters, for n below kShortCharacters; the longer ones by name, sorted
  // by characters; and those that end with the closing quote.
  bool counts_characters(StateId s) const { return s == counted_body_; }
  std::span<const uint64_t> short_tokens(int64_t n) const;
  std::span<const CountedToken> long_tokens() const { return long_tokens_; }
  std::span<const CountedToken> closing_tokens() const { return closing_tokens_; }

  int64_t num_words() const { return num_words_; }  // of a mask

 private:
  struct Entry {
    std::size_t mask_begin;
    std::size_t exits_begin, exits_end;
    int32_t min_depth;
  };
  int32_t entry(StateId s) const {
    return entry_of_[static_cast<std::size_t>(s - grammar_->num_plain_states())];
  }
  bool is_spent() const;  // the budget of time or of memory
  void prepare(StateId s);
  void prepare_large(const Grammar::Table& table);
  void share(StateId s, StateId like, int32_t min_depth);
  void find_shortest_walk();
  void prepare_counted(StateId body);

  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<const TokenTrie> trie_;
  int64_t num_words_;
  std::vector<int32_t> entry_of_;  // by state of a table; -1: none
  std::vector<Entry> entries_;
  std::vector<uint64_t> masks_;
  std::vector<Exit> exits_;
  int64_t seen_ = 0;           // nodes of the token tree
  int64_t refined_ = 0;        // entries of tables
  int32_t shortest_walk_ = 0;  // tokens of so many bytes are few enough to be walked each time
  std::vector<uint64_t> shorter_masks_;  // [min_depth - shortest_walk_, num_words]
  StateId counted_body_ = -1;
  std::vector<uint64_t> short_masks_;  // [kShortCharacters, num_words]
  std::vector<CountedToken> long_tokens_;
  std::vector<CountedToken> closing_tokens_;
};

}  // namespace lathe
