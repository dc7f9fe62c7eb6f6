#include "engine/output_text.h"

namespace lathe {

OutputText::OutputText(const Tokenizer* tokenizer, const SamplingParams& params)
    : tokenizer_(tokenizer), stream_(params.stop) {}

std::string_view OutputText::append(int32_t token, bool is_last) {
  std::string_view bytes;
  // A model's logits may have more entries than its vocabulary.
  if (tokenizer_ != nullptr && token < tokenizer_->vocab_size() && !tokenizer_->is_special(token)) {
    bytes = tokenizer_->token_bytes(token);
  }
  const std::string& shown = stream_.push(bytes);
  if (!is_last) return shown;
  last_ = shown;
  last_ += stream_.finish();
  return last_;
}

}  // namespace lathe
