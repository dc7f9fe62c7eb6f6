#include "compress/product_simd.h"
#include "kernels/simd/simd_avx512.h"

namespace lathe {

void add_product_avx512(const ProductArgs& args, float* scratch) {
  product_block<VectorTiles<Avx512, 12>>(args, scratch);
}

}  // namespace lathe
