#include "compress/cuda_quantized_matrix.h"

#include <vector>

#include "tensor/cuda_check.h"

namespace lathe {
namespace {

CudaQuantizedMatrix allocate_like(const WeightFormat& format, int64_t rows, int64_t cols) {
  CudaQuantizedMatrix matrix;
  matrix.format = format;
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.codes = DeviceBuffer(rows * matrix.code_row_bytes());
  matrix.scales = DeviceBuffer(rows * matrix.num_groups() * scale_bytes(format.scale));
  return matrix;
}

}  // namespace

void CudaQuantizedMatrix::update_scale_values() {
  if (scale_bytes(format.scale) != 1) return;
  QuantizedMatrix all_bytes;
  all_bytes.format = {format.element, format.scale, 1};
  all_bytes.rows = 1;
  all_bytes.cols = 256;
  all_bytes.log_alpha = log_alpha;
  all_bytes.log_beta = log_beta;
  all_bytes.scales = Buffer(256);
  std::vector<double> values(256);
  for (int i = 0; i < 256; ++i) {
    all_bytes.scales.as<uint8_t>()[i] = static_cast<uint8_t>(i);
    values[static_cast<std::size_t>(i)] = stored_scale(all_bytes, 0, i);
  }
  scale_values = DeviceBuffer::from_host(values.data(), 256 * sizeof(double));
}

CudaQuantizedMatrix make_cuda_quantized_matrix(const WeightFormat& format, int64_t rows,
                                               int64_t cols) {
  make_quantized_matrix(format, rows > 0 ? 1 : rows, cols);  // for its errors
  CudaQuantizedMatrix matrix = allocate_like(format, rows, cols);
  for (DeviceBuffer* buffer : {&matrix.codes, &matrix.scales}) {
    cuda_check(cudaMemset(buffer->data(), 0, static_cast<std::size_t>(buffer->size())),
               "clearing memory of the GPU");
  }
  // What writes it may come on any stream.
  cuda_check(cudaStreamSynchronize(nullptr), "clearing memory of the GPU");
  matrix.update_scale_values();
  return matrix;
}

CudaQuantizedMatrix upload(const QuantizedMatrix& matrix) {
  CudaQuantizedMatrix out;
  out.format = matrix.format;
  out.rows = matrix.rows;
  out.cols = matrix.cols;
  out.codes = DeviceBuffer::from_host(matrix.codes.data(), matrix.codes.size());
  out.scales = DeviceBuffer::from_host(matrix.scales.data(), matrix.scales.size());
  out.global_scale = matrix.global_scale;
  out.log_alpha = matrix.log_alpha;
  out.log_beta = matrix.log_beta;
  out.update_scale_values();
  return out;
}

QuantizedMatrix download(const CudaQuantizedMatrix& matrix, CudaStream stream) {
  QuantizedMatrix out = make_quantized_matrix(matrix.format, matrix.rows, matrix.cols);
  matrix.codes.to_host(out.codes.data(), out.codes.size(), stream);
  matrix.scales.to_host(out.scales.data(), out.scales.size(), stream);
  out.global_scale = matrix.global_scale;
  out.log_alpha = matrix.log_alpha;
  out.log_beta = matrix.log_beta;
  return out;
}

}  // namespace lathe
