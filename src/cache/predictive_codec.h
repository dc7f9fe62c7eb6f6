// The codec of a KvCodecFile for the cache's blocks. A block's codes:
//
//   layer 0 keys [kBlockSize rows] | layer 0 values | layer 1 keys | ... | latent 0 [kBlockSize] |
//   ...
//
// A latent is encoded before the first layer of its group, from the exact rows of all of them.
#pragma once
#include <memory>
#include <string>

#include "cache/kv_codec.h"
#include "cache/kv_layer_coder.h"
#include "cache/plane_slots.h"

namespace lathe {

class PredictiveCodec final : public KvCodec {
 public:
  // The file must have been validated; nothing of it is borrowed.
  explicit PredictiveCodec(const KvCodecFile& file);

  KvCodecPolicy policy() const override { return policy_; }
  std::string_view fingerprint() const override { return fingerprint_; }
  int64_t bytes_per_block() const override { return bytes_per_block_; }
  int64_t state_floats(int64_t num_blocks) const override;
  int64_t scratch_floats(int64_t num_blocks) const override;
  void encode(const KvExactRows& exact, int64_t num_blocks, std::byte* const* codes, float* state,
              float* scratch, Exec& exec) const override;
  KvLayerRows decode_layer(int64_t layer, const std::byte* const* codes, int64_t num_blocks,
                           float* state, float* scratch, Exec& exec) const override;
  const KvLayerCoder& coder() const { return coder_; }

 private:
  // The rows of one plane in the state, and those of its inputs.
  float* rows_of(float* state, int64_t num_rows, int64_t layer, KvSide side) const;
  float* latent_of(float* state, int64_t num_rows, int64_t group) const;
  void find_inputs(const KvPlaneCoder& plane, float* state, int64_t num_rows,
                   const float** inputs) const;
  void encode_latent(std::size_t group, const KvExactRows& exact, int64_t num_blocks,
                     std::byte* const* codes, float* state, float* scratch, Exec& exec) const;

  KvCodecPolicy policy_;
  std::string fingerprint_;
  KvLayerCoder coder_;
  PlaneSlots slots_;
  std::vector<int64_t> key_offset_, value_offset_;  // [num_layers], in a block's codes
  std::vector<int64_t> latent_offset_;              // [num latents], in a block's codes
  std::vector<int64_t> latent_column_;              // [num latents], floats of a row before it
  int64_t latent_floats_ = 0;                       // of one row
  int64_t scratch_row_floats_ = 0;                  // most of one row
  int64_t bytes_per_block_ = 0;
};

// Checks the sizes against the model. Throws kInvalidArgument; kUnsupported when the file's chunk
// is not a multiple of kBlockSize.
std::unique_ptr<KvCodec> make_kv_codec(const KvCodecFile& file, const ModelConfig& config);

}  // namespace lathe
