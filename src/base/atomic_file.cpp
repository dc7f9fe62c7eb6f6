#include "base/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/mmap_file.h"

namespace lathe {
namespace {

void sync_directory_of(const std::string& path) {
  std::string directory = std::filesystem::path(path).parent_path().string();
  if (directory.empty()) directory = ".";
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;  // the rename itself has happened; not every file system opens directories
  ::fsync(fd);
  ::close(fd);
}

// What a pipe gives until it ends.
std::string read_stream(const std::string& path, int64_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(ErrorCode::kIo, "cannot open '", path, "': ", std::strerror(errno));
  std::string content;
  std::string piece(std::size_t{1} << 16, '\0');
  for (;;) {
    const ssize_t count = ::read(fd, piece.data(), piece.size());
    if (count < 0 && errno == EINTR) continue;
    const int read_errno = errno;
    if (count <= 0) ::close(fd);
    if (count < 0) {
      fail(ErrorCode::kIo, "cannot read '", path, "': ", std::strerror(read_errno));
    }
    if (count == 0) return content;
    content.append(piece, 0, static_cast<std::size_t>(count));
    if (static_cast<int64_t>(content.size()) > max_bytes) {
      ::close(fd);
      fail(ErrorCode::kCorruptData, "'", path, "' has more than ", max_bytes,
           " bytes; so many are accepted");
    }
  }
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(path), temporary_path_(path + ".partial") {
  fd_ = ::open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail(ErrorCode::kIo, "cannot write '", path_, "': ", std::strerror(errno));
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_path_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      fail(ErrorCode::kIo, "cannot write '", path_, "': ", std::strerror(errno));
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    bytes_written_ += written;
  }
}

void AtomicFile::write(std::string_view text) {
  write(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

void AtomicFile::write_at(int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd_, bytes.data(), bytes.size(), offset);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail(ErrorCode::kIo, "cannot write '", path_, "': ", std::strerror(errno));
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += written;
  }
}

void AtomicFile::commit() {
  // close() can report a delayed write error too (NFS, quota), so it counts like fsync().
  const bool synced = ::fsync(fd_) == 0;
  const int sync_errno = errno;
  const bool closed = ::close(fd_) == 0;
  const int close_errno = errno;
  fd_ = -1;
  if (!synced || !closed) {
    ::unlink(temporary_path_.c_str());
    fail(ErrorCode::kIo, "cannot write '", path_,
         "': ", std::strerror(synced ? close_errno : sync_errno));
  }
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    const int rename_errno = errno;
    ::unlink(temporary_path_.c_str());
    fail(ErrorCode::kIo, "cannot rename to '", path_, "': ", std::strerror(rename_errno));
  }
  sync_directory_of(path_);
}

void write_file_atomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

std::string read_file(const std::string& path, int64_t max_bytes) {
  std::error_code error;
  if (std::filesystem::is_fifo(path, error)) return read_stream(path, max_bytes);
  const MmapFile file(path);
  const auto bytes = file.bytes();
  if (static_cast<int64_t>(bytes.size()) > max_bytes) {
    fail(ErrorCode::kCorruptData, "'", path, "' has ", bytes.size(), " bytes; at most ", max_bytes,
         " are accepted");
  }
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace lathe
