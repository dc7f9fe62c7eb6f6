// A GGUF model as a Hugging Face directory: bf16 safetensors, config.json, generation_config.json,
// tokenizer.json, tokenizer_config.json with the chat template. Tensors get the names and the
// stacking of published checkpoints (Phi-3's fused projections, Mixtral's w1/w2/w3), so that
// transformers and vLLM load the directory.
//
// config.json is written last: a directory with weights and no config.json is a conversion that did
// not finish, and no program takes it for a model.
#pragma once
#include <functional>
#include <string>

#include "formats/gguf_checkpoint.h"

namespace lathe {

struct ConvertOptions {
  // The vocabulary as tokenizer.json (text/ writes it: write_tokenizer_json). Empty: none is
  // written.
  std::string tokenizer_json;
  int64_t max_shard_bytes = int64_t{5'000'000'000};
  // Called after every tensor with bytes written and in total. May throw to stop.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> on_progress;
};

// Creates `directory` when missing. Throws kInvalidArgument when it already holds a model
// (config.json), kIo when it cannot be written or the disk is too small; an unfinished conversion
// is written over.
void convert_gguf_to_hf(const GgufCheckpoint& gguf, const std::string& directory,
                        const ConvertOptions& options);

// tokenizer_config.json from the metadata: the special tokens, add_bos_token, the chat template.
std::string write_tokenizer_config(const GgufFile& file, const ModelConfig& config);

}  // namespace lathe
