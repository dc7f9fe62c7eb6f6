#include "cli/loaded_model.h"

#include <chrono>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "text/tokenizer_json.h"

namespace lathe {
namespace {

std::optional<Tokenizer> load_tokenizer(const Checkpoint& checkpoint) {
  const std::optional<std::string> json = checkpoint.auxiliary_file("tokenizer.json");
  if (!json) return std::nullopt;
  return with_context(checkpoint.path() + "/tokenizer.json", [&] {
    TokenizerSpec spec = parse_tokenizer_json(*json);
    if (const auto config = checkpoint.auxiliary_file("tokenizer_config.json")) {
      apply_tokenizer_config(*config, spec);
    }
    if (const auto config = checkpoint.auxiliary_file("generation_config.json")) {
      apply_generation_config(*config, spec);
    }
    return std::optional<Tokenizer>(std::in_place, std::move(spec));
  });
}

}  // namespace

TextModel::TextModel(const std::string& path)
    : checkpoint_(Checkpoint::open(path)), tokenizer_(load_tokenizer(*checkpoint_)) {}

const Tokenizer& TextModel::tokenizer() const {
  if (!tokenizer_) {
    fail(ErrorCode::kNotFound, checkpoint_->path(),
         " has no tokenizer.json; copy the one of the original model into it");
  }
  return *tokenizer_;
}

bool TextModel::has_chat_template() const { return false; }

std::string TextModel::render(const Json&, const Json&, bool) const {
  fail(ErrorCode::kUnsupported, checkpoint_->path(), " has no chat template");
}

std::vector<int32_t> TextModel::encode_text(std::string_view text) const {
  std::vector<int32_t> ids;
  if (tokenizer().add_bos() && tokenizer().bos_id()) ids.push_back(*tokenizer().bos_id());
  const std::vector<int32_t> body = tokenizer().encode(text, /*parse_special=*/false);
  ids.insert(ids.end(), body.begin(), body.end());
  return ids;
}

std::vector<int32_t> TextModel::encode_conversation(const Json& messages,
                                                    std::string_view answer_prefix) const {
  const std::string rendered =
      render(messages, Json(nullptr), /*add_generation_prompt=*/true) + std::string(answer_prefix);
  return tokenizer().encode(rendered, /*parse_special=*/true);
}

PromptMaker TextModel::prompt_maker() const {
  return [this](std::span<const Turn> turns, std::string_view answer_prefix) {
    if (!has_chat_template() || turns.empty()) {
      std::string text;
      for (const Turn& turn : turns) text += turn.content + "\n\n";
      return encode_text(text + std::string(answer_prefix));
    }
    Json messages = Json::array();
    for (const Turn& turn : turns) {
      messages.push_back({{"role", turn.role}, {"content", turn.content}});
    }
    return encode_conversation(messages, answer_prefix);
  };
}

LoadedModel::LoadedModel(const std::string& path, const ModelFlags& flags, Exec& exec,
                         const LoadOptions& options)
    : LoadedModel(path, lathe::model_options(flags), lathe::kv_format(flags), exec, options) {}

// Delegated to, so that wrong flags are found before the checkpoint is opened.
LoadedModel::LoadedModel(const std::string& path, ModelOptions model_options, KvFormat format,
                         Exec& exec, const LoadOptions& options)
    : TextModel(path), kv_format_(format) {
  const auto start = std::chrono::steady_clock::now();
  model_options.max_sequence_tokens = options.max_sequence_tokens;
  Progress progress("loading " + path, checkpoint().config().num_layers, "layers", options.quiet);
  model_options.on_layer_loaded = [&](int64_t done, int64_t) {
    progress.advance(done - progress.done());
  };
  model_ = Model::load(checkpoint(), model_options, exec);
  load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace lathe
