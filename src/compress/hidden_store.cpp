#include "compress/hidden_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

#include "base/error.h"

namespace lathe {

HiddenStore::HiddenStore(std::string directory, std::vector<int64_t> lengths, int64_t hidden_size,
                         Communicator* ranks)
    : directory_(std::move(directory)),
      lengths_(std::move(lengths)),
      hidden_size_(hidden_size),
      ranks_(ranks != nullptr ? ranks : &solo_) {
  offsets_.push_back(0);
  for (const int64_t length : lengths_) offsets_.push_back(offsets_.back() + length);
  try {
    if (leads()) open_files();
    ranks_->barrier();
    if (!leads()) open_files();
    if (ranks_->size() > 1) check_shared();
  } catch (...) {
    for (const int fd : fds_) {
      if (fd >= 0) ::close(fd);
    }
    throw;
  }
}

HiddenStore::~HiddenStore() {
  for (const int fd : fds_) ::close(fd);
}

void HiddenStore::open_files() {
  for (int i = 0; i < 2; ++i) {
    fds_[i] = ::open(path(i).c_str(), O_RDWR | O_CLOEXEC | (leads() ? O_CREAT : 0), 0644);
    if (fds_[i] < 0) {
      const int error = errno;
      fail(ErrorCode::kIo, "opening ", path(i), ": ", std::strerror(error),
           leads() ? "" : "; ranks need the output on a file system that all of them see");
    }
  }
}

// Another machine may have files of that name of its own: a number that rank 0 leaves behind the
// mark must be there for the others.
void HiddenStore::check_shared() {
  uint64_t number = std::random_device()();
  broadcast_value(*ranks_, 0, number);
  const int64_t offset = data_bytes() + static_cast<int64_t>(sizeof(int64_t));
  if (leads()) {
    if (::lseek(fds_[0], 0, SEEK_END) < offset) mark(0, -1);  // a new file, not one of layer 0
    write_bytes(0, offset, &number, sizeof number);
    sync(0);
  }
  ranks_->barrier();
  uint64_t seen = 0;
  if (::pread(fds_[0], &seen, sizeof seen, offset) != static_cast<ssize_t>(sizeof seen) ||
      seen != number) {
    fail(ErrorCode::kIo, path(0), " is not the file of that name that ", rank_name(*ranks_, 0),
         " writes; ranks need the output on a file system that all of them see");
  }
}

std::string HiddenStore::path(int64_t layer) const {
  return str(directory_, "/calibration.", layer % 2);
}

int64_t HiddenStore::data_bytes() const {
  return offsets_.back() * hidden_size_ * static_cast<int64_t>(sizeof(float));
}

void HiddenStore::read(int64_t layer, int64_t first, int64_t count, float* out) const {
  const int64_t row_bytes = hidden_size_ * static_cast<int64_t>(sizeof(float));
  int64_t offset = offsets_[static_cast<std::size_t>(first)] * row_bytes;
  int64_t left = offsets_[static_cast<std::size_t>(first + count)] * row_bytes - offset;
  char* to = reinterpret_cast<char*>(out);
  while (left > 0) {
    const ssize_t n = ::pread(fds_[layer % 2], to, static_cast<std::size_t>(left), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(ErrorCode::kIo, "reading ", path(layer), ": ", std::strerror(errno));
    if (n == 0) {
      fail(ErrorCode::kCorruptData, path(layer), " ends at byte ", offset,
           "; start again without --resume");
    }
    to += n;
    offset += n;
    left -= n;
  }
}

void HiddenStore::write_bytes(int64_t layer, int64_t offset, const void* data, int64_t size) {
  const char* from = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = ::pwrite(fds_[layer % 2], from, static_cast<std::size_t>(size), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(ErrorCode::kIo, "writing ", path(layer), ": ", std::strerror(errno));
    from += n;
    offset += n;
    size -= n;
  }
}

void HiddenStore::write(int64_t layer, int64_t first, int64_t count, const float* values) {
  const int64_t row_bytes = hidden_size_ * static_cast<int64_t>(sizeof(float));
  const int64_t begin = offsets_[static_cast<std::size_t>(first)] * row_bytes;
  const int64_t end = offsets_[static_cast<std::size_t>(first + count)] * row_bytes;
  write_bytes(layer, begin, values, end - begin);
}

void HiddenStore::sync(int64_t layer) {
  if (::fdatasync(fds_[layer % 2]) != 0) {
    fail(ErrorCode::kIo, "syncing ", path(layer), ": ", std::strerror(errno));
  }
}

void HiddenStore::mark(int64_t layer, int64_t value) {
  write_bytes(layer, data_bytes(), &value, sizeof value);
  sync(layer);
}

void HiddenStore::begin(int64_t layer) {
  if (leads()) mark(layer, -1);
  ranks_->barrier();  // no data before the mark says that it is not whole
}

void HiddenStore::finish(int64_t layer) {
  sync(layer);  // the mark must not reach the disk before the data
  ranks_->barrier();
  if (leads()) mark(layer, layer);
}

bool HiddenStore::complete(int64_t layer) const {
  int64_t value = -1;
  const ssize_t n = ::pread(fds_[layer % 2], &value, sizeof value, data_bytes());
  return n == static_cast<ssize_t>(sizeof value) && value == layer;
}

void HiddenStore::remove() {
  if (!leads()) return;
  for (int i = 0; i < 2; ++i) ::unlink(path(i).c_str());
}

}  // namespace lathe
