#include "grammar/matcher.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace lathe {
namespace {

// Room for the rows of one walk, whose depth is the longest token's. A grammar that needs more
// forbids the tokens beyond it: still correct, only narrower.
constexpr std::size_t kWalkItems = 8192;
constexpr std::size_t kWalkCalls = 4096;
constexpr std::size_t kWalkLinks = 8192;
// Rows up to this size are searched item by item.
constexpr std::size_t kSmallRow = 12;
constexpr std::size_t kSlots = 16384;  // power of two
constexpr std::size_t kMaxRowItems = kSlots / 2;

void set_end_tokens(const TokenTrie& trie, std::span<uint64_t> words) {
  for (const int32_t token : trie.end_ids()) {
    const auto word = static_cast<std::size_t>(token >> 6);
    if (token >= 0 && word < words.size()) words[word] |= uint64_t{1} << (token & 63);
  }
}

void set_all(std::span<const uint64_t> from, std::span<uint64_t> words) {
  const std::size_t count = std::min(from.size(), words.size());
  for (std::size_t i = 0; i < count; ++i) words[i] |= from[i];
}

void set_common(std::span<const uint64_t> a, std::span<const uint64_t> b,
                std::span<uint64_t> words) {
  const std::size_t count = std::min(a.size(), words.size());
  for (std::size_t i = 0; i < count; ++i) words[i] |= a[i] & b[i];
}

}  // namespace

Matcher::Matcher(std::shared_ptr<const TokenGrammar> grammar)
    : tokens_(std::move(grammar)), grammar_(&tokens_->grammar()) {
  newest_call_.assign(grammar_->rules().size(), -1);
  slots_.resize(kSlots);
  rows_.resize(TokenTrie::kMaxTokenBytes + 2);
  history_.reserve(2 * kMaxRollback + 2);
  may_grow_ = true;
  Row row = open_row();
  add_call(row, grammar_->root(), {.state = -1, .call = -1, .count = 0, .next = -1});
  expand(row);
  close_row(row);
  may_grow_ = false;
  history_.push_back({row, false});
  make_room();
}

bool Matcher::is_complete() const { return history_.back().row.may_stop; }

Matcher::Row Matcher::open_row() const {
  const auto items = static_cast<int32_t>(items_.size());
  const auto calls = static_cast<int32_t>(calls_.size());
  return {.items_begin = items,
          .items_end = items,
          .calls_begin = calls,
          .calls_end = calls,
          .links_end = static_cast<int32_t>(links_.size()),
          .may_stop = false,
          .first = {}};
}

void Matcher::close_row(Row& row) const {
  row.items_end = static_cast<int32_t>(items_.size());
  row.calls_end = static_cast<int32_t>(calls_.size());
  row.links_end = static_cast<int32_t>(links_.size());
}

// A call gets links in its own row only, so dropping rows is cutting the vectors.
void Matcher::back_to(const Row& row) {
  items_.resize(static_cast<std::size_t>(row.items_end));
  calls_.resize(static_cast<std::size_t>(row.calls_end));
  links_.resize(static_cast<std::size_t>(row.links_end));
}

const Grammar::Rule& Matcher::rule_of(const Item& item) const {
  const RuleId rule = calls_[static_cast<std::size_t>(item.call)].rule;
  return grammar_->rules()[static_cast<std::size_t>(rule)];
}

bool Matcher::is_new(const Row& row, const Item& item) {
  const auto begin = static_cast<std::size_t>(row.items_begin);
  const std::size_t count = items_.size() - begin;
  if (count <= kSmallRow) {
    return std::find(items_.begin() + row.items_begin, items_.end(), item) == items_.end();
  }
  const auto locate = [&](const Item& wanted) -> Slot& {
    uint64_t hash = static_cast<uint32_t>(wanted.state) * 0x9E3779B97F4A7C15;
    hash = (hash ^ static_cast<uint32_t>(wanted.call)) * 0xC2B2AE3D27D4EB4F;
    hash = (hash ^ static_cast<uint32_t>(wanted.count)) * 0x9E3779B97F4A7C15;
    for (std::size_t at = hash >> 40;; ++at) {
      Slot& slot = slots_[at & (kSlots - 1)];
      if (slot.stamp != stamp_ || items_[static_cast<std::size_t>(slot.item)] == wanted)
        return slot;
    }
  };
  if (count == kSmallRow + 1) {
    ++stamp_;
    for (std::size_t i = begin; i < items_.size(); ++i) {
      locate(items_[i]) = {stamp_, static_cast<int32_t>(i)};
    }
  }
  Slot& slot = locate(item);
  if (slot.stamp == stamp_) return false;
  slot = {stamp_, static_cast<int32_t>(items_.size())};  // where add_item() puts it
  return true;
}

