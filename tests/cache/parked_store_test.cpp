#include "cache/parked_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

class ParkedStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "parked_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }

  ParkedStore open(int64_t memory_bytes, int64_t disk_bytes) const {
    return ParkedStore({.memory_bytes = memory_bytes,
                        .directory = disk_bytes > 0 ? directory_ : "",
                        .disk_bytes = disk_bytes});
  }
  std::vector<fs::path> files() const {
    std::vector<fs::path> paths;
    for (const auto& entry : fs::directory_iterator(directory_)) paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    return paths;
  }
  std::string directory_;
};

ParkedKey key_of(int32_t i) { return parked_key(parked_root("model"), {&i, 1}); }
std::vector<std::byte> piece_of(int32_t i, std::size_t size = 1000) {
  std::vector<std::byte> piece(size);
  for (std::size_t j = 0; j < size; ++j) {
    piece[j] = static_cast<std::byte>((static_cast<std::size_t>(i) * 31 + j * 7) % 251);
  }
  return piece;
}
bool holds(ParkedStore& store, int32_t i, std::size_t size = 1000) {
  const auto found = store.get(key_of(i));
  if (!found) return false;
  const auto expected = piece_of(i, size);
  EXPECT_TRUE(std::equal(found->begin(), found->end(), expected.begin(), expected.end())) << i;
  return true;
}

TEST_F(ParkedStoreTest, KeysAreChained) {
  const std::vector<int32_t> a = {1, 2}, b = {3}, c = {1, 2, 3};
  const ParkedKey root = parked_root("m");
  EXPECT_NE(root, parked_root("n"));
  EXPECT_NE(parked_key(root, a), parked_key(root, b));
  EXPECT_NE(parked_key(parked_key(root, a), b), parked_key(parked_key(root, b), a));
  EXPECT_NE(parked_key(parked_key(root, a), b), parked_key(root, c));
  EXPECT_EQ(parked_key(root, a), parked_key(parked_root("m"), a));
}

TEST_F(ParkedStoreTest, TheLeastRecentlyUsedPieceGoesFirst) {
  ParkedStore store = open(3000, 0);
  for (int32_t i = 0; i < 3; ++i) store.put(key_of(i), piece_of(i));
  EXPECT_TRUE(holds(store, 0));  // now the newest
  store.put(key_of(3), piece_of(3));
  EXPECT_FALSE(holds(store, 1));
  for (const int32_t i : {0, 2, 3}) EXPECT_TRUE(holds(store, i));
  EXPECT_EQ(store.stats().memory_bytes, 3000);
  EXPECT_EQ(store.stats().memory_pieces, 3);
  EXPECT_EQ(store.stats().num_evicted, 1);
  EXPECT_EQ(store.stats().num_hits, 4);
  EXPECT_EQ(store.stats().num_misses, 1);
  store.put(key_of(9), piece_of(9, 3001));  // never fits
  EXPECT_FALSE(store.contains(key_of(9)));
  EXPECT_EQ(store.stats().memory_pieces, 3);
}

TEST_F(ParkedStoreTest, DiskSurvivesAndIsBounded) {
  const int64_t file_bytes = [&] {
    ParkedStore store = open(10000, 1 << 20);
    for (int32_t i = 0; i < 5; ++i) store.put(key_of(i), piece_of(i));
    EXPECT_EQ(store.stats().disk_pieces, 5);
    return store.stats().disk_bytes / 5;
  }();
  // Times of files are coarse.
  for (int32_t i = 0; i < 5; ++i) {
    fs::last_write_time(directory_ + "/" + key_of(i) + ".kv",
                        fs::file_time_type::clock::now() - std::chrono::seconds(20 - i));
  }
  EXPECT_GT(file_bytes, 1000);
  {
    ParkedStore store = open(10000, 1 << 20);
    EXPECT_EQ(store.stats().disk_pieces, 5);
    EXPECT_EQ(store.stats().memory_pieces, 0);
    EXPECT_TRUE(holds(store, 0));
    EXPECT_EQ(store.stats().num_disk_hits, 1);
    EXPECT_TRUE(holds(store, 0));
    EXPECT_EQ(store.stats().num_disk_hits, 1);  // from memory now
  }
  // Half of it: the most recently used stay, in whatever process that was.
  ParkedStore store = open(0, 3 * file_bytes);
  EXPECT_EQ(store.stats().disk_pieces, 3);
  EXPECT_TRUE(holds(store, 0));
  EXPECT_TRUE(holds(store, 4));
  EXPECT_FALSE(store.contains(key_of(1)));
  store.put(key_of(7), piece_of(7));
  EXPECT_EQ(files().size(), 3u);
  EXPECT_FALSE(store.contains(key_of(3)));
  EXPECT_TRUE(holds(store, 0));
}

TEST_F(ParkedStoreTest, WithoutMemoryEverythingComesFromDisk) {
  ParkedStore store = open(0, 1 << 20);
  store.put(key_of(1), piece_of(1));
  EXPECT_TRUE(holds(store, 1));
  EXPECT_TRUE(holds(store, 1));
  EXPECT_EQ(store.stats().memory_bytes, 0);
  EXPECT_EQ(store.stats().num_disk_hits, 2);
}

