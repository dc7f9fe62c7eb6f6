// A tokenizer.json as it is read: the two lists that make up nearly all of its megabytes,
// vocabulary and merges, go into plain vectors while the parser runs; the rest becomes a small
// tree.
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lathe {

struct TokenizerDocument {
  // Not base/json.h's ordered Json, which finds a key by walking the object; order means nothing
  // here.
  using Node = nlohmann::json;

  TokenizerDocument();
  ~TokenizerDocument();
  TokenizerDocument(TokenizerDocument&&) noexcept;

  std::unique_ptr<Node> root;  // without model.vocab and model.merges; never null
  std::optional<std::vector<std::pair<std::string, int64_t>>> vocab;  // in the file's order
  std::optional<std::vector<std::pair<std::string, std::string>>> merges;
};

// Throws kCorruptData for a syntax error, nesting deeper than 32, a vocabulary that is not one of
// integers, or a merge that is not two tokens.
TokenizerDocument read_tokenizer_document(std::string_view json);

}  // namespace lathe