void Matcher::add_item(Row& row, const Item& item) {
  if (items_.size() - static_cast<std::size_t>(row.items_begin) >= kMaxRowItems) return;
  if (!may_grow_ && items_.size() == items_.capacity()) return;
  if (is_new(row, item)) items_.push_back(item);
}

void Matcher::add_call(Row& row, RuleId rule, Link link) {
  if (!may_grow_ && (calls_.size() == calls_.capacity() || links_.size() == links_.capacity() ||
                     items_.size() == items_.capacity())) {
    return;
  }
  int32_t& newest = newest_call_[static_cast<std::size_t>(rule)];
  const bool began_here = newest >= row.calls_begin && newest < std::ssize(calls_) &&
                          calls_[static_cast<std::size_t>(newest)].rule == rule;
  if (!began_here) {
    newest = static_cast<int32_t>(calls_.size());
    calls_.push_back({rule, -1});
    add_item(row, {grammar_->rules()[static_cast<std::size_t>(rule)].start, newest, 0});
  }
  Call& call = calls_[static_cast<std::size_t>(newest)];
  link.next = call.first_link;
  call.first_link = static_cast<int32_t>(links_.size());
  links_.push_back(link);
}

void Matcher::complete(Row& row, int32_t call) {
  if (call >= row.calls_begin) return;  // no rule is empty (GrammarBuilder::skip_nullable_calls)
  for (int32_t l = calls_[static_cast<std::size_t>(call)].first_link; l >= 0;) {
    const Link link = links_[static_cast<std::size_t>(l)];
    if (link.state < 0) {
      row.may_stop = true;
    } else {
      add_item(row, {link.state, link.call, link.count});
    }
    l = link.next;
  }
}

bool Matcher::passes(Guard guard, const Item& item) const {
  if (guard == Guard::kNone) return true;
  const Grammar::Rule& rule = rule_of(item);
  if (guard == Guard::kAtLeastMin) return item.count >= rule.min;
  return rule.max < 0 || item.count < rule.max;
}

// Calls and returns of the items in the row, until nothing is new.
void Matcher::expand(Row& row) {
  for (auto i = static_cast<std::size_t>(row.items_begin); i < items_.size(); ++i) {
    const Item item = items_[i];
    row.first.add(grammar_->first_bytes(item.state));
    if (item.state >= grammar_->num_plain_states()) {
      if (grammar_->table_accepts(item.state)) {
        complete(row, item.call);
      } else if (grammar_->table_of(item.state).may_stop) {
        row.may_stop = true;
      }
      continue;
    }
    const Grammar::State& state = grammar_->state(item.state);
    if (state.accepts) complete(row, item.call);
    for (int32_t c = state.calls_begin; c < state.calls_end; ++c) {
      const Grammar::Call& call = grammar_->calls()[static_cast<std::size_t>(c)];
      if (!passes(call.guard, item)) continue;
      int32_t count = item.count;
      if (call.counts) {
        const Grammar::Rule& rule = rule_of(item);
        if (rule.max >= 0 || count < rule.min) ++count;  // saturates where it does not matter
      }
      add_call(row, call.rule, {.state = call.to, .call = item.call, .count = count, .next = -1});
    }
  }
}

void Matcher::step_table(const Item& item, uint8_t byte, Row& to) {
  const Grammar::Table& table = grammar_->table_of(item.state);
  const int32_t local = item.state - table.first_state;
  const StateId next =
      table.next[static_cast<std::size_t>(local * table.num_classes + table.class_of[byte])];
  if (next < 0) return;
  int32_t count = item.count;
  if (local == table.body) {
    const Grammar::Rule& rule = rule_of(item);
    if (byte == '"') {
      if (count < rule.min) return;
    } else if (rule.max >= 0) {
      if (count >= rule.max) return;
      ++count;
    } else if (count < rule.min) {
      ++count;
    }
  }
  add_item(to, {next, item.call, count});
}

