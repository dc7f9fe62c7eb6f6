// Text to token ids and back, as the Hugging Face `tokenizers` library does it, from a checkpoint's
// tokenizer.json or from the vocabulary inside a GGUF file.
//
//   text -> added tokens cut out -> normalizer -> pre-tokenizer -> BPE -> ids
//
// Immutable once built: any number of threads may use one Tokenizer at the same time.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_spec.h"

namespace lathe {

class Tokenizer {
 public:
  // Throws kCorruptData when the spec contradicts itself (an id out of range), kUnsupported for a
  // step that lathe cannot run.
  explicit Tokenizer(TokenizerSpec spec);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // Ids of the text, without BOS or EOS. parse_special: the text of control tokens (<|im_end|>)
  // becomes the control token; otherwise it is encoded as plain text, which is what text from a
  // user wants. User-defined tokens are matched in both modes. Ill-formed UTF-8 becomes U+FFFD. O(n
  // log n) in the length of the text.
  std::vector<int32_t> encode(std::string_view text, bool parse_special) const;

  // Text of the ids as valid UTF-8 (ill-formed bytes become U+FFFD). skip_special leaves control
  // tokens out. Throws kInvalidArgument for an id outside [0, vocab_size).
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  // The bytes that the token stands for, which may be part of a character; empty for an id that
  // nothing names. Lives as long as the Tokenizer. decode() is the concatenation of these but for
  // what strips_leading_space() says. Throws kInvalidArgument for an id out of range.
  std::string_view token_bytes(int32_t id) const;

  // True for Llama 2 and its like: the first token of a text brings a space that decode() removes.
  bool strips_leading_space() const;

  // The token spelled so in the vocabulary (byte-level vocabularies: with these raw bytes).
  std::optional<int32_t> find_token(std::string_view text) const;

  // True for control tokens. Throws kInvalidArgument for an id out of range.
  bool is_special(int32_t id) const;

  // Number of ids that have a place in the vocabulary; a model's logits may have more (padding).
  int64_t vocab_size() const;
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  // Every token that ends a generation, eos_id among them.
  std::span<const int32_t> end_ids() const;
  // True when the model expects BOS in front of a text (a chat template writes its own).
  bool add_bos() const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace lathe
