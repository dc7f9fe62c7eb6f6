// A whole small model: the random Qwen2 of tests/golden/tiny with a tokenizer of bytes.
#pragma once
#include <string>

namespace lathe {

// Its directory, made once. Vocabulary: ids 0 to 255 are bytes, 256 <|im_start|>, 257 <|im_end|>
// (also the end token). ChatML template, which refuses the role "nobody". Context: 1024 tokens.
const std::string& tiny_checkpoint();
// The same without tokenizer and template.
std::string tiny_weights_only();

}  // namespace lathe
