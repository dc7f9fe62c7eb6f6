// The vocabulary inside a GGUF file, and the tokenizer that it describes. A GGUF names the
// pre-tokenizer only by a word; what the word stands for (split rule, normalizer) is written here
// as the model's published tokenizer.json has it, so that the ids are those of the original
// checkpoint.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "text/tokenizer_spec.h"

namespace lathe {

// The keys under tokenizer.ggml, as the file has them.
struct GgufVocabulary {
  // tokenizer.ggml.token_type
  enum TokenType : int32_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

  std::string model;  // "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE)
  std::string pre;    // pre-tokenizer of "gpt2": "qwen2", "llama-bpe", "smollm", ...
  std::vector<std::string> tokens;
  std::vector<int32_t> token_types;  // beside tokens; empty: all normal
  std::vector<float> scores;         // beside tokens; "llama" only
  std::vector<std::string> merges;   // "left right"; "gpt2" only
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::vector<int32_t> end_ids;  // eot_token_id, eom_token_id: these end a generation as well
  std::optional<int32_t> unknown_id;
  std::optional<bool> add_bos;
  std::optional<bool> add_space_prefix;
};

// Throws kCorruptData for lists of different lengths and ids out of range, kUnsupported for a model
// kind or pre-tokenizer that lathe does not know.
TokenizerSpec spec_from_gguf(const GgufVocabulary& vocabulary);

}  // namespace lathe
