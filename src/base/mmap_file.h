// A whole file mapped read-only. The mapping lives as long as the object; pages are read on first
// touch and shared between processes. A file that shrinks while mapped raises SIGBUS on touch: do
// not truncate model files in use (writers in this project rename, never truncate).
#pragma once
#include <cstddef>
#include <span>
#include <string>

namespace lathe {

class MmapFile {
 public:
  MmapFile() = default;
  // Throws kNotFound when the file does not exist, kIo when it cannot be mapped. An empty file maps
  // to an empty span.
  explicit MmapFile(const std::string& path);
  ~MmapFile();
  MmapFile(MmapFile&& other) noexcept;
  MmapFile& operator=(MmapFile&& other) noexcept;
  MmapFile(const MmapFile&) = delete;
  MmapFile& operator=(const MmapFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  // Gives the mapped pages back to the system; a later touch reads them again. For streaming
  // through a file that is larger than memory.
  void release_pages() const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace lathe
