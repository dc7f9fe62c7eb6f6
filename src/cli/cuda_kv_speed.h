// Speed of parking and waking on a GPU, beside prefilling. Only with LATHE_CUDA.
#pragma once
#include <cstdint>
#include <vector>

#include "cache/kv_format.h"
#include "formats/kv_codec_file.h"
#include "model/model.h"

namespace lathe {

struct CudaKvSpeed {
  double prefill = 0;              // tokens per second
  std::vector<double> park, wake;  // the same, one number a repetition
  double difference = 0;           // of woken values of the last layer from the CPU's, relative rms
};

// num_tokens random tokens go through the model, in steps of chunk_tokens rows; their whole pieces
// are parked, and woken again. Throws kInternal when what was woken is not what the CPU makes of
// the same codes; what Model::make_parker() throws.
CudaKvSpeed measure_cuda_kv_speed(Model& model, const KvCodecFile& file, KvFormat live,
                                  int64_t num_tokens, int64_t chunk_tokens, int repetitions,
                                  Exec& exec);

}  // namespace lathe
