// What CompressedTensorsWriter writes, Checkpoint reads back bit for bit.
#include <gtest/gtest.h>

#include <cstring>

#include "formats/checkpoint.h"
#include "formats/manifest.h"
#include "formats/temporary_directory.h"
#include "formats/tiny_compressed_model.h"

namespace lathe {
namespace {

bool equal(const Buffer& a, const Buffer& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size())) == 0;
}

struct Case {
  const char* format;
  ActivationFormat activations;
  int64_t hadamard;
};
constexpr Case kCases[] = {
    {"mxfp4", ActivationFormat::kNone, 0},   {"mxfp4", ActivationFormat::kNone, 128},
    {"mxfp4", ActivationFormat::kMxfp4, 32}, {"nvfp4", ActivationFormat::kNone, 16},
    {"nvfp4", ActivationFormat::kNvfp4, 0},  {"int4", ActivationFormat::kNone, 0},
    {"int4", ActivationFormat::kInt8, 64},   {"int8", ActivationFormat::kNone, 0},
    {"int8", ActivationFormat::kInt8, 0},    {"fp8", ActivationFormat::kNone, 0},
    {"fp8", ActivationFormat::kFp8, 0},      {"mxfp8", ActivationFormat::kNone, 0},
    {"mxfp8", ActivationFormat::kMxfp8, 32},
};

TEST(CompressedTensorsRoundTrip, EveryFormat) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(std::string(c.format) + " activations " +
                 std::string(activation_format_name(c.activations)) + " hadamard " +
                 std::to_string(c.hadamard));
    const TemporaryDirectory scratch;
    const TinyCompressedModel model =
        write_tiny_compressed_model(scratch / "m", c.format, c.activations, c.hadamard);
    EXPECT_EQ(verify_directory(scratch / "m").state, DirectoryState::kWhole);
    const auto checkpoint = Checkpoint::open(scratch / "m");
    for (const auto& [module, matrix] : model.linears) {
      SCOPED_TRACE(module);
      const LinearWeights read = checkpoint->load_linear(module, DType::kBF16);
      ASSERT_TRUE(read.quantized.has_value());
      EXPECT_EQ(read.quantized->format, matrix.format);
      EXPECT_EQ(read.quantized->rows, matrix.rows);
      EXPECT_EQ(read.quantized->cols, matrix.cols);
      EXPECT_TRUE(equal(read.quantized->codes, matrix.codes));
      EXPECT_TRUE(equal(read.quantized->scales, matrix.scales));
      EXPECT_EQ(read.quantized->global_scale, matrix.global_scale);
      EXPECT_EQ(read.scheme.activations, c.activations);
      EXPECT_EQ(read.scheme.input_global_scale, model.scheme.input_global_scale);
      EXPECT_EQ(read.scheme.hadamard, tiny_hadamard(c.hadamard, matrix.cols));
    }
    EXPECT_FALSE(checkpoint->load_linear("lm_head", DType::kBF16).quantized.has_value());
  }
}

}  // namespace
}  // namespace lathe
