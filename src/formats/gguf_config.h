// ModelConfig from GGUF metadata. What llama.cpp keeps in its code instead of the file is filled in
// here: Gemma 3's local rope base, its pattern of five sliding layers to one global layer and its
// attention scale, Qwen's biases, and so on.
// Source: llama.cpp, src/llama-model.cpp (load_hparams) and convert_hf_to_gguf.py.
#pragma once
#include "formats/gguf.h"
#include "formats/model_config.h"

namespace lathe {

// Throws kUnsupported for an architecture or feature lathe does not run, kCorruptData naming the
// key.
ModelConfig parse_gguf_config(const GgufFile& file);

// Whether the writer stored the rows of Q and K interleaved (for a rotation of neighbouring pairs
// instead of halves).
bool has_interleaved_qk(const GgufFile& file);

}  // namespace lathe
