#include "kernels/linear/float_simd.h"
#include "kernels/linear/integer_vnni.h"
#include "kernels/simd/simd_int_avx512.h"

namespace lathe {

void linear_integer_avx512(const LinearArgs& args, Exec& exec) { run_vnni(args, exec); }

void linear_float_avx512(const LinearArgs& args, Exec& exec) { run_float<IntAvx512>(args, exec); }

}  // namespace lathe
