#include "kernels/attention/attention_prefill_sm90.cuh"

namespace lathe {

void attention_prefill_bf16_sm90(const AttentionCudaArgs& args, const CudaBatch& batch,
                                 const KvCudaLayer& layer, CudaStream stream) {
  sm90::prefill::launch_any<false>(args, batch, layer, stream);
}

}  // namespace lathe
