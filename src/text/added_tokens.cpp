#include "text/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "text/unicode.h"

namespace lathe {
namespace {

// A walk from each place of the text costs up to the length of the longest token.
constexpr size_t kMaxContentBytes = 4096;

bool is_space(char32_t codepoint) {  // the White_Space property
  if (codepoint == ' ' || (codepoint >= 9 && codepoint <= 13) || codepoint == 0x85) return true;
  const auto category = utf8proc_category(static_cast<int>(codepoint));
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
         category == UTF8PROC_CATEGORY_ZP;
}

bool is_word(char32_t codepoint) {  // \w: letters, marks, decimal digits, connectors
  switch (utf8proc_category(static_cast<int>(codepoint))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return codepoint == 0x200C || codepoint == 0x200D;
  }
}

// Start of the character that ends at `end` (> 0).
size_t previous_character(std::string_view text, size_t end) {
  size_t pos = end - 1;
  while (pos > 0 && (static_cast<uint8_t>(text[pos]) & 0xC0) == 0x80) --pos;
  return pos;
}

size_t skip_spaces_back(std::string_view text, size_t pos, size_t limit) {
  while (pos > limit) {
    const size_t before = previous_character(text, pos);
    size_t cursor = before;
    if (!is_space(next_codepoint(text, cursor))) break;
    pos = before;
  }
  return pos;
}

size_t skip_spaces(std::string_view text, size_t pos) {
  while (pos < text.size()) {
    size_t cursor = pos;
    if (!is_space(next_codepoint(text, cursor))) break;
    pos = cursor;
  }
  return pos;
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    size_t cursor = previous_character(text, begin);
    if (is_word(next_codepoint(text, cursor))) return true;
  }
  return end < text.size() && is_word(next_codepoint(text, end));
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens,
                                     const std::vector<std::string>& contents)
    : tokens_(std::move(tokens)) {
  nodes_.emplace_back();
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& content = contents[i];
    if (content.empty()) continue;
    if (content.size() > kMaxContentBytes) {
      fail(ErrorCode::kUnsupported, "added token ", tokens_[i].id, " is ", content.size(),
           " bytes long; at most ", kMaxContentBytes, " are supported");
    }
    int32_t node = 0;
    for (const char c : content) {
      int32_t next = child(node, static_cast<uint8_t>(c));
      if (next < 0) {
        next = static_cast<int32_t>(nodes_.size());
        nodes_.emplace_back();
        nodes_[node].edges.push_back({static_cast<uint8_t>(c), next});
      }
      node = next;
    }
    nodes_[node].token = static_cast<int32_t>(i);
  }
  for (int byte = 0; byte < 256; ++byte) first_[byte] = child(0, static_cast<uint8_t>(byte));
}

int32_t AddedTokenMatcher::child(int32_t node, uint8_t byte) const {
  for (const Edge& edge : nodes_[node].edges) {
    if (edge.byte == byte) return edge.node;
  }
  return -1;
}

std::vector<AddedTokenMatcher::Segment> AddedTokenMatcher::split(std::string_view text,
                                                                 bool parse_special) const {
  std::vector<Segment> segments;
  if (text.empty()) return segments;
  if (tokens_.empty()) return {{text, -1}};

  size_t done = 0;  // everything before this is in a segment
  for (size_t pos = 0; pos < text.size();) {
    // The longest token that starts here.
    int32_t token = -1;
    size_t token_end = pos;
    int32_t node = first_[static_cast<uint8_t>(text[pos])];
    for (size_t end = pos + 1; node >= 0; ++end) {
      if (nodes_[node].token >= 0) {
        token = nodes_[node].token;
        token_end = end;
      }
      node = end < text.size() ? child(node, static_cast<uint8_t>(text[end])) : -1;
    }
    if (token < 0) {
      ++pos;
      continue;
    }
    const AddedToken& added = tokens_[token];
    const size_t token_begin = pos;
    pos = token_end;
    if (added.special && !parse_special) continue;
    if (added.single_word && touches_word(text, token_begin, token_end)) continue;

    const size_t begin = added.lstrip
                             ? skip_spaces_back(text, token_begin, std::min(done, token_begin))
                             : token_begin;
    const size_t end = added.rstrip ? skip_spaces(text, token_end) : token_end;
    if (done < begin) segments.push_back({text.substr(done, begin - done), -1});
    segments.push_back({text.substr(begin, end - begin), added.id});
    done = end;
  }
  if (done < text.size()) segments.push_back({text.substr(done), -1});
  return segments;
}

}  // namespace lathe
