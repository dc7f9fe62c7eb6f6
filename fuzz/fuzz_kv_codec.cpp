// Any bytes are either refused with an Error or give a codec that encodes and decodes a block.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "cache/predictive_codec.h"
#include "kernels/attention/kv_layout.h"
#include "memory_file.h"

namespace {

class SomeRows final : public lathe::KvExactRows {
 public:
  explicit SomeRows(int64_t floats) : floats_(floats) {}
  void load(int64_t layer, lathe::KvLayerRows rows) const override {
    for (int64_t i = 0; i < floats_; ++i) {
      rows.keys[i] = static_cast<float>((i * 37 + layer) % 101 - 50);
      rows.values[i] = static_cast<float>((i * 53 + layer) % 97 - 48);
    }
  }

 private:
  int64_t floats_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace lathe;
  const MemoryFile file(data, size);
  try {
    const KvCodecFile codec_file = read_kv_codec(file.path());
    // A file of few bytes may ask for many large layers without predictors: that is a valid codec,
    // but not one to run here.
    if (codec_file.num_layers() * codec_file.shape.width() > 4096) return 0;
    const PredictiveCodec codec(codec_file);
    static ThreadPool threads(1);
    static Workspace workspace;
    Exec exec{threads, workspace};
    std::vector<float> state(static_cast<std::size_t>(codec.state_floats(1)));
    std::vector<float> scratch(static_cast<std::size_t>(codec.scratch_floats(1)));
    std::vector<std::byte> codes(static_cast<std::size_t>(codec.bytes_per_block()));
    std::byte* block = codes.data();
    codec.encode(SomeRows(kBlockSize * codec_file.shape.width()), 1, &block, state.data(),
                 scratch.data(), exec);
    for (int64_t layer = 0; layer < codec_file.num_layers(); ++layer) {
      codec.decode_layer(layer, &block, 1, state.data(), scratch.data(), exec);
    }
  } catch (const Error&) {
  }
  return 0;
}
