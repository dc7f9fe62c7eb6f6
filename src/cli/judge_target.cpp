#include "cli/judge_target.h"

#include <filesystem>
#include <span>

#include "base/sha256.h"

namespace lathe {
namespace {

// Not of a file: a GGUF file and the directory made of it have the same tokens.
std::string tokenizer_sha256(const Tokenizer& tokenizer) {
  Sha256 hash;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string token = str(tokenizer.is_special(id) ? "special " : "plain ",
                                  tokenizer.token_bytes(id).size(), " ", tokenizer.token_bytes(id));
    hash.update(std::as_bytes(std::span(token)));
  }
  return hash.hex_digest();
}

std::string base_name(const std::string& path) {
  const std::filesystem::path name(path);
  return (name.has_filename() ? name : name.parent_path()).filename().string();
}

}  // namespace

JudgeTarget judge_target_of(const LoadedModel& model, const ModelFlags& flags) {
  JudgeTarget target = judge_target(model.checkpoint());
  target.tokenizer_sha256 = tokenizer_sha256(model.tokenizer());
  target.compute = model_options(flags).compute == ComputeType::kF32 ? "fp32" : "auto";
  target.kv_format = model.kv_name();
  target.name = base_name(model.checkpoint().path());
  return target;
}

}  // namespace lathe
