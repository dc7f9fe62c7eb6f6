#include "compress/product_simd.h"
#include "kernels/simd/simd_avx2.h"

namespace lathe {

void add_product_avx2(const ProductArgs& args, float* scratch) {
  product_block<VectorTiles<Avx2, 6>>(args, scratch);
}

}  // namespace lathe
