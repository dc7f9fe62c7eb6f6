#include "grammar/token_trie.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace lathe {

TokenTrie::TokenTrie(const Tokenizer& tokenizer, std::span<const int64_t> more_end_ids) {
  bytes_.resize(static_cast<std::size_t>(tokenizer.vocab_size()));
  end_ids_.assign(tokenizer.end_ids().begin(), tokenizer.end_ids().end());
  for (const int64_t id : more_end_ids) {
    const auto token = static_cast<int32_t>(id);
    if (token == id && token >= 0 && !is_end(token)) end_ids_.push_back(token);
  }
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.is_special(id) && !is_end(id)) {
      bytes_[static_cast<std::size_t>(id)] = tokenizer.token_bytes(id);
    }
  }
  build();
}

TokenTrie::TokenTrie(std::vector<std::string> token_bytes, std::vector<int32_t> end_ids)
    : bytes_(std::move(token_bytes)), end_ids_(std::move(end_ids)) {
  build();
}

std::string_view TokenTrie::bytes(int32_t token) const {
  if (token < 0 || token >= vocab_size()) return {};
  return bytes_[static_cast<std::size_t>(token)];
}

bool TokenTrie::is_end(int32_t token) const {
  return std::find(end_ids_.begin(), end_ids_.end(), token) != end_ids_.end();
}

void TokenTrie::build() {
  std::vector<int32_t> order(bytes_.size());
  std::iota(order.begin(), order.end(), 0);
  std::erase_if(order, [&](int32_t t) {
    const std::string& bytes = bytes_[static_cast<std::size_t>(t)];
    return bytes.empty() || bytes.size() > kMaxTokenBytes;
  });
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const int order_of_bytes =
        bytes_[static_cast<std::size_t>(a)].compare(bytes_[static_cast<std::size_t>(b)]);
    return order_of_bytes != 0 ? order_of_bytes < 0 : a < b;
  });
  same_bytes_.assign(bytes_.size(), -1);
  std::vector<int32_t> path;  // open nodes, by depth
  std::string_view previous;
  int32_t previous_token = -1;
  for (const int32_t token : order) {
    const std::string_view bytes = bytes_[static_cast<std::size_t>(token)];
    if (previous_token >= 0 && bytes == previous) {
      same_bytes_[static_cast<std::size_t>(previous_token)] = token;
      previous_token = token;
      continue;
    }
    const auto shared = static_cast<std::size_t>(
        std::mismatch(previous.begin(), previous.end(), bytes.begin(), bytes.end()).first -
        previous.begin());
    while (path.size() > shared) {
      nodes_[static_cast<std::size_t>(path.back())].subtree_end =
          static_cast<int32_t>(nodes_.size());
      path.pop_back();
    }
    for (std::size_t i = shared; i < bytes.size(); ++i) {
      path.push_back(static_cast<int32_t>(nodes_.size()));
      nodes_.push_back({.subtree_end = 0,
                        .token = -1,
                        .depth = static_cast<uint16_t>(i + 1),
                        .byte = static_cast<uint8_t>(bytes[i]),
                        .longest = 0});
    }
    for (const int32_t node : path) {
      uint8_t& longest = nodes_[static_cast<std::size_t>(node)].longest;
      longest = static_cast<uint8_t>(std::clamp<std::size_t>(bytes.size(), longest, 255));
    }
    nodes_.back().token = token;
    previous = bytes;
    previous_token = token;
  }
  for (const int32_t node : path) {
    nodes_[static_cast<std::size_t>(node)].subtree_end = static_cast<int32_t>(nodes_.size());
  }
}

}  // namespace lathe
