#include "engine/output_text.h"

#include "text/unicode.h"

namespace lathe {

// Longer than any token's text that was seen in a real vocabulary; longer ones cost an allocation.
constexpr std::size_t kUsualTokenBytes = 1024;

OutputText::OutputText(const Tokenizer* tokenizer, const SamplingParams& params)
    : tokenizer_(tokenizer), stops_(params.stop) {
  bytes_.reserve(kUsualTokenBytes);
  characters_.reserve(kUsualTokenBytes);
  shown_.reserve(2 * kUsualTokenBytes);
}

std::string_view OutputText::append(int32_t token, bool is_last) {
  shown_.clear();
  // A model's logits may have more entries than its vocabulary.
  if (tokenizer_ != nullptr && token < tokenizer_->vocab_size() && !tokenizer_->is_special(token)) {
    bytes_ += tokenizer_->token_bytes(token);
  }
  take_characters(is_last);
  shown_ += stops_.append(characters_, is_last);
  return shown_;
}

std::string_view OutputText::finish() {
  shown_.clear();
  take_characters(true);
  shown_ += stops_.append(characters_, true);
  return shown_;
}

// Whole characters go on; what may still become one stays, unless nothing follows.
void OutputText::take_characters(bool is_last) {
  characters_.clear();
  std::size_t pos = 0;
  while (pos < bytes_.size()) {
    int length = utf8_char_length(bytes_, pos);
    if (length > 0) {
      characters_.append(bytes_, pos, static_cast<std::size_t>(length));
    } else {
      if (!is_last && utf8_is_cut_off(bytes_, pos)) break;
      length = utf8_maximal_subpart(bytes_, pos);
      characters_ += kReplacementCharacter;
    }
    pos += static_cast<std::size_t>(length);
  }
  bytes_.erase(0, pos);
}

}  // namespace lathe
