#include "cli/key_means.h"

#include <algorithm>
#include <string_view>

#include "compress/default_calibration.h"
#include "kernels/attention/kv_codes.h"

namespace lathe {
namespace {

// A mean over this many tokens is off by a twentieth of what tells one key from another.
constexpr std::size_t kTexts = 4;
constexpr std::size_t kTokensOfText = 128;
constexpr std::size_t kBytesOfText = 1024;  // enough of them, whatever the tokenizer

// Of the text's four kinds, whole lines from their beginning.
std::vector<std::vector<int32_t>> sample_texts(const TextModel& model, int64_t vocab_size,
                                               std::size_t max_tokens) {
  const std::string_view all = default_calibration_text();
  std::vector<std::vector<int32_t>> texts;
  for (std::size_t i = 0; i < kTexts; ++i) {
    // The kinds follow each other in rounds: a quarter of a round apart.
    const std::size_t begin = all.find('\n', i * all.size() / (kTexts * kTexts)) + 1;
    std::vector<int32_t> ids = model.encode_text(all.substr(begin, kBytesOfText));
    std::erase_if(ids, [&](int32_t id) { return id < 0 || id >= vocab_size; });
    ids.resize(std::min({ids.size(), kTokensOfText, max_tokens}));
    if (!ids.empty()) texts.push_back(std::move(ids));
  }
  return texts;
}

}  // namespace

bool leaves_key_means_out(KvFormat format, const Exec& exec) {
  if (exec.on_cuda() && format == KvFormat::kFp8) return false;  // its keys are whole there
  return kv_drops_key_offset(kv_element(format));
}

void learn_key_means_for(KvFormat format, const TextModel& text, Model& model, Exec& exec) {
  if (!leaves_key_means_out(format, exec) || !text.has_tokenizer()) return;
  const auto max_tokens = static_cast<std::size_t>(model.config().max_position_embeddings);
  const auto texts = sample_texts(text, model.config().vocab_size, max_tokens);
  if (!texts.empty()) model.learn_key_means(texts, exec);
}

}  // namespace lathe
