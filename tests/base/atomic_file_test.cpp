#include "base/atomic_file.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "base/mmap_file.h"
#include "base/sha256.h"

namespace lathe {
namespace {

std::string scratch(const std::string& name) {
  return (std::filesystem::temp_directory_path() / ("lathe_" + std::to_string(getpid()) + name))
      .string();
}

TEST(AtomicFile, AppearsOnCommitOnly) {
  const std::string path = scratch("atomic");
  {
    AtomicFile file(path);
    file.write("lost");
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
  {
    AtomicFile file(path);
    file.write("kept");
    EXPECT_FALSE(std::filesystem::exists(path));
    file.commit();
  }
  EXPECT_EQ(read_file(path), "kept");
  std::filesystem::remove(path);
}

TEST(AtomicFile, AFullDiskIsOneClearError) {
  try {
    AtomicFile file("/dev/full/impossible");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
  }
}

TEST(MmapFile, SaysWhatIsMissing) {
  try {
    MmapFile file("/nonexistent/model.safetensors");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
    EXPECT_NE(std::string(error.what()).find("/nonexistent/model.safetensors"), std::string::npos);
  }
}

TEST(Sha256, KnownDigest) {
  const std::string text = "abc";
  EXPECT_EQ(sha256_hex(std::as_bytes(std::span<const char>(text.data(), text.size()))),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace lathe
