#include "kernels/linear/gemm_fp8_cublaslt.h"

#include <cublasLt.h>

#include "base/error.h"
#include "kernels/linear/scale_bias_cuda.h"

namespace lathe {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
constexpr std::size_t kMaxPlans = 512;

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail(ErrorCode::kDevice, "cuBLASLt: ", what, ": ", cublasLtGetStatusString(status));
  }
}

// A handle of cuBLAS is one of cuBLASLt too (cuBLAS documentation, cublasLtHandle_t).
cublasLtHandle_t handle(const CudaContext& context) {
  return reinterpret_cast<cublasLtHandle_t>(context.cublas());
}

}  // namespace

struct Fp8Gemm::Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (product != nullptr) cublasLtMatmulDescDestroy(product);
    for (const auto layout : {w, x, y}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
  }
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    check(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value),
          "describing a product");
  }
  // Both factors lie in memory that may differ from call to call.
  void set_scales(const float* of_w, const float* of_x) {
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(of_w));
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(of_x));
  }
};

Fp8Gemm::Fp8Gemm(CudaContext& context) : context_(context) {}
Fp8Gemm::~Fp8Gemm() = default;

bool Fp8Gemm::supports(int64_t n, int64_t k, int64_t y_stride) {
  return n > 0 && k > 0 && n % 16 == 0 && k % 16 == 0 && y_stride % 16 == 0;
}

Fp8Gemm::Plan& Fp8Gemm::plan(const Key& key, const CudaLinearInput& x, const Fp8Matrix& w) {
  const auto [m, n, k, stride, element] = key;
  const auto found = plans_.find(key);
  if (found != plans_.end()) return *found->second;
  auto made = std::make_unique<Plan>();
  check(cublasLtMatmulDescCreate(&made->product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "describing a product");
  // cuBLASLt counts in columns: y^T [n, m] = w [n, k] x^T.
  made->set(CUBLASLT_MATMUL_DESC_TRANSA, cublasOperation_t{CUBLAS_OP_T});
  made->set(CUBLASLT_MATMUL_DESC_TRANSB, cublasOperation_t{CUBLAS_OP_N});
  const int32_t per_row = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  made->set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, per_row);
  made->set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, per_row);
  made->set_scales(w.scales, x.row_scales);
  const auto y_type = element == CudaElement::kF32 ? CUDA_R_32F : CUDA_R_16BF;
  const auto rows = [](int64_t count) { return static_cast<uint64_t>(count); };
  check(cublasLtMatrixLayoutCreate(&made->w, CUDA_R_8F_E4M3, rows(k), rows(n), k), "describing w");
  check(cublasLtMatrixLayoutCreate(&made->x, CUDA_R_8F_E4M3, rows(k), rows(m), k), "describing x");
  check(cublasLtMatrixLayoutCreate(&made->y, y_type, rows(n), rows(m), stride), "describing y");
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "choosing a kernel");
  const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t,
                        cublasStatus_t (*)(cublasLtMatmulPreference_t)>
      owner(preference, cublasLtMatmulPreferenceDestroy);
  const auto bytes = static_cast<std::size_t>(kWorkspaceBytes);
  check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &bytes, sizeof bytes),
        "choosing a kernel");
  cublasLtMatmulHeuristicResult_t result = {};
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle(context_), made->product, made->w, made->x, made->y,
                                     made->y, preference, 1, &result, &count);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0) {
    fail(ErrorCode::kUnsupported, "cuBLASLt has no FP8 kernel for ", m, " x ", k, " x ", n,
         " with scales per row: ", cublasLtGetStatusString(status));
  }
  made->algorithm = result.algo;
  if (plans_.size() >= kMaxPlans) plans_.clear();
  return *(plans_[key] = std::move(made));
}

void Fp8Gemm::run(const CudaLinearInput& x, const Fp8Matrix& w, const CudaLinearOutput& y) {
  if (x.m == 0) return;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (x.element != CudaElement::kE4M3 || x.k != w.k || x.m < 0 || x.row_scales == nullptr ||
      w.scales == nullptr || y.element == CudaElement::kE4M3 || y.stride < w.n ||
      !supports(w.n, w.k, y.stride) || !aligned(x.data) || !aligned(w.codes) || !aligned(y.data) ||
      !aligned(x.row_scales) || !aligned(w.scales)) {
    fail(ErrorCode::kInvalidArgument, "FP8 product of ", x.m, " x ", x.k, " and ", w.n, " x ", w.k,
         ", row stride ", y.stride,
         ": sizes must be multiples of 16, addresses of 16 bytes, both with scales per row");
  }
  Plan& chosen = plan({x.m, w.n, w.k, y.stride, y.element}, x, w);
  chosen.set_scales(w.scales, x.row_scales);
  const DeviceWorkspace::Scope scope(context_.workspace());
  void* workspace = context_.workspace().allocate(kWorkspaceBytes);
  const float one = 1, zero = 0;
  check(cublasLtMatmul(handle(context_), chosen.product, &one, w.codes, chosen.w, x.data, chosen.x,
                       &zero, y.data, chosen.y, y.data, chosen.y, &chosen.algorithm, workspace,
                       static_cast<std::size_t>(kWorkspaceBytes), context_.stream()),
        "multiplying FP8");
  scale_bias_cuda(y, x.m, w.n, nullptr, nullptr, w.bias, context_.stream());
}

}  // namespace lathe
