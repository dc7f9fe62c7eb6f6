// A cache whose older blocks are codes, in a GPU's memory (coded_cache.h has which and when;
// docs/plans/aqua-kv.md, "Live on a GPU").
//
//   keys, values   [rebuilt block of the step] | [layer][live block]    as attention reads them
//   codes          [layer][keys, values][coded block][kBlockSize rows] | [latent][coded block]...
//   state          rows as the next layers are predicted from them (cuda_kv_coder.h)
//
// Where the codec allows it, a step of single rows attends to codes as they lie
// (latent_attention_cuda.h). Else, before attention at a layer, all coded blocks that the step
// reads are rebuilt into the rebuilt blocks, each once. Live and rebuilt blocks stand behind one
// address, so the numbers in a block table say which is meant; every layer has its own table.
// Nothing of it is allocated in a step.
#pragma once
#include <cstdint>
#include <vector>

#include "cache/coded_cache.h"
#include "cache/cuda_kv_coder.h"
#include "cache/cuda_kv_layers.h"
#include "formats/kv_codec_file.h"
#include "kernels/cuda_context.h"
#include "tensor/device_buffer.h"

namespace lathe {

class CudaCodedKvCache final : public CodedCache, public CudaKvLayers {
 public:
  // rope: per layer. All are borrowed but the file, which must have been validated. Live blocks of
  // f32 make an f32 state, those of bf16 a bf16 one. cache_id: positive, no other cache of this
  // decoder's has it. Throws kUnsupported for uniform codes or another live format,
  // kInvalidArgument, kOutOfMemory with what there is to take.
  CudaCodedKvCache(const ModelConfig& config, const KvCodecFile& file,
                   const std::vector<KvRopeCuda>& rope, const CodedKvCacheOptions& options,
                   int64_t cache_id, CudaContext& context);
  ~CudaCodedKvCache() override;

  int64_t bytes_per_block() const override { return 2 * num_layers_ * plane_bytes_; }
  int64_t bytes_per_coded_block() const override { return codes_.size() / num_coded_blocks(); }
  KvElement element() const override;
  CudaKvLayers* cuda_layers() override { return this; }
  // Of all that lies on the GPU, predictors and scratch included.
  int64_t memory_bytes() const;

  // A GPU's kernels do both: these abort.
  void append(int64_t layer, const float* k_raw, const float* k, const float* v, int64_t stride,
              Exec& exec) override;
  std::span<const KvBlockView> views(int64_t layer, int64_t rows_idx) override;

  KvCudaLayer layer(int64_t layer) override;
  int64_t cache_id() const override { return cache_id_; }
  int32_t table_entry(BlockId id) const override {
    if (id >= 0) return static_cast<int32_t>(num_coded_blocks() + id);
    return attends_to_codes_ ? ~id : slot_of_coded(~id);
  }
  int64_t num_rebuilt_blocks() const override { return num_padded_; }
  int64_t table_ints(int64_t count) const override { return num_layers_ * count; }
  KvCudaTables start_layers(const CudaBatch& batch, int32_t* memory) override;
  void prepare_layer(int64_t layer) override;
  const LatentKvCuda* codes(int64_t layer) override;

 private:
  // What a list of blocks is on the device, as places in ints_.
  enum List { kCoded, kPositions, kLive, kSinkFrom, kSinkTo, kSinkTokens, kNumLists };

  void encode_blocks(std::span<const EncodeJob> jobs, Exec& exec) override;
  void wake_blocks(std::span<const Rebuilt> blocks, const BlockId* live, Exec& exec) override;
  void copy_live_block(BlockId from, BlockId to) override;
  void start_step(Exec& exec) override;

  int64_t capacity() const { return num_coded_blocks(); }  // of each list, and rebuilt blocks
  std::byte* plane(bool is_value, int64_t layer, BlockId live);
  KvCudaLayer live_layer(int64_t layer);
  int32_t* host_list(List list) { return host_ints_.data() + list * capacity(); }
  const int32_t* list(List list, int64_t begin = 0) const {
    return ints_.as<int32_t>() + list * capacity() + begin;
  }
  const int32_t* sink_count() const { return ints_.as<int32_t>() + kNumLists * capacity(); }
  const int32_t* identity() const { return sink_count() + 1; }
  void list_rebuilt(std::span<const Rebuilt> blocks, const BlockId* to);
  void send_sinks();
  void prepare_codes(const KvCodecFile& file, const ModelConfig& config);
  void send_lists(int64_t num_blocks, int64_t num_sinks);
  CudaKvCoder::Run run(int64_t first_row, int64_t num_rows);
  KvCodesCuda codes_of(int64_t layer, bool is_value, int64_t first_block);
  KvCodesCuda codes_of_latent(int64_t group, int64_t first_block);
  KvLiveRowsCuda rows_in(const KvCudaLayer& to, const int32_t* blocks, int64_t layer, bool is_value,
                         int64_t first_block);
  void encode_run(int64_t first_block, int64_t num_blocks);
  void rebuild(int64_t layer, int64_t num_blocks, const KvCudaLayer& to, const int32_t* blocks);
  void copy_sinks(const KvCudaLayer& to, int64_t first_block);

  CudaContext& context_;
  CudaKvCoder coder_;
  int64_t cache_id_;
  KvCudaElement element_;
  int64_t num_layers_, num_heads_, head_dim_;
  int64_t plane_bytes_;  // keys or values of one block in one layer
  int64_t run_blocks_;   // multiplied together
  std::vector<int64_t> key_codes_, value_codes_, latent_codes_;  // where they begin in codes_
  std::vector<int64_t> rotation_of_;  // per layer, floats from the start of rotations_
  std::vector<int64_t> rotary_dim_;
  int64_t num_positions_;

  DeviceBuffer keys_, values_, codes_;
  DeviceBuffer state_;      // of coder_, for all rebuilt blocks
  DeviceBuffer scratch_;    // of coder_, for a run
  DeviceBuffer exact_;      // [run rows, width]
  DeviceBuffer rotations_;  // [different ropes][cos, sin][num_positions, rotary_dim / 2]
  DeviceBuffer ints_;       // lists, the number of sinks, 0, 1, 2, ...
  std::vector<int32_t> host_ints_;

  // Attention to codes as they lie, in steps of one row a sequence; empty: not with this codec.
  std::vector<LatentKvCuda> layer_codes_;
  bool attends_to_codes_ = false;    // in the step in progress
  DeviceBuffer sinks_;               // LatentKvCuda::sink_blocks
  std::vector<int32_t> host_sinks_;  // what is there
  int64_t num_padded_ = 0;           // blocks that the step in progress rebuilds
};

}  // namespace lathe
