// Any bytes are either refused with an Error or give tensors that can be dequantized; where they
// make a model, every one of its tensors can be loaded.
#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "formats/gguf_checkpoint.h"
#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace lathe;
  try {
    const GgufContent content = parse_gguf(std::as_bytes(std::span(data, size)), "fuzz");
    std::vector<float> values;
    for (const GgufTensor& tensor : content.tensors) {
      const int64_t blocks = tensor.num_bytes / tensor.type->block_bytes;
      values.resize(static_cast<std::size_t>(blocks * tensor.type->block_values));
      tensor.type->dequantize(tensor.data, blocks, values.data());
    }
    const MemoryFile file(data, size);
    const GgufCheckpoint checkpoint(file.path());
    for (const std::string& name : checkpoint.tensor_names()) {
      checkpoint.load(name, DType::kBF16);
    }
    for (const char* name : {"config.json", "tokenizer_config.json", "chat_template.jinja"}) {
      checkpoint.auxiliary_file(name);
    }
  } catch (const Error&) {
  }
  return 0;
}
