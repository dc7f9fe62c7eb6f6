#include "model/output_head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "formats/sharded_checkpoint.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr int64_t kGroup = 32;

void load_group(const Tensor& dense, int64_t offset, float* out) {
  switch (dense.dtype()) {
    case DType::kF32:
      std::memcpy(out, dense.as<float>() + offset, kGroup * sizeof(float));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < kGroup; ++i)
        out[i] = float_from_bf16(dense.as<uint16_t>()[offset + i]);
      return;
    default:
      for (int64_t i = 0; i < kGroup; ++i)
        out[i] = float_from_f16(dense.as<uint16_t>()[offset + i]);
  }
}

// Returns the scale; a NaN or infinity in the group makes the scale NaN, so that it shows.
uint16_t encode_group(const float* w, int8_t* codes) {
  float amax = 0;
  bool finite = true;
  for (int64_t i = 0; i < kGroup; ++i) {
    amax = std::max(amax, std::fabs(w[i]));
    finite = finite && std::isfinite(w[i]);
  }
  if (!finite) {
    std::fill(codes, codes + kGroup, int8_t{1});
    return bf16_from_float(std::nanf(""));
  }
  const uint16_t scale = bf16_from_float(amax / 127);
  const float step = float_from_bf16(scale);
  const float inverse = step > 0 ? 1 / step : 0;
  for (int64_t i = 0; i < kGroup; ++i) {
    codes[i] = static_cast<int8_t>(std::clamp(std::nearbyint(w[i] * inverse), -127.0f, 127.0f));
  }
  return scale;
}

}  // namespace

LinearWeights int8_output_head(LinearWeights head, Exec& exec) {
  if (head.quantized || head.dense.dim(1) % kGroup != 0) return head;
  const int64_t rows = head.dense.dim(0);
  const int64_t cols = head.dense.dim(1);
  QuantizedMatrix matrix = make_quantized_matrix(
      {.element = ElementType::kInt8, .scale = ScaleType::kBF16, .group_size = kGroup}, rows, cols);
  exec.threads.parallel_for(rows, 256, [&](int64_t begin, int64_t end, int) {
    float w[kGroup];
    for (int64_t offset = begin * cols; offset < end * cols; offset += kGroup) {
      load_group(head.dense, offset, w);
      matrix.scales.as<uint16_t>()[offset / kGroup] =
          encode_group(w, matrix.codes.as<int8_t>() + offset);
    }
  });
  head.quantized = std::move(matrix);
  head.dense = Tensor();
  return head;
}

void check_output_head(const ModelConfig& config, int64_t n, int64_t k,
                       const Collective* collective) {
  const Shard shard =
      collective == nullptr ? Shard{} : Shard{collective->rank(), collective->size()};
  const int64_t rows = vocabulary_range(config.vocab_size, shard).size();
  if (n == rows && k == config.hidden_size) return;
  fail(ErrorCode::kCorruptData, "lm_head is [", n, ", ", k, "], the config asks for [", rows, ", ",
       config.hidden_size, "]");
}

}  // namespace lathe
