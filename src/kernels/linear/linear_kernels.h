// Inside of linear(): what a packed weight holds and the table of kernels that read it.
//
// pack_linear() decides the arithmetic from formats alone (integer or floating point), takes the
// best kernel of that arithmetic, and packs for it; the weight then carries its kernel along.
#pragma once
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/linear/linear.h"

namespace lathe {

enum class Arithmetic {
  kInteger,  // int8 activations, products summed exactly in int32 inside a group
  kFloat,    // fp32 activations, weights decoded to fp32
};

struct LinearArgs;

struct PackedWeight : PackedLinear {
  Arithmetic arithmetic = Arithmetic::kFloat;
  int64_t group = 0;  // kInteger: columns that share an input scale and a weight scale, 16 or 32
  const Kernel<LinearArgs>* row = nullptr;
};

struct LinearArgs {
  const LinearInput* input;
  const PackedWeight* weight;  // packed for this kernel
  float* y;                    // [m, n], row stride y_stride
  int64_t y_stride;
};

// Rows of a block of LinearInput: at most this many, so that their sums fit on a kernel's stack.
inline constexpr int64_t kMaxBlockRows = 128;

std::span<const Kernel<LinearArgs>> linear_kernels(Arithmetic arithmetic);

// pack_linear for the row of linear_kernels() with this name (for tests and benchmarks).
std::unique_ptr<PackedLinear> pack_linear_for(std::string_view kernel_name,
                                              std::span<const LinearPart> parts,
                                              const LinearScheme& scheme, ComputeType compute,
                                              Exec& exec);

// The parts after checking that they fit together.
struct LinearParts {
  std::span<const LinearPart> parts;
  int64_t n = 0;
  int64_t k = 0;
  const WeightFormat* format = nullptr;  // null: dense
};
int64_t part_rows(const LinearPart& part);
LinearParts check_parts(std::span<const LinearPart> parts);

// linear_ref.cpp: the reference keeps integers or floats as plain matrices.
std::unique_ptr<PackedWeight> pack_linear_ref(const LinearParts& parts, Arithmetic arithmetic,
                                              int64_t group, Exec& exec);
void linear_ref(const LinearArgs& args, Exec& exec);

inline constexpr int64_t kAmxColumns = 32;  // that the kernel takes at a time
void linear_float_amx(const LinearArgs& args, Exec& exec);
void linear_integer_avx512(const LinearArgs& args, Exec& exec);
void linear_float_avx512(const LinearArgs& args, Exec& exec);
void linear_integer_avx2(const LinearArgs& args, Exec& exec);
void linear_float_avx2(const LinearArgs& args, Exec& exec);

}  // namespace lathe
