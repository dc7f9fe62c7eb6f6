// A QuantizedMatrix in device memory, same layout.
#pragma once
#include <cstdint>

#include "quant/weight_format.h"
#include "tensor/cuda_stream.h"
#include "tensor/device_buffer.h"

namespace lathe {

struct CudaQuantizedMatrix {
  WeightFormat format;
  int64_t rows = 0;
  int64_t cols = 0;
  DeviceBuffer codes;   // packed as in QuantizedMatrix
  DeviceBuffer scales;  // [rows, groups]
  float global_scale = 1;
  float log_alpha = 0;
  float log_beta = 0;
  // double [256]: what each byte of a one-byte scale type stands for, by stored_scale() itself;
  // empty for the other types.
  DeviceBuffer scale_values;

  int64_t num_groups() const { return format.group_size == 0 ? 1 : cols / format.group_size; }
  int64_t group_width() const { return format.group_size == 0 ? cols : format.group_size; }
  int64_t code_row_bytes() const { return cols * element_bits(format.element) / 8; }

  // To be called after log_alpha or log_beta changed.
  void update_scale_values();
};

// As make_quantized_matrix(); codes and scales are zeroed.
CudaQuantizedMatrix make_cuda_quantized_matrix(const WeightFormat& format, int64_t rows,
                                               int64_t cols);
CudaQuantizedMatrix upload(const QuantizedMatrix& matrix);
// Waits for the stream.
QuantizedMatrix download(const CudaQuantizedMatrix& matrix, CudaStream stream);

}  // namespace lathe
