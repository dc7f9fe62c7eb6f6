// Speed of a KV codec on one model's shape: parking (encoding) and waking (rebuilding) whole
// sequences of the cache.
#pragma once
#include <cstdint>
#include <vector>

#include "formats/kv_codec_file.h"
#include "tensor/exec.h"

namespace lathe {

// A codec of the model's shape with made-up numbers: the speed does not depend on what they are.
// variant: dense, low-rank (a third of the width), block-diagonal, latent (of 4 layers, a quarter
// of the width), mean, none. Throws kInvalidArgument for another, or bits other than 2, 3, 4.
KvCodecFile made_up_kv_codec(const ModelConfig& config, const std::string& variant, int bits);

// Throws kInternal unless every kernel that this machine can run gives the reference's bits for the
// codec's shapes.
void check_kv_kernels(const KvCodecFile& file, Exec& exec);

struct KvSpeed {
  std::vector<double> park, wake;  // tokens per second, one number a repetition
};
// num_tokens made-up tokens in a bf16 cache, parked and woken. Throws kInternal when a woken block
// differs from the same codes rebuilt block by block in one thread.
KvSpeed measure_kv_speed(const ModelConfig& config, const KvCodecFile& file, int64_t num_tokens,
                         int repetitions, Exec& exec);

}  // namespace lathe