TEST_F(ParkedStoreTest, EveryFlippedBitAndEveryCutLosesThatPieceOnly) {
  constexpr std::size_t kSize = 200;
  std::string good;
  const std::string path = directory_ + "/" + key_of(1) + ".kv";
  {
    ParkedStore store = open(0, 1 << 20);
    store.put(key_of(1), piece_of(1, kSize));
    store.put(key_of(2), piece_of(2, kSize));
    std::ifstream in(path, std::ios::binary);
    good.assign(std::istreambuf_iterator<char>(in), {});
  }
  ASSERT_GT(good.size(), kSize);
  const auto with_file = [&](const std::string& content) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
    ParkedStore store = open(0, 1 << 20);
    const bool found = store.get(key_of(1)).has_value();
    EXPECT_TRUE(holds(store, 2, kSize));
    EXPECT_EQ(store.stats().num_corrupt, found ? 0 : 1);
    EXPECT_EQ(fs::exists(path), found);  // a bad file is removed
    EXPECT_EQ(store.stats().disk_pieces, found ? 2 : 1);
    return found;
  };
  EXPECT_TRUE(with_file(good));
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    EXPECT_FALSE(with_file(bad)) << "byte " << i;
  }
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, good.size() / 2, good.size() - 1}) {
    EXPECT_FALSE(with_file(good.substr(0, size))) << size;
  }
  EXPECT_FALSE(with_file(good + "x"));
}

TEST_F(ParkedStoreTest, WhatIsNoPieceIsLeftAloneOrNotBelieved) {
  std::ofstream(directory_ + "/README") << "mine";
  std::ofstream(directory_ + "/" + std::string(64, 'g') + ".kv") << "no key";
  ASSERT_EQ(::symlink("/etc/passwd", (directory_ + "/" + key_of(5) + ".kv").c_str()), 0);
  fs::create_directory(directory_ + "/" + key_of(6) + ".kv");
  // A piece under another piece's name.
  {
    ParkedStore store = open(0, 1 << 20);
    store.put(key_of(1), piece_of(1));
  }
  fs::rename(directory_ + "/" + key_of(1) + ".kv", directory_ + "/" + key_of(2) + ".kv");
  ParkedStore store = open(0, 1 << 20);
  EXPECT_EQ(store.stats().disk_pieces, 1);
  for (const int32_t i : {1, 2, 5, 6}) EXPECT_FALSE(holds(store, i)) << i;
  EXPECT_EQ(store.stats().num_corrupt, 1);
  EXPECT_TRUE(fs::exists(directory_ + "/README"));
  // Files that vanish under the store.
  store.put(key_of(3), piece_of(3));
  fs::remove(directory_ + "/" + key_of(3) + ".kv");
  EXPECT_FALSE(holds(store, 3));
  // A directory that cannot be written to any more.
  fs::remove_all(directory_);
  store.put(key_of(4), piece_of(4));
  EXPECT_EQ(store.stats().num_errors, 1);
  EXPECT_FALSE(holds(store, 4));
}

TEST_F(ParkedStoreTest, RefusesADirectoryThatCannotBe) {
  std::ofstream(directory_ + "/file") << "x";
  try {
    const ParkedStore store(
        {.memory_bytes = 0, .directory = directory_ + "/file", .disk_bytes = 1000});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(error.what()).find("/file"), std::string::npos) << error.what();
  }
  EXPECT_THROW(ParkedStore({.memory_bytes = -1, .directory = "", .disk_bytes = 0}), Error);
}

// kill -9 in the middle of writing, again and again: what is there afterwards is whole.
TEST_F(ParkedStoreTest, AKilledWriterLeavesWholePiecesOnly) {
  for (int round = 0; round < 8; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ParkedStore store = open(0, int64_t{1} << 30);
      for (int32_t i = 0;; ++i) store.put(key_of(i % 400), piece_of(i % 400, 100000));
    }
    ::usleep(3000 + 2500 * static_cast<useconds_t>(round));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    ParkedStore store = open(0, int64_t{1} << 30);
    int64_t num_found = 0;
    for (int32_t i = 0; i < 400; ++i) num_found += holds(store, i, 100000);
    EXPECT_EQ(store.stats().num_corrupt, 0);
    EXPECT_EQ(num_found, store.stats().disk_pieces);
  }
  // What the killed ones were writing is gone at once: nobody holds its lock.
  const ParkedStore store = open(0, int64_t{1} << 30);
  for (const fs::path& path : files()) EXPECT_TRUE(path.string().ends_with(".kv")) << path;
}

TEST_F(ParkedStoreTest, WhatAnotherProcessIsWritingStays) {
  const std::string name = directory_ + "/" + key_of(1) + ".kv.1.partial";
  const int fd = ::open(name.c_str(), O_WRONLY | O_CREAT, 0600);
  ASSERT_EQ(::flock(fd, LOCK_EX | LOCK_NB), 0);
  open(0, 10000);
  EXPECT_EQ(files().size(), 1u);
  ::close(fd);
  open(0, 10000);
  EXPECT_TRUE(files().empty());
}

// Looked at again and again, while the writer is stopped in whatever it was at.
TEST_F(ParkedStoreTest, TheDirectoryIsNeverOverItsSize) {
  constexpr int64_t kLimit = 1'000'000;
  const pid_t child = ::fork();
  if (child == 0) {
    ParkedStore store = open(0, kLimit);
    for (int32_t i = 0;; ++i) store.put(key_of(i), piece_of(i, 240'000));
  }
  ASSERT_GT(child, 0);
  std::uintmax_t most = 0;
  for (int look = 0; look < 100; ++look) {
    ::usleep(1000 + 137 * static_cast<unsigned>(look % 29));
    ::kill(child, SIGSTOP);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
    ASSERT_TRUE(WIFSTOPPED(status));
    std::uintmax_t sum = 0;
    for (const fs::path& path : files()) sum += fs::file_size(path);
    most = std::max(most, sum);
    ::kill(child, SIGCONT);
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_GT(most, kLimit / 2);
  EXPECT_LE(most, kLimit);
}

}  // namespace
}  // namespace lathe
