#include "kernels/attention/attention_decode_sm90.cuh"

namespace lathe {

void attention_decode_e4m3_sm90(const AttentionCudaArgs& args, const CudaBatch& batch,
                                const KvCudaLayer& layer, CudaStream stream) {
  sm90::decode::launch_any<true>(args, batch, layer, decode_grid(args, batch), stream);
}

}  // namespace lathe
