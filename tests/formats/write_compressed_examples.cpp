// write_compressed_examples DIRECTORY: for each format a tiny model DIRECTORY/FORMAT and its
// decoded weights DIRECTORY/FORMAT.decoded.safetensors (fp32, as stored: rotated where there is a
// rotation). compressed_tensors_peer_test.py compares them with what the Python libraries make of
// the model.
#include <cstdio>

#include "base/error.h"
#include "formats/safetensors_writer.h"
#include "formats/tiny_compressed_model.h"

namespace lathe {
namespace {

void write_example(const std::string& directory, const std::string& name, const char* format,
                   ActivationFormat activations, int64_t hadamard) {
  const std::string path = directory + "/" + name;
  const TinyCompressedModel model =
      write_tiny_compressed_model(path, format, activations, hadamard);
  std::vector<TensorSpec> specs;
  for (const auto& [module, matrix] : model.linears) {
    specs.push_back({module, DType::kF32, {matrix.rows, matrix.cols}});
  }
  SafetensorsWriter writer(path + ".decoded.safetensors", specs);
  for (const auto& [module, matrix] : model.linears) {
    Tensor decoded(DType::kF32, {matrix.rows, matrix.cols});
    dequantize_rows(matrix, 0, matrix.rows, decoded.as<float>());
    writer.write(module, decoded.view());
  }
  writer.commit();
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  using lathe::ActivationFormat;
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_compressed_examples DIRECTORY\n");
    return 2;
  }
  const std::string directory = argv[1];
  try {
    lathe::write_example(directory, "mxfp4", "mxfp4", ActivationFormat::kNone, 0);
    lathe::write_example(directory, "mxfp4-w4a4", "mxfp4", ActivationFormat::kMxfp4, 0);
    lathe::write_example(directory, "mxfp4-hadamard", "mxfp4", ActivationFormat::kMxfp4, 128);
    lathe::write_example(directory, "nvfp4", "nvfp4", ActivationFormat::kNone, 0);
    lathe::write_example(directory, "nvfp4-w4a4", "nvfp4", ActivationFormat::kNvfp4, 16);
    lathe::write_example(directory, "int4", "int4", ActivationFormat::kNone, 0);
    lathe::write_example(directory, "int4-w4a8", "int4", ActivationFormat::kInt8, 0);
    lathe::write_example(directory, "int8", "int8", ActivationFormat::kNone, 0);
    lathe::write_example(directory, "int8-w8a8", "int8", ActivationFormat::kInt8, 0);
    lathe::write_example(directory, "fp8", "fp8", ActivationFormat::kNone, 0);
    lathe::write_example(directory, "fp8-w8a8", "fp8", ActivationFormat::kFp8, 0);
    lathe::write_example(directory, "mxfp8", "mxfp8", ActivationFormat::kNone, 0);
    lathe::write_example(directory, "mxfp8-w8a8", "mxfp8", ActivationFormat::kMxfp8, 0);
  } catch (const lathe::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
