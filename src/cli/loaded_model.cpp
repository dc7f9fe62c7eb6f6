#include "cli/loaded_model.h"

#include <chrono>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/key_means.h"
#include "cli/version.h"
#include "text/model_text.h"

namespace lathe {
namespace {

std::optional<Tokenizer> tokenizer_if_any(const Checkpoint& checkpoint) {
  try {
    return load_tokenizer(checkpoint);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kNotFound) return std::nullopt;
    throw;
  }
}

RunningKv checked_kv(const ModelFlags& flags, const Exec& exec) {
  RunningKv kv(flags);
  kv.check_device(exec);
  return kv;
}

}  // namespace

TextModel::TextModel(const std::string& path)
    : checkpoint_(Checkpoint::open(path)), tokenizer_(tokenizer_if_any(*checkpoint_)) {
  if (tokenizer_) chat_template_ = load_chat_template(*checkpoint_, *tokenizer_);
}

const Tokenizer& TextModel::tokenizer() const {
  if (!tokenizer_) {
    fail(ErrorCode::kNotFound, checkpoint_->path(),
         " has no tokenizer.json; copy the one of the original model into it");
  }
  return *tokenizer_;
}

std::string TextModel::render(const Json& messages, const Json& tools,
                              bool add_generation_prompt) const {
  if (!chat_template_) fail(ErrorCode::kUnsupported, checkpoint_->path(), " has no chat template");
  return chat_template_->render(messages, tools, add_generation_prompt, Json(nullptr));
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
    : LoadedModel(path, lathe::model_options(flags), checked_kv(flags, exec), exec, options) {}

// Delegated to, so that wrong flags are found before the checkpoint is opened.
LoadedModel::LoadedModel(const std::string& path, ModelOptions model_options, RunningKv kv,
                         Exec& exec, const LoadOptions& options)
    : TextModel(path), kv_(std::move(kv)) {
  kv_.load(checkpoint(), exec);
  const auto start = std::chrono::steady_clock::now();
  model_options.max_sequence_tokens = options.max_sequence_tokens;
  Progress progress("loading " + path, checkpoint().config().num_layers, "layers", options.quiet);
  model_options.on_layer_loaded = [&](int64_t done, int64_t) {
    progress.advance(done - progress.done());
  };
  model_ = Model::load(checkpoint(), model_options, exec);
  learn_key_means_for(kv_.live_format(), *this, *model_, exec);
  load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

KvFormat LoadedModel::kv_format() const {
  if (kv_codec() != nullptr) {
    fail(ErrorCode::kInvalidArgument, "--kv ", kv_name(),
         ": this command reads live caches only; use bf16");
  }
  return kv_.live_format();
}

std::string LoadedModel::compute_path() const {
  return str("lathe ", kLatheVersion, "\n", model_->kernels(), "\ncache ", kv_name());
}

std::string LoadedModel::compute_path(KvFormat live) const {
  return str("lathe ", kLatheVersion, "\n", model_->kernels(), "\ncache ", kv_format_name(live));
}

}  // namespace lathe
