#include "kernels/attention/kv_codes_cuda.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "tensor/float16.h"

namespace lathe {

std::unique_ptr<KvCudaGrid> make_kv_cuda_grid(KvCudaElement element) {
  LATHE_CHECK(element == KvCudaElement::kHiggs4);
  const KvGrid& grid = kv_grid(KvElement::kHiggs4);
  const KvGridSearch search = kv_grid_search(KvElement::kHiggs4);
  auto made = std::make_unique<KvCudaGrid>();
  LATHE_CHECK(grid.num_points == 256 && search.begin.size() == std::size(made->begin) &&
              search.candidates.size() <= std::size(made->candidates));
  for (int i = 0; i < grid.num_points; ++i) {
    made->first[i] = grid.first[i];
    made->second[i] = grid.second[i];
    made->pairs[i] = static_cast<uint32_t>(bf16_from_float(grid.first[i])) |
                     static_cast<uint32_t>(bf16_from_float(grid.second[i])) << 16;
  }
  made->step = grid.step;
  std::copy(search.begin.begin(), search.begin.end(), made->begin);
  std::copy(search.candidates.begin(), search.candidates.end(), made->candidates);
  return made;
}

}  // namespace lathe
