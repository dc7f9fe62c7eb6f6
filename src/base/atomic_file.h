// Files that appear whole or not at all: written under a temporary name beside the target, synced,
// renamed, and the directory synced. A crash leaves the old file, or none, never half of one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace lathe {

class AtomicFile {
 public:
  // Opens `path` + ".partial" for writing, replacing a left-over one. Throws kIo.
  explicit AtomicFile(const std::string& path);
  // Without commit() the temporary file is removed and the target is left as it was.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Appends. Throws kIo naming the target and the reason, for example "No space left on device".
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Writes at a position of the file; gaps read as zeros. Does not move the place of write().
  void write_at(int64_t offset, std::span<const std::byte> bytes);
  int64_t bytes_written() const { return bytes_written_; }
  // Syncs and renames over the target. Throws kIo.
  void commit();

 private:
  std::string path_;
  std::string temporary_path_;
  int fd_ = -1;
  int64_t bytes_written_ = 0;
};

// The common case: the whole content at once.
void write_file_atomically(const std::string& path, std::string_view content);

// Whole file as a string; refuses more than max_bytes (kCorruptData) before reading it. For small
// text files; model data is mapped (MmapFile).
std::string read_file(const std::string& path, int64_t max_bytes = int64_t{1} << 30);

}  // namespace lathe
