#include "kernels/attention/attention_prefill_sm90.cuh"

namespace lathe {

void attention_prefill_e4m3_sm90(const AttentionCudaArgs& args, const CudaBatch& batch,
                                 const KvCudaLayer& layer, CudaStream stream) {
  sm90::prefill::launch_any<true>(args, batch, layer, stream);
}

}  // namespace lathe
