#include "formats/gguf_dequant.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <filesystem>

#include "base/json.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

std::vector<std::byte> from_hex(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

// The golden floats are shortest decimals; the few that are none are strings.
float golden_float(const Json& value) {
  return value.is_number() ? value.get<float>() : std::stof(value.get<std::string>());
}

TEST(GgufDequant, IsExactlyWhatGgmlComputes) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden_path("gguf"))) {
    const Json golden = read_json_file(entry.path().string());
    SCOPED_TRACE(golden["type"].get<std::string>());
    const GgmlTypeInfo* info = ggml_type_info(golden["type_id"].get<uint32_t>());
    ASSERT_NE(info, nullptr);
    EXPECT_EQ(info->name, golden["type"].get<std::string>());
    ASSERT_EQ(info->block_values, golden["block_values"].get<int64_t>());
    ASSERT_EQ(info->block_bytes, golden["block_bytes"].get<int64_t>());
    for (const Json& row : golden["rows"]) {
      SCOPED_TRACE(row["from"].get<std::string>());
      // One byte in front: blocks lie at any address.
      std::vector<std::byte> bytes = from_hex("00" + row["bytes"].get<std::string>());
      const auto num_values = row["num_values"].get<int64_t>();
      const int64_t num_blocks = num_values / info->block_values;
      ASSERT_EQ(static_cast<int64_t>(bytes.size()), 1 + num_blocks * info->block_bytes);
      std::vector<float> values(static_cast<std::size_t>(num_values) + 1, 12345.0f);
      info->dequantize(bytes.data() + 1, num_blocks, values.data());
      EXPECT_EQ(values.back(), 12345.0f);
      const Json& expected = row["values"];
      ASSERT_EQ(static_cast<int64_t>(expected.size()), num_values);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const float reference = golden_float(expected[i]);
        // Zero times a negative scale: the references do not agree on the sign of zero.
        if (reference == 0) {
          ASSERT_EQ(values[i], 0.0f) << i;
        } else if (std::isnan(reference)) {
          ASSERT_TRUE(std::isnan(values[i])) << i;
        } else {
          ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(reference)) << i;
        }
      }
    }
    ++files;
  }
  EXPECT_EQ(files, 17);
}

TEST(GgufDequant, KnowsNoOtherType) {
  for (const uint32_t type : {4u, 9u, 16u, 27u, 41u, 1000u}) {
    EXPECT_EQ(ggml_type_info(type), nullptr) << type;
  }
}

}  // namespace
}  // namespace lathe
