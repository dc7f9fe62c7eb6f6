// decode_kv_rows_cuda() for the usual heads: 64, 128 or 256 numbers, live blocks of numbers, keys
// turned as a whole. What it computes is what the kernel of kv_rows_cuda.cu does, state rows bit
// for bit, at the speed of the memory.
#pragma once
#include "kernels/kv_rows/kv_rows_cuda.h"

namespace lathe {

// Whether decode_heads_cuda() can do it: by sizes, elements and the alignment of pointers.
bool decodes_heads_cuda(const KvRowsCudaFormat& format, const float* product,
                        const KvRowsCuda& rows, const KvLiveRowsCuda& live);

// How many heads of a row a thread decodes one after the other, a divisor of num_heads: all, so
// that it loads a row's angles once, unless that leaves a GPU without enough threads.
int heads_per_thread(int64_t num_rows, int num_heads, int head_dim);

// Arguments as of decode_kv_rows_cuda().
void decode_heads_cuda(const KvRowsCudaFormat& format, const KvCodesCuda& codes,
                       const float* product, const KvRowsCuda& rows, int64_t num_rows,
                       const KvLiveRowsCuda& live, CudaStream stream);

}  // namespace lathe
