#include "base/atomic_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <thread>

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

TEST(ReadFile, TakesAPipeToo) {
  const std::string path = scratch("pipe");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const std::string text(200000, 'x');  // more than a pipe holds
  const auto read_piped = [&](int64_t max_bytes) {
    std::thread writer([&] {
      // With a reader that leaves early, this fails; SIGPIPE is none of this test's business.
      signal(SIGPIPE, SIG_IGN);
      std::ofstream(path, std::ios::binary) << text;
    });
    std::string content;
    try {
      content = read_file(path, max_bytes);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruptData);
      content = "refused";
    }
    writer.join();
    return content;
  };
  EXPECT_EQ(read_piped(200000), text);
  EXPECT_EQ(read_piped(199999), "refused");
  std::filesystem::remove(path);
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
