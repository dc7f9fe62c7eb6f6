#include "formats/model_fingerprint.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "base/atomic_file.h"
#include "formats/kv_codec_file.h"
#include "formats/safetensors.h"
#include "formats/temporary_directory.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

std::string fingerprint(const std::string& path) {
  return model_fingerprint(*Checkpoint::open(path));
}

std::string read_whole(const std::string& path) {
  const MmapFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void replace(std::string& text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

TEST(ModelFingerprint, EveryTensorAndTheConfigurationCount) {
  const std::string original = golden_path("tiny/qwen2-tied-mqa");
  const TemporaryDirectory directory;
  const std::string copy = directory.path() + "/copy";
  std::filesystem::copy(original, copy, std::filesystem::copy_options::recursive);
  const std::string same = fingerprint(original);
  EXPECT_EQ(same.size(), 64u);
  EXPECT_EQ(fingerprint(copy), same);

  const std::string weights = read_whole(copy + "/model.safetensors");
  std::vector<std::pair<std::string, std::size_t>> tensors;  // and where their bytes end
  {
    const MmapFile file(copy + "/model.safetensors");
    for (const SafetensorsTensor& tensor : parse_safetensors(file.bytes(), "model").tensors) {
      const auto begin = static_cast<std::size_t>(tensor.view.data - file.bytes().data());
      tensors.emplace_back(tensor.name, begin + static_cast<std::size_t>(tensor.view.num_bytes()));
    }
  }
  ASSERT_GT(tensors.size(), 20u);
  for (const auto& [name, end] : tensors) {
    std::string other = weights;
    other[end - 1] = static_cast<char>(other[end - 1] ^ 1);
    write_file_atomically(copy + "/model.safetensors", other);
    EXPECT_NE(fingerprint(copy), same) << name;
  }
  write_file_atomically(copy + "/model.safetensors", weights);
  EXPECT_EQ(fingerprint(copy), same);

  // What a codec is bound to does not know all of it; a codec's file stays readable.
  const std::string codec = kv_model_fingerprint(*Checkpoint::open(copy));
  std::string config = read_whole(copy + "/config.json");
  replace(config, "\"default\"", "\"linear\", \"factor\": 2.0");
  write_file_atomically(copy + "/config.json", config);
  EXPECT_NE(fingerprint(copy), same);
  EXPECT_EQ(kv_model_fingerprint(*Checkpoint::open(copy)), codec);
}

}  // namespace
}  // namespace lathe
