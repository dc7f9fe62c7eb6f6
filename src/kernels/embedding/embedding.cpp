#include "kernels/embedding/embedding.h"

#include <cstring>

#include "base/error.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

// One plain loop per dtype: a row is a few KiB and is read once, so memory decides, not the loop.
void copy_row(const TensorView& table, int64_t row, int64_t hidden_size, float scale, float* y) {
  const int64_t begin = row * hidden_size;
  switch (table.dtype) {
    case DType::kF32:
      for (int64_t j = 0; j < hidden_size; ++j) y[j] = scale * table.as<float>()[begin + j];
      return;
    case DType::kBF16:
      for (int64_t j = 0; j < hidden_size; ++j) {
        y[j] = scale * float_from_bf16(table.as<uint16_t>()[begin + j]);
      }
      return;
    default:
      for (int64_t j = 0; j < hidden_size; ++j) {
        y[j] = scale * float_from_f16(table.as<uint16_t>()[begin + j]);
      }
      return;
  }
}

}  // namespace

void embedding_lookup(const TensorView& table, std::span<const int32_t> token_ids, float scale,
                      float* y, Exec& exec) {
  if (table.dtype != DType::kF32 && table.dtype != DType::kBF16 && table.dtype != DType::kF16) {
    fail(ErrorCode::kUnsupported, "an embedding table of dtype ", dtype_name(table.dtype));
  }
  if (table.shape.size() != 2) {
    fail(ErrorCode::kInvalidArgument, "an embedding table of shape ", to_string(table.shape));
  }
  const int64_t vocab_size = table.shape[0];
  const int64_t hidden_size = table.shape[1];
  for (const int32_t id : token_ids) {
    if (id < 0 || id >= vocab_size) {
      fail(ErrorCode::kInvalidArgument, "token id ", id, " is outside the vocabulary of ",
           vocab_size);
    }
  }
  exec.threads.parallel_for(static_cast<int64_t>(token_ids.size()), 16,
                            [&](int64_t begin, int64_t end, int) {
                              for (int64_t t = begin; t < end; ++t) {
                                copy_row(table, token_ids[static_cast<std::size_t>(t)], hidden_size,
                                         scale, y + t * hidden_size);
                              }
                            });
}

}  // namespace lathe
