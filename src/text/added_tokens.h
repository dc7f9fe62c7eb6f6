// Finds added tokens (control tokens such as <|im_end|>, user-defined ones such as <tool_call>) in
// text before anything else looks at it. Of the tokens that match at the leftmost place the longest
// wins; a control token that may not be parsed is then skipped as plain text, whole.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_spec.h"

namespace lathe {

class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  // `contents[i]` is what to look for in the text for tokens[i]; empty contents never match.
  AddedTokenMatcher(std::vector<AddedToken> tokens, const std::vector<std::string>& contents);

  struct Segment {
    std::string_view text;
    int32_t id;  // -1: plain text
  };
  // Cuts valid UTF-8 into added tokens and the non-empty text between them.
  std::vector<Segment> split(std::string_view text, bool parse_special) const;

  bool empty() const { return tokens_.empty(); }

 private:
  struct Edge {
    uint8_t byte;
    int32_t node;
  };
  struct Node {
    std::vector<Edge> edges;
    int32_t token = -1;  // index into tokens_ of the token that ends here
  };
  int32_t child(int32_t node, uint8_t byte) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  int32_t first_[256];  // children of the root
};

}  // namespace lathe
