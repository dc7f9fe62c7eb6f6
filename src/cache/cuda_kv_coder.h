// A codec's predictors and formats in a GPU's memory: rows of one plane (keys or values of one
// layer) to codes and back, the counterpart of kv_layer_coder.h and predictive_codec.h for a parker
// (cuda_kv_parker.h) and a cache whose older blocks are codes (cuda_coded_kv_cache.h). Where codes,
// exact rows and blocks lie is the caller's business.
//
// Layers come in ascending order, keys before values, a latent before the first layer of its group.
// Reconstructed rows are kept in a state between calls, where predictors of later planes read
// them: in fp32, multiplied as TF32, or in bf16, with weights in bf16 too (as the file has them,
// unless it was fitted with fp32 ones).
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "cache/kv_format.h"
#include "cache/plane_slots.h"
#include "formats/kv_codec_file.h"
#include "kernels/attention/latent_attention_cuda.h"
#include "kernels/cuda_context.h"
#include "kernels/kv_rows/kv_rows_cuda.h"
#include "tensor/device_buffer.h"

namespace lathe {

// The rotation of one layer's keys, on the device.
struct KvRopeCuda {
  const float* inverse_frequencies = nullptr;  // [rotary_dim / 2]
  float attention_factor = 1;
  int64_t rotary_dim = 0;
  // [kv_size], or null: what live keys are without where kv_cuda_drops_key_offset()
  // (kernels/attention/kv_layout_cuda.h).
  const float* key_offset = nullptr;
};

// Whether a GPU attends to this codec's codes as they lie, beside exact tokens in `live`: all
// planes of all layers predicted from a latent alone, what can_attend_to_latents() asks, and no
// layer that slides or caps. Else it rebuilds every token in every step.
bool gpu_attends_to_codes(const KvCodecFile& file, const ModelConfig& config, KvFormat live);

class CudaKvCoder {
 public:
  // Rows first_row, first_row + 1, ... of a state of state_rows rows, in a call.
  struct Run {
    std::byte* state = nullptr;  // state_bytes(state_rows)
    int64_t state_rows = 0;
    int64_t first_row = 0;  // a multiple of 8
    int64_t num_rows = 0;
    float* scratch = nullptr;  // scratch_floats(num_rows)
  };
  struct Latent {
    std::vector<int64_t> layers;  // ascending
    bool with_values = false;
    int64_t row_bytes = 0;  // of its codes

   private:
    friend class CudaKvCoder;
    KvLatentCudaFormat format;
    int64_t stride = 0;                     // of z and of the projections, the rank and zeros
    std::vector<const float*> projections;  // [stride, width], of keys per layer, then of values
    std::vector<const float*> means;        // [width]
  };

  // Nothing of the file, which must have been validated, is borrowed. Throws kUnsupported for
  // uniform codes, kOutOfMemory.
  CudaKvCoder(const KvCodecFile& file, CudaElement element, CudaContext& context);

  int64_t num_layers() const { return static_cast<int64_t>(keys_.size()); }
  int64_t num_heads() const { return shape_.num_heads; }
  int64_t head_dim() const { return shape_.head_dim; }
  int64_t width() const { return shape_.width(); }
  CudaElement element() const { return element_; }
  int64_t row_bytes(int64_t layer, bool is_value) const { return plane(layer, is_value).row_bytes; }
  std::span<const Latent> latents() const { return latents_; }
  // Those whose first layer this is: they come before its keys.
  std::span<const int64_t> latents_from(int64_t layer) const {
    return latents_from_[static_cast<std::size_t>(layer)];
  }

  // Where gpu_attends_to_codes(): then latent_kv() has each layer's weights.
  void prepare_latent_attention(const KvCodecFile& file);
  // Weights and tables of codes; where codes and exact tokens lie is for the caller to add.
  const LatentKvCuda& latent_kv(int64_t layer) const {
    return latent_kvs_[static_cast<std::size_t>(layer)];
  }
  // The latent that a layer's planes are predicted from, behind prepare_latent_attention().
  int64_t latent_of_layer(int64_t layer) const {
    return keys_[static_cast<std::size_t>(layer)].products.front().input.index;
  }

  int64_t weight_bytes() const;
  int64_t state_bytes(int64_t num_rows) const;
  int64_t scratch_floats(int64_t num_rows) const;

  // Codes to rows, in the state where a predictor reads them and, where live.blocks is not null, in
  // the cache. `codes` and `live` begin with the run's first row. Only enqueues work on the
  // context's stream.
  void decode(int64_t layer, bool is_value, const Run& run, const KvCodesCuda& codes,
              const KvLiveRowsCuda& live);
  // exact: [num_rows, width]. Leaves in the state what decode() does.
  void encode(int64_t layer, bool is_value, const Run& run, const KvCodesCuda& codes,
              const float* exact);
  void decode_latent(int64_t group, const Run& run, const KvCodesCuda& codes);
  // load(layer, is_value, mean, rows): the run's exact rows of a plane less mean [width], to
  // rows [num_rows, width], of which one plane at a time is needed.
  using LoadExact =
      std::function<void(int64_t layer, bool is_value, const float* mean, float* rows)>;
  void encode_latent(int64_t group, const Run& run, const KvCodesCuda& codes, float* exact,
                     const LoadExact& load);

 private:
  struct Plane {
    struct Product {
      KvPredictorInput input;
      MultiplyRowsCudaArgs args;  // without x, y and m
    };
    KvRowsCudaFormat format;
    int64_t row_bytes = 0;
    std::vector<Product> products;  // to the rows, or to the rank's vector
    int64_t rank = 0;               // 0: there is no such vector
    const float* second = nullptr;  // [width, rank]
  };

  const Plane& plane(int64_t layer, bool is_value) const {
    return (is_value ? values_ : keys_)[static_cast<std::size_t>(layer)];
  }
  int64_t element_size() const { return element_ == CudaElement::kBF16 ? 2 : 4; }
  Plane make_plane(const KvCodecFile& file, const KvPlane& plane);
  Latent make_latent(const KvCodecFile& file, const KvLatent& latent);
  int64_t input_stride(const KvCodecFile& file, const KvPredictorInput& input) const;
  const float* grid_tables(const HiggsGrid& grid);
  const float* upload(const std::vector<float>& numbers);
  const void* upload_weight(const float* w, int64_t num_rows, int64_t num_columns, int64_t stride,
                            int64_t padded_columns);
  std::byte* rows_of(const Run& run, int64_t layer, bool is_value) const;
  std::byte* latent_of(const Run& run, int64_t group) const;
  const float* predict(const Plane& plane, const Run& run);

  RowShape shape_;
  CudaElement element_;
  CudaContext& context_;
  PlaneSlots slots_;
  std::vector<Plane> keys_, values_;
  std::vector<Latent> latents_;
  std::vector<LatentKvCuda> latent_kvs_;            // [num_layers], or none
  std::vector<std::vector<int64_t>> latents_from_;  // [num_layers]
  std::vector<int64_t> latent_column_;              // elements of a row before it, behind the slots
  int64_t latent_columns_ = 0;
  int64_t largest_rank_ = 0;
  std::vector<DeviceBuffer> weights_;
  std::vector<std::pair<const HiggsGrid*, const float*>> grids_;  // points | twice | minus norms
};

}  // namespace lathe
