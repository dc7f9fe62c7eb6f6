// The tokenizer and the chat template that come with a model, whatever its files are:
// tokenizer.json and its neighbours in a directory, or the metadata of a GGUF file.
#pragma once
#include <optional>
#include <string>

#include "formats/checkpoint.h"
#include "formats/gguf.h"
#include "text/chat_template.h"
#include "text/gguf_vocabulary.h"
#include "text/tokenizer.h"

namespace lathe {

// Of a directory (only its JSON files are read) or a .gguf file. Throws kNotFound when there is no
// tokenizer, and what the parsers throw, naming the file.
Tokenizer load_tokenizer(const std::string& model_path);
Tokenizer load_tokenizer(const Checkpoint& checkpoint);

// The parts of the tokenizer, for writing it out again (write_tokenizer_json).
TokenizerSpec load_tokenizer_spec(const Checkpoint& checkpoint);

// tokenizer.ggml.*. Throws kCorruptData for a key of another type.
GgufVocabulary read_gguf_vocabulary(const GgufFile& file);

// Jinja source: chat_template.jinja, else the chat_template of tokenizer_config.json (the default
// one of several) or tokenizer.chat_template. nullopt: the model has none.
std::optional<std::string> load_chat_template_source(const Checkpoint& checkpoint);
// With the BOS and EOS of the tokenizer.
std::optional<ChatTemplate> load_chat_template(const Checkpoint& checkpoint,
                                               const Tokenizer& tokenizer);

}  // namespace lathe