// The row behind `byte`. False when nothing is left; `to` is then empty.
bool Matcher::step(const Row& from, uint8_t byte, Row& to) {
  to = open_row();
  for (int32_t i = from.items_begin; i < from.items_end; ++i) {
    const Item item = items_[static_cast<std::size_t>(i)];
    if (item.state >= grammar_->num_plain_states()) {
      step_table(item, byte, to);
      continue;
    }
    if (!grammar_->first_bytes(item.state).contains(byte)) continue;
    const Grammar::State& state = grammar_->state(item.state);
    for (int32_t e = state.edges_begin; e < state.edges_end; ++e) {
      const Grammar::Edge& edge = grammar_->edges()[static_cast<std::size_t>(e)];
      if (byte < edge.first || byte > edge.last) continue;
      if (!passes(edge.guard, item)) continue;
      add_item(to, {edge.to, item.call, item.count});
    }
  }
  expand(to);
  close_row(to);
  return to.items_end > to.items_begin || to.may_stop;
}

// Leaves the rows of the token's bytes in rows_[0..size].
bool Matcher::step_token(int32_t token) {
  const std::string_view bytes = tokens_->trie().bytes(token);
  if (bytes.empty() || bytes.size() > TokenTrie::kMaxTokenBytes) return false;
  rows_[0] = history_.back().row;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const auto byte = static_cast<uint8_t>(bytes[i]);
    if (!rows_[i].first.contains(byte) || !step(rows_[i], byte, rows_[i + 1])) {
      back_to(rows_[0]);
      return false;
    }
  }
  return true;
}

bool Matcher::allows(int32_t token) {
  const Snapshot& now = history_.back();
  if (tokens_->trie().is_end(token)) return now.ended || now.row.may_stop;
  if (now.ended || !step_token(token)) return false;
  back_to(rows_[0]);
  return true;
}

bool Matcher::accept(int32_t token) {
  const Snapshot now = history_.back();
  Snapshot next = {now.row, true};
  bool allowed = false;
  if (tokens_->trie().is_end(token)) {
    allowed = now.ended || now.row.may_stop;
  } else if (!now.ended) {
    may_grow_ = true;
    allowed = step_token(token);
    may_grow_ = false;
    if (allowed) {
      // The rows in the middle of the token have done their part; their calls stay.
      next = {rows_[tokens_->trie().bytes(token).size()], false};
      Row& row = next.row;
      const auto first = items_.begin() + now.row.items_end;
      std::copy(items_.begin() + row.items_begin, items_.begin() + row.items_end, first);
      row.items_end = now.row.items_end + (row.items_end - row.items_begin);
      row.items_begin = now.row.items_end;
      back_to(row);
    }
  }
  if (std::ssize(history_) > 2 * kMaxRollback) {
    history_.erase(history_.begin(), history_.begin() + kMaxRollback);
  }
  history_.push_back(next);
  make_room();
  return allowed;
}

void Matcher::rollback(int64_t n) {
  LATHE_CHECK(n >= 0 && n < std::ssize(history_) && n <= kMaxRollback);
  history_.resize(history_.size() - static_cast<std::size_t>(n));
  back_to(history_.back().row);
}

void Matcher::make_room() {
  const auto is_short = [](const auto& v, std::size_t room) {
    return v.capacity() - v.size() < room;
  };
  if (!is_short(items_, kWalkItems) && !is_short(calls_, kWalkCalls) &&
      !is_short(links_, kWalkLinks)) {
    return;
  }
  collect_garbage();
  const auto reserve = [](auto& v, std::size_t room) {
    // More than is in use, so that the next collection is far away.
    const std::size_t wanted = 2 * v.size() + room + room / 8;
    if (v.capacity() < wanted) v.reserve(wanted);
  };
  reserve(items_, kWalkItems);
  reserve(calls_, kWalkCalls);
  reserve(links_, kWalkLinks);
}

