#include "kernels/linear/float_simd.h"
#include "kernels/linear/integer_simd.h"
#include "kernels/simd/simd_int_avx2.h"

namespace lathe {

void linear_integer_avx2(const LinearArgs& args, Exec& exec) { run_integer<IntAvx2>(args, exec); }

void linear_float_avx2(const LinearArgs& args, Exec& exec) { run_float<IntAvx2>(args, exec); }

}  // namespace lathe
