// Any text is either refused with an Error or gives a config whose list of tensors has a sane size,
// which can be written and read back.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "formats/compressed_tensors_config.h"
#include "formats/hf_config_writer.h"
#include "formats/hf_names.h"
#include "formats/model_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace lathe;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const auto quantization = CompressedTensorsConfig::parse(text, "fuzz");
    if (quantization) {
      const auto spellings = module_spellings("model.layers.0.mlp.experts.1.down_proj");
      quantization->scheme(spellings);
      quantization->hadamard(spellings);
    }
  } catch (const Error&) {
  }
  ModelConfig config;
  try {
    config = parse_hf_config(text, "fuzz");
  } catch (const Error&) {
    return 0;
  }
  if (config.num_layers <= 64) model_tensors(config);
  // What was accepted is described in full by what is written.
  parse_hf_config(write_hf_config(config, DType::kF32), "written");
  return 0;
}
