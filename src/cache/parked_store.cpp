#include "cache/parked_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/sha256.h"

namespace lathe {
namespace {

constexpr char kMagic[8] = {'l', 'a', 't', 'h', 'e', 'k', 'v', '1'};
constexpr int64_t kDigits = 64;
constexpr const char* kSuffix = ".kv";
constexpr const char* kPartial = ".partial";
// Where files cannot be locked, one under its temporary name that nobody has touched for so long
// belongs to a dead process.
constexpr int64_t kStaleSeconds = 60;

// What a file begins with; integers as this machine (little-endian x86-64) has them.
struct FileHeader {
  char magic[8];
  char key[kDigits];
  char sha256[kDigits];  // of the piece, in hex
  int64_t piece_bytes;
};
constexpr auto kHeaderBytes = static_cast<int64_t>(sizeof(FileHeader));

std::span<const std::byte> bytes_of(const void* data, std::size_t size) {
  return {static_cast<const std::byte*>(data), size};
}

bool is_key(std::string_view text) {
  return static_cast<int64_t>(text.size()) == kDigits &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// Closes itself.
class File {
 public:
  File(const std::string& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0600)) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  // False when another process has it.
  bool lock() const { return ::flock(fd_, LOCK_EX | LOCK_NB) == 0; }

  bool write_all(std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return false;
      bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
    return true;
  }
  bool read_all(void* to, int64_t size) const {
    auto* out = static_cast<std::byte*>(to);
    while (size > 0) {
      const ssize_t count = ::read(fd_, out, static_cast<std::size_t>(size));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return false;
      out += count;
      size -= count;
    }
    return true;
  }

 private:
  int fd_;
};

// Whether the process that was writing this file is gone: the kernel has dropped its lock.
bool is_abandoned(const std::string& path, const struct stat& status) {
  if (::time(nullptr) - status.st_mtim.tv_sec > kStaleSeconds) return true;
  const File file(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  return file.is_open() && file.lock();
}

}  // namespace

ParkedKey parked_root(std::string_view fingerprint) {
  return sha256_hex(bytes_of(fingerprint.data(), fingerprint.size()));
}

ParkedKey parked_key(const ParkedKey& previous, std::span<const int32_t> tokens) {
  Sha256 sha;
  sha.update(bytes_of(previous.data(), previous.size()));
  sha.update(std::as_bytes(tokens));
  return sha.hex_digest();
}

ParkedStore::ParkedStore(const ParkedStoreOptions& options) : options_(options) {
  if (options.memory_bytes < 0 || options.disk_bytes < 0) {
    fail(ErrorCode::kInvalidArgument, "a store of ", options.memory_bytes, " bytes in memory and ",
         options.disk_bytes, " on disk");
  }
  if (!options_.directory.empty()) {
    with_context("prefix cache in " + options_.directory, [&] { open_directory(); });
  }
}

std::string ParkedStore::path_of(const ParkedKey& key) const {
  return options_.directory + "/" + key + kSuffix;
}

void ParkedStore::open_directory() {
  std::error_code error;
  std::filesystem::create_directories(options_.directory, error);
  if (::access(options_.directory.c_str(), R_OK | W_OK | X_OK) != 0) {
    fail(ErrorCode::kIo, std::strerror(errno), "; name a directory that can be written to");
  }
  DIR* directory = ::opendir(options_.directory.c_str());
  if (directory == nullptr) fail(ErrorCode::kIo, std::strerror(errno));
  struct Found {
    DiskPiece piece;
    timespec used = {};
  };
  std::vector<Found> found;
  while (const dirent* entry = ::readdir(directory)) {
    const std::string_view name = entry->d_name;
    const std::string path = options_.directory + "/" + std::string(name);
    struct stat status = {};
    if (::lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    if (!is_key(name.substr(0, std::min<std::size_t>(name.size(), kDigits)))) continue;
    if (name.substr(kDigits) == kSuffix) {
      found.push_back({{std::string(name.substr(0, kDigits)), status.st_size}, status.st_mtim});
    } else if (name.ends_with(kPartial) && is_abandoned(path, status)) {
      ::unlink(path.c_str());
    }
  }
  ::closedir(directory);
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return std::pair(a.used.tv_sec, a.used.tv_nsec) > std::pair(b.used.tv_sec, b.used.tv_nsec);
  });
  for (Found& file : found) {
    stats_.disk_bytes += file.piece.bytes;
    disk_.push_back(std::move(file.piece));
    on_disk_[disk_.back().key] = std::prev(disk_.end());
  }
  stats_.disk_pieces = static_cast<int64_t>(disk_.size());
  shrink_disk(options_.disk_bytes);
}

bool ParkedStore::contains(const ParkedKey& key) const {
  return in_memory_.contains(key) || on_disk_.contains(key);
}

std::optional<std::span<const std::byte>> ParkedStore::get(const ParkedKey& key) {
  if (const auto found = in_memory_.find(key); found != in_memory_.end()) {
    memory_.splice(memory_.begin(), memory_, found->second);
    ++stats_.num_hits;
    return memory_.front().bytes;
  }
  const auto found = on_disk_.find(key);
  if (found == on_disk_.end()) {
    ++stats_.num_misses;
    return std::nullopt;
  }
  if (!read_from_disk(key, loaded_)) {
    forget_on_disk(found->second);
    ++stats_.num_misses;
    return std::nullopt;
  }
  touch(key);
  ++stats_.num_hits;
  ++stats_.num_disk_hits;
  keep_in_memory(key, loaded_);
  return loaded_;
}

void ParkedStore::put(const ParkedKey& key, std::span<const std::byte> piece) {
  if (const auto found = in_memory_.find(key); found != in_memory_.end()) {
    memory_.splice(memory_.begin(), memory_, found->second);
  } else {
    keep_in_memory(key, piece);
  }
  if (options_.directory.empty()) return;
  if (const auto found = on_disk_.find(key); found != on_disk_.end()) {
    disk_.splice(disk_.begin(), disk_, found->second);
  } else {
    write_to_disk(key, piece);
  }
}

void ParkedStore::touch(const ParkedKey& key) {
  if (const auto found = in_memory_.find(key); found != in_memory_.end()) {
    memory_.splice(memory_.begin(), memory_, found->second);
  }
  if (const auto found = on_disk_.find(key); found != on_disk_.end()) {
    disk_.splice(disk_.begin(), disk_, found->second);
    ::utimensat(AT_FDCWD, path_of(key).c_str(), nullptr, AT_SYMLINK_NOFOLLOW);  // used now
  }
}

// --- memory -------------------------------------------------------------------------------------

void ParkedStore::keep_in_memory(const ParkedKey& key, std::span<const std::byte> piece) {
  if (static_cast<int64_t>(piece.size()) > options_.memory_bytes) {
    if (!on_disk_.contains(key) && options_.directory.empty()) ++stats_.num_evicted;
    return;
  }
  memory_.push_front({key, {piece.begin(), piece.end()}});
  in_memory_[key] = memory_.begin();
  stats_.memory_bytes += static_cast<int64_t>(piece.size());
  shrink_memory();
  stats_.memory_pieces = static_cast<int64_t>(memory_.size());
}

void ParkedStore::shrink_memory() {
  while (stats_.memory_bytes > options_.memory_bytes) {
    const MemoryPiece& last = memory_.back();
    stats_.memory_bytes -= static_cast<int64_t>(last.bytes.size());
    in_memory_.erase(last.key);
    if (options_.directory.empty()) ++stats_.num_evicted;
    memory_.pop_back();
  }
}

// --- disk ---------------------------------------------------------------------------------------

void ParkedStore::write_to_disk(const ParkedKey& key, std::span<const std::byte> piece) {
  const int64_t file_bytes = kHeaderBytes + static_cast<int64_t>(piece.size());
  if (file_bytes > options_.disk_bytes) return;
  shrink_disk(options_.disk_bytes - file_bytes);
  FileHeader header = {};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::memcpy(header.key, key.data(), sizeof header.key);
  const std::string digest = sha256_hex(piece);
  std::memcpy(header.sha256, digest.data(), sizeof header.sha256);
  header.piece_bytes = static_cast<int64_t>(piece.size());
  const std::string path = path_of(key);
  const std::string temporary = str(path, ".", ::getpid(), kPartial);
  bool is_written = false;
  {
    const File file(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
    if (file.is_open()) file.lock();  // nobody else has this name
    is_written = file.is_open() && file.write_all(bytes_of(&header, sizeof header)) &&
                 file.write_all(piece) && ::rename(temporary.c_str(), path.c_str()) == 0;
  }
  if (!is_written) {
    ::unlink(temporary.c_str());
    ++stats_.num_errors;
    return;
  }
  disk_.push_front({key, file_bytes});
  on_disk_[key] = disk_.begin();
  stats_.disk_bytes += file_bytes;
  stats_.disk_pieces = static_cast<int64_t>(disk_.size());
}

// False, and the file is gone or not worth keeping, when it is not what its name says.
bool ParkedStore::read_from_disk(const ParkedKey& key, std::vector<std::byte>& piece) {
  const File file(path_of(key), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  struct stat status = {};
  if (!file.is_open() || ::fstat(file.fd(), &status) != 0) {
    if (errno != ENOENT) ++stats_.num_errors;  // another process may have evicted it
    return false;
  }
  FileHeader header = {};
  // The size is checked before anything is allocated for it.
  if (!S_ISREG(status.st_mode) || !file.read_all(&header, kHeaderBytes) ||
      std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 ||
      std::memcmp(header.key, key.data(), sizeof header.key) != 0 || header.piece_bytes < 0 ||
      header.piece_bytes != status.st_size - kHeaderBytes ||
      header.piece_bytes > options_.disk_bytes) {
    ++stats_.num_corrupt;
    return false;
  }
  piece.resize(static_cast<std::size_t>(header.piece_bytes));
  if (!file.read_all(piece.data(), header.piece_bytes) ||
      sha256_hex(piece) != std::string_view(header.sha256, kDigits)) {
    ++stats_.num_corrupt;
    return false;
  }
  return true;
}

void ParkedStore::forget_on_disk(DiskList::iterator piece) {
  ::unlink(path_of(piece->key).c_str());
  stats_.disk_bytes -= piece->bytes;
  on_disk_.erase(piece->key);
  disk_.erase(piece);
  stats_.disk_pieces = static_cast<int64_t>(disk_.size());
}

void ParkedStore::shrink_disk(int64_t max_bytes) {
  while (stats_.disk_bytes > max_bytes) {
    if (!in_memory_.contains(disk_.back().key)) ++stats_.num_evicted;
    forget_on_disk(std::prev(disk_.end()));
  }
}

}  // namespace lathe
