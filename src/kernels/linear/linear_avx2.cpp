#include "kernels/linear/float_kernel.h"
#include "kernels/linear/integer_kernel.h"
#include "kernels/simd_avx2.h"

namespace lathe {

void linear_integer_avx2(const LinearArgs& args, Exec& exec) { run_integer<Avx2>(args, exec); }

void linear_float_avx2(const LinearArgs& args, Exec& exec) { run_float<Avx2>(args, exec); }

}  // namespace lathe
