// The identity of a model for what is kept of its runs, such as parked keys and values: all of the
// configuration that a forward pass depends on, and a sample of every stored tensor.
//
// kv_model_fingerprint() (kv_codec_file.h) is weaker: it says which model a codec was fitted for,
// and a codec fits one whose RoPE was rescaled, at worst a little worse. Keys that were computed
// do not.
#pragma once
#include <string>

#include "formats/checkpoint.h"

namespace lathe {

// SHA-256 in hex, of a checkpoint on disk. Reads some 4 KiB of each tensor, spread over it: what a
// quantizer or training changes is seen, a few numbers changed by hand may not be. Throws what
// opening the files throws.
std::string model_fingerprint(const Checkpoint& checkpoint);

}  // namespace lathe
