// A model as the commands use it: checkpoint, tokenizer and chat template, and (LoadedModel) the
// weights in the layout of this machine's kernels.
#pragma once
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/flags.h"
#include "cli/kv_flags.h"
#include "eval/prompt_maker.h"
#include "formats/checkpoint.h"
#include "model/model.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace lathe {

class TextModel {
 public:
  // Opens the checkpoint; reads no weights. Throws what Checkpoint::open and the tokenizer throw.
  explicit TextModel(const std::string& path);

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  // Throws kNotFound when the checkpoint has none.
  const Tokenizer& tokenizer() const;
  bool has_tokenizer() const { return tokenizer_.has_value(); }
  bool has_chat_template() const { return chat_template_.has_value(); }
  // Null: the checkpoint has none.
  const ChatTemplate* chat_template() const { return chat_template_ ? &*chat_template_ : nullptr; }

  // The conversation as the model expects it. Throws kUnsupported without a template,
  // kInvalidArgument when the template refuses the conversation.
  std::string render(const nlohmann::ordered_json& messages, const nlohmann::ordered_json& tools,
                     bool add_generation_prompt) const;

  // Ids of plain text, behind BOS where the model expects one.
  std::vector<int32_t> encode_text(std::string_view text) const;
  // Ids of a rendered conversation that waits for an answer, which begins with answer_prefix.
  std::vector<int32_t> encode_conversation(const nlohmann::ordered_json& messages,
                                           std::string_view answer_prefix) const;
  // For eval/prompt_maker.h. Without a chat template: the turns as plain paragraphs.
  PromptMaker prompt_maker() const;

 private:
  std::unique_ptr<Checkpoint> checkpoint_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_template_;
};

struct LoadOptions {
  bool quiet = false;               // no progress
  int64_t max_sequence_tokens = 0;  // 0: what the model allows
};

class LoadedModel : public TextModel {
 public:
  // Throws kInvalidArgument for flags that cannot be, before it opens anything.
  LoadedModel(const std::string& path, const ModelFlags& flags, Exec& exec,
              const LoadOptions& options);
  Model& model() const { return *model_; }
  // The cache's format where it is a live one. Throws kInvalidArgument when it is coded.
  KvFormat kv_format() const;
  // The cache that --kv and --kv-codec named.
  const RunningKv& kv() const { return kv_; }
  const LoadedKvCodec* kv_codec() const { return kv_.codec(); }
  std::string kv_name() const { return kv_.name(); }
  // What decides the bits of the logits: version, kernels, cache format.
  std::string compute_path() const;
  std::string compute_path(KvFormat live) const;  // with another cache than --kv names
  double load_seconds() const { return load_seconds_; }

 private:
  LoadedModel(const std::string& path, ModelOptions model_options, RunningKv kv, Exec& exec,
              const LoadOptions& options);
  RunningKv kv_;
  std::unique_ptr<Model> model_;
  double load_seconds_ = 0;
};

}  // namespace lathe
