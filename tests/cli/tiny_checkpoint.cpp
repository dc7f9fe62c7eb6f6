#include "cli/tiny_checkpoint.h"

#include <filesystem>

#include "base/atomic_file.h"
#include "base/json.h"
#include "cli/run_program.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

std::string utf8(int code_point) {
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | (code_point >> 6)), static_cast<char>(0x80 | (code_point & 63))};
}

// Byte-level BPE without merges: GPT-2's alphabet writes the bytes that do not print as the
// characters from 256 on.
Json tokenizer_json() {
  Json vocabulary = Json::object();
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    vocabulary[utf8(prints ? byte : next++)] = byte;
  }
  Json added = Json::array();
  for (const auto& [id, content] : {std::pair{256, "<|im_start|>"}, {257, "<|im_end|>"}}) {
    added.push_back({{"id", id},
                     {"content", content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}}}};
}

constexpr const char* kTemplate =
    "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('no such role') }}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

}  // namespace

std::string tiny_weights_only() {
  const std::string directory = temporary_directory() + "/tiny";
  fs::create_directories(directory);
  Json config = read_json_file(golden_path("tiny/qwen2-tied-mqa/config.json"));
  config["max_position_embeddings"] = 1024;  // prompts of bytes are long
  write_file_atomically(directory + "/config.json", dump_json(config));
  fs::copy_file(golden_path("tiny/qwen2-tied-mqa/model.safetensors"),
                directory + "/model.safetensors");
  return directory;
}

const std::string& tiny_checkpoint() {
  static const std::string directory = [] {
    const std::string path = tiny_weights_only();
    write_file_atomically(path + "/tokenizer.json", dump_json(tokenizer_json()));
    write_file_atomically(path + "/tokenizer_config.json",
                          dump_json({{"eos_token", "<|im_end|>"}, {"chat_template", kTemplate}}));
    return path;
  }();
  return directory;
}

}  // namespace lathe
