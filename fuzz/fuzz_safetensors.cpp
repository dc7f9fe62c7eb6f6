// Any bytes are either refused with an Error or give tensors that can be read to the last byte.
#include <cstdint>
#include <span>

#include "base/error.h"
#include "formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace lathe;
  try {
    const SafetensorsContent content =
        parse_safetensors(std::as_bytes(std::span(data, size)), "fuzz");
    for (const SafetensorsTensor& tensor : content.tensors) {
      try {
        load_dense(tensor.view, DType::kBF16);
      } catch (const Error& error) {
        if (error.code() != ErrorCode::kUnsupported) throw;  // not a floating-point type
      }
    }
  } catch (const Error&) {
  }
  return 0;
}
