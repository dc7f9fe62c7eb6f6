#include <algorithm>
#include <utility>

#include "base/check.h"
#include "compress/cuda_blas.h"
#include "compress/cuda_input_statistics.h"
#include "compress/cuda_rotation.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int kColumns = 32;  // of a block of threads
constexpr int kRows = 16;     // tokens that it reads at a time

// Sums in an order that depends on the shape alone: thread (x, y) adds up tokens y, y + kRows, ...
// of column x, then the kRows partial sums are added one after the other.
__global__ void channel_kernel(const float* x, int64_t tokens, int64_t k, double* sum_abs,
                               float* amax, int64_t* bad_channel) {
  __shared__ double sums[kRows][kColumns];
  __shared__ float largest[kRows][kColumns];
  const int64_t j = int64_t{blockIdx.x} * kColumns + threadIdx.x;
  double sum = 0;
  float max = 0;
  bool bad = false;
  if (j < k) {
#pragma unroll 4
    for (int64_t t = threadIdx.y; t < tokens; t += kRows) {
      const float a = fabsf(x[t * k + j]);
      bad |= !(a <= 3.4e38f);  // written so that a NaN fails
      max = fmaxf(max, a);
      sum += double{a};
    }
  }
  if (bad) *bad_channel = j;
  sums[threadIdx.y][threadIdx.x] = sum;
  largest[threadIdx.y][threadIdx.x] = max;
  __syncthreads();
  if (threadIdx.y != 0 || j >= k) return;
  for (int i = 1; i < kRows; ++i) {
    sum += sums[i][threadIdx.x];
    max = fmaxf(max, largest[i][threadIdx.x]);
  }
  sum_abs[j] += sum;
  amax[j] = fmaxf(amax[j], max);
}

constexpr int kTile = 32;

// Tile (x, y) of the upper triangle, x >= y: scaled in place and copied to its mirror image.
__global__ void mirror_kernel(float* h, int64_t k, float factor) {
  if (blockIdx.x < blockIdx.y) return;
  __shared__ float tile[kTile][kTile + 1];
  const int64_t column = int64_t{blockIdx.x} * kTile;
  const int64_t row = int64_t{blockIdx.y} * kTile;
  for (int i = static_cast<int>(threadIdx.y); i < kTile; i += static_cast<int>(blockDim.y)) {
    const int64_t r = row + i;
    const int64_t c = column + threadIdx.x;
    if (r >= k || c >= k || c < r) continue;
    const float value = __fmul_rn(h[r * k + c], factor);
    h[r * k + c] = value;
    tile[i][threadIdx.x] = value;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.y); i < kTile; i += static_cast<int>(blockDim.y)) {
    const int64_t r = column + i;
    const int64_t c = row + threadIdx.x;
    if (r >= k || c >= k || c >= r) continue;
    h[r * k + c] = tile[threadIdx.x][i];
  }
}

void zero(DeviceBuffer& buffer) {
  if (buffer.size() == 0) return;
  cuda_check(cudaMemset(buffer.data(), 0, static_cast<std::size_t>(buffer.size())),
             "clearing memory of the GPU");
}

}  // namespace

CudaInputStatistics::CudaInputStatistics(int64_t k, bool gram, std::vector<int64_t> amax_blocks)
    : k_(k),
      amax_blocks_(std::move(amax_blocks)),
      gram_(gram ? k * k * static_cast<int64_t>(sizeof(float)) : 0),
      channels_(k * static_cast<int64_t>(sizeof(double) + sizeof(float))),
      rotated_(static_cast<int64_t>(amax_blocks_.size() * sizeof(float))),
      bad_channel_(sizeof(int64_t)) {
  zero(gram_);
  zero(channels_);
  zero(rotated_);
  cuda_check(cudaMemset(bad_channel_.data(), 0xff, sizeof(int64_t)), "clearing memory of the GPU");
  // The first add() may come on any stream.
  cuda_check(cudaStreamSynchronize(nullptr), "clearing memory of the GPU");
}

void CudaInputStatistics::add(const float* x, int64_t tokens, CudaStream stream) {
  stream_ = stream;
  if (tokens == 0) return;
  auto* sums = channels_.as<double>();
  const auto grid = static_cast<unsigned>((k_ + kColumns - 1) / kColumns);
  channel_kernel<<<grid, dim3(kColumns, kRows), 0, stream>>>(
      x, tokens, k_, sums, reinterpret_cast<float*>(sums + k_), bad_channel_.as<int64_t>());
  cuda_check_launch("the statistics of a linear layer's input");
  for (std::size_t i = 0; i < amax_blocks_.size(); ++i) {
    const int64_t block = amax_blocks_[i];
    if (block != 0 && k_ % block != 0) continue;
    cuda_rotated_amax(x, tokens, k_, block, rotated_.as<float>() + i, stream);
  }
  if (has_gram()) cuda_add_gram_upper(tokens, k_, x, gram_.as<float>(), stream);
  tokens_ += tokens;
}

void CudaInputStatistics::check() const {
  int64_t channel = -1;
  bad_channel_.to_host(&channel, sizeof channel, stream_);
  if (channel >= 0) {
    fail(ErrorCode::kInvalidArgument, "calibration input channel ", channel,
         " became a NaN or an infinity; the model or the text is broken");
  }
}

std::vector<double> CudaInputStatistics::sum_abs() const {
  check();
  std::vector<double> sums(static_cast<std::size_t>(k_));
  channels_.to_host(sums.data(), k_ * static_cast<int64_t>(sizeof(double)), stream_);
  return sums;
}

std::vector<float> CudaInputStatistics::amax() const {
  check();
  std::vector<float> out(static_cast<std::size_t>(k_));
  cuda_check(cudaMemcpy(out.data(), channels_.as<double>() + k_, out.size() * sizeof(float),
                        cudaMemcpyDeviceToHost),
             "copying from the GPU");
  return out;
}

std::vector<float> CudaInputStatistics::mean_abs() const {
  const std::vector<double> sums = sum_abs();
  std::vector<float> mean(sums.size());
  const double n = static_cast<double>(std::max<int64_t>(tokens_, 1));
  for (std::size_t j = 0; j < mean.size(); ++j) mean[j] = static_cast<float>(sums[j] / n);
  return mean;
}

std::vector<float> CudaInputStatistics::rotated_amax() const {
  check();
  std::vector<float> out(amax_blocks_.size());
  rotated_.to_host(out.data(), static_cast<int64_t>(out.size() * sizeof(float)), stream_);
  return out;
}

DeviceBuffer CudaInputStatistics::take_hessian() {
  LATHE_CHECK(has_gram());
  check();
  DeviceBuffer h = std::move(gram_);
  gram_ = DeviceBuffer();
  const float factor = 2.0f / static_cast<float>(std::max<int64_t>(tokens_, 1));
  const auto tiles = static_cast<unsigned>((k_ + kTile - 1) / kTile);
  mirror_kernel<<<dim3(tiles, tiles), dim3(kTile, 8), 0, stream_>>>(h.as<float>(), k_, factor);
  cuda_check_launch("the mirroring of a Hessian");
  cuda_check(cudaStreamSynchronize(stream_), "mirroring a Hessian");
  return h;
}

InputStatistics CudaInputStatistics::to_host() const {
  Buffer gram(gram_.size());
  gram_.to_host(gram.data(), gram_.size(), stream_);
  return {tokens_, std::move(gram), amax(), sum_abs()};
}

}  // namespace lathe
