// Follows a text through a grammar, token by token, and says which tokens may come next.
//
// An Earley parser, which bears ambiguity (two alternatives that begin alike) without guessing:
//
//   item   a state of a rule, and the call of the rule that it belongs to
//   call   a rule and the places that wait for it to end (links): a stack whose parts are shared
//   row    the items after some bytes
//
// Looking at a token is: add a row for each byte, see whether items are left, drop the rows. Going
// back by some accepted tokens is the same, so rollback costs nothing.
// Sources: Earley (1970); the token tree walk: llguidance (Moskal et al., 2024).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "grammar/token_grammar.h"

namespace lathe {

class Matcher {
 public:
  // Accepted tokens that rollback() can take back.
  static constexpr int64_t kMaxRollback = 256;

  explicit Matcher(std::shared_ptr<const TokenGrammar> grammar);

  // Sets the bits of the tokens that may come next and clears the others; the end tokens where the
  // text is complete, and them alone where nothing else fits. words: at least the vocabulary's;
  // more are cleared. Does not allocate.
  void allowed_tokens(std::span<uint64_t> words);
  // The text goes on with this token. False: the grammar forbids it; then only end tokens are
  // allowed behind it. Amortized O(bytes of the token) and rarely allocates.
  bool accept(int32_t token);
  // Whether accept(token) would return true. Does not allocate.
  bool allows(int32_t token);
  // Takes the last n accepted tokens back, forbidden ones included. 0 <= n <= min(accepted tokens,
  // kMaxRollback).
  void rollback(int64_t n);

  bool is_complete() const;  // the text may end here
  // An end token was accepted, or one that the grammar forbids.
  bool has_ended() const { return history_.back().ended; }

 private:
  struct Item {
    StateId state;
    int32_t call;
    int32_t count;
    bool operator==(const Item&) const = default;
  };
  struct Call {
    RuleId rule;
    int32_t first_link;
  };
  struct Link {
    StateId state;  // where the caller goes on; -1: the text is complete
    int32_t call;   // the caller's own
    int32_t count;
    int32_t next;
  };
  struct Row {
    int32_t items_begin, items_end;
    int32_t calls_begin;           // calls from here on began in this row
    int32_t calls_end, links_end;  // sizes behind this row
    bool may_stop;                 // the text may end here
    ByteSet first;                 // bytes that some item may read
  };
  struct Snapshot {  // after an accepted token
    Row row;
    bool ended;
  };

  Row open_row() const;
  void close_row(Row& row) const;
  void back_to(const Row& row);  // drops every row behind it
  void add_item(Row& row, const Item& item);
  bool is_new(const Row& row, const Item& item);
  void add_call(Row& row, RuleId rule, Link link);
  void complete(Row& row, int32_t call);
  void expand(Row& row);
  bool passes(Guard guard, const Item& item) const;
  bool step(const Row& from, uint8_t byte, Row& to);
  void step_table(const Item& item, uint8_t byte, Row& to);
  bool step_token(int32_t token);
  const Grammar::Rule& rule_of(const Item& item) const;

  void walk(const Row& start, int32_t begin, int32_t end, std::span<uint64_t> words);
  // Tokens and exits of min_depth bytes and more.
  void walk_one_table(const Item& item, std::span<uint64_t> words, int32_t min_depth = 0);
  bool is_known(const Item& item) const;
  void add_known(const Item& item, std::span<uint64_t> words);
  void add_counted(const Item& item, std::span<uint64_t> words);
  Row row_behind(const Item& item);

  void make_room();
  void collect_garbage();

  std::shared_ptr<const TokenGrammar> tokens_;
  const Grammar* grammar_;  // of tokens_
  std::vector<Item> items_;
  std::vector<Call> calls_;
  std::vector<Link> links_;
  std::vector<Snapshot> history_;     // [0]: where rollback() can go at most
  std::vector<Row> rows_;             // of a walk or a token, by depth
  std::vector<int32_t> newest_call_;  // by rule: an index into calls_, perhaps stale
  // Where the items of the row in the making are, by hash, once there are many.
  struct Slot {
    uint32_t stamp = 0;
    int32_t item = 0;
  };
  std::vector<Slot> slots_;
  uint32_t stamp_ = 0;
  bool may_grow_ = false;  // the vectors may be enlarged: not in allowed_tokens()
};

}  // namespace lathe
