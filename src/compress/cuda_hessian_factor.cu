#include "compress/cuda_blas.h"
#include "compress/cuda_hessian_factor.h"
#include "tensor/cuda_check.h"

namespace lathe {
namespace {

constexpr int kThreads = 256;

// The lower half of the permuted, damped Hessian with both indices reversed; a block per row.
__global__ void gather_kernel(const float* h, const int32_t* order, int64_t k, float dead_pivot,
                              float added, float* a) {
  const int64_t i = blockIdx.x;
  const float* row = h + int64_t{order[k - 1 - i]} * k;
  for (int64_t j = threadIdx.x; j <= i; j += kThreads) {
    float value = row[order[k - 1 - j]];
    if (j == i) {
      // A dead input: its row and column are zero, any pivot keeps it apart from the others.
      if (value == 0) value = dead_pivot;
      value = __fadd_rn(value, added);
    }
    a[i * k + j] = value;
  }
}

__global__ void pivot_kernel(const float* a, int64_t k, float* pivot) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c < k) pivot[c] = a[(k - 1 - c) * (k + 1)];
}

// R above the diagonal from L below it: R = J L J reverses the memory. Columns divided by their
// pivots. Reads below and writes above the diagonal only, so it can be done in place.
__global__ void normalise_kernel(float* a, const float* pivot, int64_t k) {
  const int64_t i = blockIdx.x;
  for (int64_t c = i + 1 + threadIdx.x; c < k; c += kThreads) {
    a[i * k + c] = __fmul_rn(a[(k - 1 - i) * k + (k - 1 - c)], __frcp_rn(pivot[c]));
  }
}

__global__ void diagonal_kernel(const float* h, int64_t k, float* out) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j < k) out[j] = h[j * (k + 1)];
}

unsigned grid_of(int64_t k) { return static_cast<unsigned>((k + kThreads - 1) / kThreads); }

int64_t bytes_of(std::size_t count, std::size_t size) { return static_cast<int64_t>(count * size); }

void upload_order(CudaHessianFactor& factor) {
  std::vector<int32_t> place(factor.order.size());
  for (std::size_t c = 0; c < place.size(); ++c) {
    place[static_cast<std::size_t>(factor.order[c])] = static_cast<int32_t>(c);
  }
  const int64_t bytes = bytes_of(place.size(), sizeof(int32_t));
  factor.device_order = DeviceBuffer::from_host(factor.order.data(), bytes);
  factor.device_place = DeviceBuffer::from_host(place.data(), bytes);
}

}  // namespace

std::vector<float> cuda_diagonal(const float* h, int64_t k, CudaStream stream) {
  DeviceBuffer diagonal(k * static_cast<int64_t>(sizeof(float)));
  diagonal_kernel<<<grid_of(k), kThreads, 0, stream>>>(h, k, diagonal.as<float>());
  cuda_check_launch("the reading of a diagonal");
  std::vector<float> out(static_cast<std::size_t>(k));
  diagonal.to_host(out.data(), diagonal.size(), stream);
  return out;
}

CudaHessianFactor cuda_factor_hessian(const float* h, int64_t k, ColumnOrder order, double damping,
                                      CudaStream stream) {
  CudaHessianFactor factor;
  factor.k = k;
  const std::vector<float> diagonal = cuda_diagonal(h, k, stream);
  factor.order = visiting_order(diagonal, order);
  const HessianDiagonal judged = judge_diagonal(diagonal);
  factor.dead_columns = judged.dead_columns;
  upload_order(factor);

  factor.normalised = DeviceBuffer(k * k * static_cast<int64_t>(sizeof(float)));
  auto* a = factor.normalised.as<float>();
  const auto rows = static_cast<unsigned>(k);
  for (double relative = damping;; relative *= 10) {
    const auto added = static_cast<float>(relative * judged.mean);
    gather_kernel<<<rows, kThreads, 0, stream>>>(h, factor.device_order.as<int32_t>(), k,
                                                 static_cast<float>(judged.mean), added, a);
    cuda_check_launch("the permutation of a Hessian");
    if (cuda_cholesky_lower(k, a, stream)) {
      factor.damping = relative;
      factor.added = double{added};
      break;
    }
    if (factor.escalations == kMaxEscalations) fail_not_positive_definite(k, relative);
    ++factor.escalations;
  }

  factor.device_pivot = DeviceBuffer(k * static_cast<int64_t>(sizeof(float)));
  auto* pivot = factor.device_pivot.as<float>();
  pivot_kernel<<<grid_of(k), kThreads, 0, stream>>>(a, k, pivot);
  cuda_check_launch("the reading of the pivots");
  normalise_kernel<<<rows, kThreads, 0, stream>>>(a, pivot, k);
  cuda_check_launch("the scaling of a Cholesky factor");
  factor.pivot.resize(static_cast<std::size_t>(k));
  factor.device_pivot.to_host(factor.pivot.data(), factor.device_pivot.size(), stream);
  return factor;
}

CudaHessianFactor upload_factor(const HessianFactor& factor) {
  CudaHessianFactor out;
  out.k = factor.k;
  out.order = factor.order;
  out.pivot = factor.pivot;
  out.damping = factor.damping;
  out.added = factor.added;
  out.escalations = factor.escalations;
  out.dead_columns = factor.dead_columns;
  upload_order(out);
  out.device_pivot =
      DeviceBuffer::from_host(factor.pivot.data(), bytes_of(factor.pivot.size(), sizeof(float)));
  out.normalised = DeviceBuffer::from_host(factor.normalised.data(), factor.normalised.size());
  return out;
}

}  // namespace lathe
