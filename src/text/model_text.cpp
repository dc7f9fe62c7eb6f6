#include "text/model_text.h"

#include <filesystem>
#include <functional>
#include <limits>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "formats/gguf_checkpoint.h"
#include "text/tokenizer_json.h"

namespace lathe {
namespace {

using ReadFile = std::function<std::optional<std::string>(const std::string& name)>;

TokenizerSpec spec_from_files(const std::string& directory, const ReadFile& read) {
  const auto json = read("tokenizer.json");
  if (!json) {
    fail(ErrorCode::kNotFound, directory,
         " has no tokenizer.json; copy the one of the original model into it");
  }
  return with_context(directory, [&] {
    TokenizerSpec spec = parse_tokenizer_json(*json);
    if (const auto config = read("tokenizer_config.json")) apply_tokenizer_config(*config, spec);
    for (const char* name : {"generation_config.json", "config.json"}) {
      if (const auto config = read(name)) apply_generation_config(*config, spec);
    }
    return spec;
  });
}

TokenizerSpec spec_from_gguf_file(const GgufFile& file) {
  return with_context(file.path(), [&] { return spec_from_gguf(read_gguf_vocabulary(file)); });
}

// Writers put 2^32 - 1 where there is no such token.
std::optional<int32_t> token_id(const GgufFile& file, const std::string& name) {
  const std::string key = "tokenizer.ggml." + name + "_token_id";
  const int64_t id = file.integer_or(key, -1, -1, std::numeric_limits<uint32_t>::max());
  if (id < 0 || id > std::numeric_limits<int32_t>::max()) return std::nullopt;
  return static_cast<int32_t>(id);
}

std::optional<bool> flag(const GgufFile& file, const std::string& key) {
  if (!file.has(key)) return std::nullopt;
  return file.boolean_or(key, false);
}

std::string token_text(const Tokenizer& tokenizer, std::optional<int32_t> id) {
  return id ? std::string(tokenizer.token_bytes(*id)) : std::string();
}

// One template, or a list of {name, template}, of which "default" is for conversations.
std::optional<std::string> template_in_config(const std::string& text, const std::string& what) {
  const Json config = parse_json(text, what);
  if (!config.is_object() || !config.contains("chat_template")) return std::nullopt;
  const Json& entry = config["chat_template"];
  if (entry.is_string()) return entry.get<std::string>();
  if (!entry.is_array()) return std::nullopt;
  for (const Json& named : entry) {
    if (!named.is_object() || named.value("name", Json()) != "default") continue;
    const auto source = named.find("template");
    if (source != named.end() && source->is_string()) return source->get<std::string>();
  }
  return std::nullopt;
}

}  // namespace

GgufVocabulary read_gguf_vocabulary(const GgufFile& file) {
  GgufVocabulary v;
  v.model = file.text("tokenizer.ggml.model");
  v.pre = file.text_or("tokenizer.ggml.pre", "");
  for (const std::string_view token : file.strings("tokenizer.ggml.tokens")) {
    v.tokens.emplace_back(token);
  }
  if (file.has("tokenizer.ggml.token_type")) {
    for (const int64_t type : file.integers("tokenizer.ggml.token_type")) {
      v.token_types.push_back(type >= 0 && type <= 16 ? static_cast<int32_t>(type) : 0);
    }
  }
  if (file.has("tokenizer.ggml.scores")) v.scores = file.floats("tokenizer.ggml.scores");
  if (file.has("tokenizer.ggml.merges")) {
    for (const std::string_view merge : file.strings("tokenizer.ggml.merges")) {
      v.merges.emplace_back(merge);
    }
  }
  v.bos_id = token_id(file, "bos");
  v.eos_id = token_id(file, "eos");
  v.unknown_id = token_id(file, "unknown");
  for (const char* name : {"eot", "eom"}) {
    if (const auto id = token_id(file, name)) v.end_ids.push_back(*id);
  }
  v.add_bos = flag(file, "tokenizer.ggml.add_bos_token");
  v.add_space_prefix = flag(file, "tokenizer.ggml.add_space_prefix");
  return v;
}

TokenizerSpec load_tokenizer_spec(const Checkpoint& checkpoint) {
  if (const auto* gguf = dynamic_cast<const GgufCheckpoint*>(&checkpoint)) {
    return spec_from_gguf_file(gguf->file());
  }
  return spec_from_files(checkpoint.path(),
                         [&](const std::string& name) { return checkpoint.auxiliary_file(name); });
}

Tokenizer load_tokenizer(const Checkpoint& checkpoint) {
  TokenizerSpec spec = load_tokenizer_spec(checkpoint);
  return with_context(checkpoint.path(), [&] { return Tokenizer(std::move(spec)); });
}

Tokenizer load_tokenizer(const std::string& model_path) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(model_path)) {
    const GgufFile file(model_path);
    return with_context(model_path, [&] { return Tokenizer(spec_from_gguf_file(file)); });
  }
  TokenizerSpec spec =
      spec_from_files(model_path, [&](const std::string& name) -> std::optional<std::string> {
        const std::string path = (fs::path(model_path) / name).string();
        if (!fs::exists(path)) return std::nullopt;
        return read_file(path);
      });
  return with_context(model_path, [&] { return Tokenizer(std::move(spec)); });
}

std::optional<std::string> load_chat_template_source(const Checkpoint& checkpoint) {
  if (const auto* gguf = dynamic_cast<const GgufCheckpoint*>(&checkpoint)) {
    if (!gguf->file().has("tokenizer.chat_template")) return std::nullopt;
    return gguf->file().text("tokenizer.chat_template");
  }
  if (auto source = checkpoint.auxiliary_file("chat_template.jinja")) return source;
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    const auto text = checkpoint.auxiliary_file(name);
    if (!text) continue;
    if (auto source = template_in_config(*text, checkpoint.path() + "/" + name)) return source;
  }
  return std::nullopt;
}

std::optional<ChatTemplate> load_chat_template(const Checkpoint& checkpoint,
                                               const Tokenizer& tokenizer) {
  const auto source = load_chat_template_source(checkpoint);
  if (!source) return std::nullopt;
  return with_context(checkpoint.path(), [&] {
    return std::optional<ChatTemplate>(std::in_place, *source,
                                       token_text(tokenizer, tokenizer.bos_id()),
                                       token_text(tokenizer, tokenizer.eos_id()));
  });
}

}  // namespace lathe
