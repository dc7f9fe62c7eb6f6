// tokenizer.json, the format of the Hugging Face `tokenizers` library, and the two files beside it
// that say which tokens begin and end a text.
#pragma once
#include <string>
#include <string_view>

#include "text/tokenizer_spec.h"

namespace lathe {

// Reads a tokenizer.json whose model is BPE. Throws kCorruptData for what is not valid JSON or
// contradicts itself, kUnsupported for a model, normalizer, pre-tokenizer or decoder that lathe
// does not have.
TokenizerSpec parse_tokenizer_json(std::string_view json);

// tokenizer_config.json: bos_token, eos_token, add_bos_token.
void apply_tokenizer_config(std::string_view json, TokenizerSpec& spec);

// generation_config.json (or config.json): bos_token_id, and eos_token_id, which may be a list.
void apply_generation_config(std::string_view json, TokenizerSpec& spec);

// The tokenizer.json that means the spec: parse_tokenizer_json() of it gives the same ids.
std::string write_tokenizer_json(const TokenizerSpec& spec);

}  // namespace lathe