// Keeps the items of the rows in history_, and the calls that they lead to.
void Matcher::collect_garbage() {
  std::size_t num_items = 0;
  for (std::size_t h = 0; h < history_.size(); ++h) {
    Row& row = history_[h].row;
    if (history_[h].ended && h > 0) {  // shares the row in front of it
      row.items_begin = history_[h - 1].row.items_begin;
      row.items_end = history_[h - 1].row.items_end;
      continue;
    }
    const auto begin = static_cast<int32_t>(num_items);
    for (int32_t i = row.items_begin; i < row.items_end; ++i) {
      items_[num_items++] = items_[static_cast<std::size_t>(i)];
    }
    row.items_begin = begin;
    row.items_end = static_cast<int32_t>(num_items);
  }
  items_.resize(num_items);

  std::vector<int32_t> new_call(calls_.size(), -1), new_link(links_.size() + 1, 0);
  std::vector<int32_t> stack;
  const auto mark = [&](int32_t call) {
    if (call < 0 || new_call[static_cast<std::size_t>(call)] == 0) return;
    new_call[static_cast<std::size_t>(call)] = 0;
    stack.push_back(call);
  };
  for (const Item& item : items_) mark(item.call);
  while (!stack.empty()) {
    const int32_t call = stack.back();
    stack.pop_back();
    for (int32_t l = calls_[static_cast<std::size_t>(call)].first_link; l >= 0;
         l = links_[static_cast<std::size_t>(l)].next) {
      new_link[static_cast<std::size_t>(l)] = 1;
      mark(links_[static_cast<std::size_t>(l)].call);
    }
  }
  // From marks to new numbers; also how many are kept in front of each old place.
  std::vector<int32_t> calls_before(calls_.size() + 1, 0), links_before(links_.size() + 1, 0);
  for (std::size_t c = 0; c < calls_.size(); ++c) {
    calls_before[c + 1] = calls_before[c] + (new_call[c] == 0 ? 1 : 0);
  }
  for (std::size_t l = 0; l < links_.size(); ++l) {
    links_before[l + 1] = links_before[l] + new_link[l];
  }
  const auto call_id = [&](int32_t c) {
    return c < 0 ? -1 : calls_before[static_cast<std::size_t>(c)];
  };
  const auto link_id = [&](int32_t l) {
    return l < 0 ? -1 : links_before[static_cast<std::size_t>(l)];
  };
  for (std::size_t c = 0; c < calls_.size(); ++c) {
    if (new_call[c] != 0) continue;
    calls_[static_cast<std::size_t>(calls_before[c])] = {calls_[c].rule,
                                                         link_id(calls_[c].first_link)};
  }
  for (std::size_t l = 0; l < links_.size(); ++l) {
    if (new_link[l] == 0) continue;
    Link link = links_[l];
    link.call = call_id(link.call);
    link.next = link_id(link.next);
    links_[static_cast<std::size_t>(links_before[l])] = link;
  }
  for (Item& item : items_) item.call = call_id(item.call);
  for (Snapshot& snapshot : history_) {
    snapshot.row.calls_begin = call_id(snapshot.row.calls_begin);
    snapshot.row.calls_end = call_id(snapshot.row.calls_end);
    snapshot.row.links_end = link_id(snapshot.row.links_end);
  }
  calls_.resize(static_cast<std::size_t>(calls_before.back()));
  links_.resize(static_cast<std::size_t>(links_before.back()));
  std::fill(newest_call_.begin(), newest_call_.end(), -1);
}

// ---- masks

bool Matcher::is_known(const Item& item) const {
  if (item.state < grammar_->num_plain_states() || !tokens_->has_tokens(item.state)) return false;
  return !rule_of(item).counts_characters || tokens_->counts_characters(item.state);
}

void Matcher::allowed_tokens(std::span<uint64_t> words) {
  std::fill(words.begin(), words.end(), uint64_t{0});
  const Snapshot& now = history_.back();
  if (now.ended) return set_end_tokens(tokens_->trie(), words);
  const Row row = now.row;
  Row rest = open_row();
  for (int32_t i = row.items_begin; i < row.items_end; ++i) {
    const Item item = items_[static_cast<std::size_t>(i)];
    if (is_known(item) || items_.size() == items_.capacity()) continue;
    items_.push_back(item);
    rest.first.add(grammar_->first_bytes(item.state));
  }
  close_row(rest);
  if (rest.items_end - rest.items_begin == 1 &&
      items_.back().state >= grammar_->num_plain_states() &&
      !rule_of(items_.back()).counts_characters) {
    walk_one_table(Item(items_.back()), words);
  } else if (rest.items_end > rest.items_begin) {
    walk(rest, 0, static_cast<int32_t>(tokens_->trie().nodes().size()), words);
  }
  back_to(row);
  for (int32_t i = row.items_begin; i < row.items_end; ++i) {
    const Item item = items_[static_cast<std::size_t>(i)];
    if (is_known(item)) add_known(item, words);
  }
  if (row.may_stop ||
      std::all_of(words.begin(), words.end(), [](uint64_t word) { return word == 0; })) {
    set_end_tokens(tokens_->trie(), words);
  }
}

