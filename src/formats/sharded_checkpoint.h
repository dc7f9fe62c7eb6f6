// One rank's part of a checkpoint, as a checkpoint: what rank r of N holds of a model that N ranks
// run together (model/tensor_parallel.h). The parts are those of Shoeybi et al., "Megatron-LM"
// (2019): q, k, v, gate and up by outputs, o and down by inputs, so that a layer needs a sum over
// the ranks behind o and behind down and nothing else.
#pragma once
#include <cstdint>
#include <memory>

#include "formats/checkpoint.h"

namespace lathe {

struct Shard {
  int rank = 0;
  int size = 1;
};

// The part of a model's sizes that each rank has: num_heads, num_kv_heads, intermediate_size and
// moe_intermediate_size are the rank's, everything else is the model's. With more ranks than KV
// heads, each KV head is on size / num_kv_heads ranks. Throws kUnsupported, with the number of
// ranks that would do, where a size cannot be split.
ModelConfig shard_config(const ModelConfig& config, int size);

// Rows of the output head that a rank has.
struct VocabularyRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};
VocabularyRange vocabulary_range(int64_t vocab_size, const Shard& shard);

// load_linear() gives the rank's part of a linear layer (of "lm_head": vocabulary_range()); the
// bias of o and down is rank 0's, so that the sum has it once. Routers, and everything of load(),
// are whole. config() is shard_config(). `source` is borrowed; several ranks may load from it at
// once. Throws what shard_config() throws; load_linear() throws kUnsupported where a part would cut
// what belongs together: a scale's group, a block of the rotation.
std::unique_ptr<Checkpoint> sharded_checkpoint(const Checkpoint& source, const Shard& shard);

}  // namespace lathe
