// The vocabulary as a tree of bytes, so that tokens with the same beginning are looked at once.
//
// Nodes lie in depth-first order: a node's first child is the next node, and skipping a subtree is
// one jump. Control tokens and tokens without bytes are not in the tree; no grammar allows them.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace lathe {

class TokenTrie {
 public:
  struct Node {
    int32_t subtree_end;  // index of the first node behind the subtree
    int32_t token;        // the first one that ends here, -1: none
    uint16_t depth;       // number of bytes, from 1
    uint8_t byte;
    uint8_t longest;  // bytes of the longest token in the subtree; 255: or more
  };
  static constexpr std::size_t kMaxTokenBytes = 512;  // longer tokens are left out

  // more_end_ids: end tokens that the model's configuration names beside the tokenizer's.
  explicit TokenTrie(const Tokenizer& tokenizer, std::span<const int64_t> more_end_ids = {});
  // For tests: the bytes of each token, "" for control tokens.
  TokenTrie(std::vector<std::string> token_bytes, std::vector<int32_t> end_ids);

  std::span<const Node> nodes() const { return nodes_; }
  int64_t vocab_size() const { return std::ssize(bytes_); }
  // Empty for control tokens and ids out of range.
  std::string_view bytes(int32_t token) const;
  std::span<const int32_t> end_ids() const { return end_ids_; }
  bool is_end(int32_t token) const;

  // Sets the bits of the token and of all others with the same bytes.
  void set(int32_t token, std::span<uint64_t> words) const {
    for (; token >= 0; token = same_bytes_[static_cast<std::size_t>(token)]) {
      const auto word = static_cast<std::size_t>(token >> 6);
      if (word < words.size()) words[word] |= uint64_t{1} << (token & 63);
    }
  }

 private:
  void build();

  std::vector<std::string> bytes_;
  std::vector<int32_t> end_ids_;
  std::vector<Node> nodes_;
  std::vector<int32_t> same_bytes_;  // by token: the next one with the same bytes, -1: none
};

}  // namespace lathe