void Matcher::walk(const Row& start, int32_t begin, int32_t end, std::span<uint64_t> words) {
  if (begin >= end) return;
  const std::span<const TokenTrie::Node> nodes = tokens_->trie().nodes();
  const int base = nodes[static_cast<std::size_t>(begin)].depth - 1;
  rows_[0] = start;
  for (int32_t i = begin; i < end;) {
    const TokenTrie::Node& node = nodes[static_cast<std::size_t>(i)];
    const auto depth = static_cast<std::size_t>(node.depth - base);
    const Row& from = rows_[depth - 1];
    if (!from.first.contains(node.byte)) {
      i = node.subtree_end;
      continue;
    }
    back_to(from);
    if (!step(from, node.byte, rows_[depth])) {
      i = node.subtree_end;
      continue;
    }
    if (node.token >= 0) tokens_->trie().set(node.token, words);
    ++i;
  }
}

// What may follow when the item's rule is complete.
Matcher::Row Matcher::row_behind(const Item& item) {
  Row row = open_row();
  complete(row, item.call);
  expand(row);
  close_row(row);
  return row;
}

void Matcher::walk_one_table(const Item& item, std::span<uint64_t> words, int32_t min_depth) {
  const std::span<const TokenTrie::Node> nodes = tokens_->trie().nodes();
  const Row behind = row_behind(item);
  walk_table(
      *grammar_, item.state, nodes, 0, static_cast<int32_t>(nodes.size()),
      [&](const TokenTrie::Node& node, StateId, int32_t) {
        tokens_->trie().set(node.token, words);
      },
      [&](int32_t node, int32_t) {
        walk(behind, node + 1, nodes[static_cast<std::size_t>(node)].subtree_end, words);
      },
      min_depth);
}

void Matcher::add_known(const Item& item, std::span<uint64_t> words) {
  if (rule_of(item).counts_characters) return add_counted(item, words);
  const TokenGrammar::StateTokens known = tokens_->tokens(item.state);
  const Row base = history_.back().row;
  if (known.min_depth == 0) {
    set_all(known.mask, words);
  } else {
    set_common(known.mask, known.shorter, words);
    walk_one_table(item, words, known.min_depth);
    back_to(base);
  }
  if (known.exits.empty()) return;
  const Row behind = row_behind(item);
  if (!behind.first.empty()) {
    const std::span<const TokenTrie::Node> nodes = tokens_->trie().nodes();
    for (const TokenGrammar::Exit& exit : known.exits) {
      const TokenTrie::Node& node = nodes[static_cast<std::size_t>(exit.node)];
      if (known.min_depth > 0 && node.depth >= known.min_depth) continue;
      walk(behind, exit.node + 1, node.subtree_end, words);
    }
  }
  back_to(base);
}

void Matcher::add_counted(const Item& item, std::span<uint64_t> words) {
  const Grammar::Rule& rule = rule_of(item);
  const TokenTrie& trie = tokens_->trie();
  const int64_t most = rule.max < 0 ? TokenTrie::kMaxTokenBytes : rule.max - item.count;
  const int64_t least = rule.min - item.count;
  set_all(tokens_->short_tokens(std::min<int64_t>(most, TokenGrammar::kShortCharacters - 1)),
          words);
  for (const TokenGrammar::CountedToken& t : tokens_->long_tokens()) {
    if (t.characters > most) break;
    trie.set(t.token, words);
  }
  for (const TokenGrammar::CountedToken& t : tokens_->closing_tokens()) {
    if (t.characters >= least && t.characters <= most) trie.set(t.token, words);
  }
  const Row base = history_.back().row;
  const Row behind = row_behind(item);
  if (!behind.first.empty()) {
    for (const TokenGrammar::Exit& exit : tokens_->tokens(item.state).exits) {
      if (exit.characters < least || exit.characters > most) continue;
      walk(behind, exit.node + 1, trie.nodes()[static_cast<std::size_t>(exit.node)].subtree_end,
           words);
    }
  }
  back_to(base);
}

}  // namespace lathe
