#include "cli/text_windows.h"

#include "base/error.h"
#include "text/unicode.h"

namespace lathe {

std::vector<std::vector<int32_t>> text_windows(const TextModel& model, std::string_view text,
                                               const std::string& name,
                                               const WindowOptions& options) {
  const int64_t context = model.checkpoint().config().max_position_embeddings;
  if (options.seq_len > context) {
    fail(ErrorCode::kInvalidArgument, "windows of ", options.seq_len,
         " tokens are longer than the context of ", model.checkpoint().path(), ", ", context,
         " tokens");
  }
  if (!is_valid_utf8(text)) fail(ErrorCode::kInvalidArgument, name, ": not a text in UTF-8");
  const Tokenizer& tokenizer = model.tokenizer();
  const std::optional<int32_t> bos =
      tokenizer.add_bos() ? tokenizer.bos_id() : std::optional<int32_t>();
  return with_context(name, [&] {
    return cut_windows(tokenizer.encode(text, /*parse_special=*/false), bos, options);
  });
}

int64_t count_tokens(const std::vector<std::vector<int32_t>>& windows) {
  int64_t count = 0;
  for (const auto& window : windows) count += static_cast<int64_t>(window.size());
  return count;
}

}  // namespace lathe
