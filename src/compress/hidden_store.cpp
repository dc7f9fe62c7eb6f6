#include "compress/hidden_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace lathe {

HiddenStore::HiddenStore(std::string directory, std::vector<int64_t> lengths, int64_t hidden_size)
    : directory_(std::move(directory)), lengths_(std::move(lengths)), hidden_size_(hidden_size) {
  offsets_.push_back(0);
  for (const int64_t length : lengths_) offsets_.push_back(offsets_.back() + length);
  for (int i = 0; i < 2; ++i) {
    fds_[i] = ::open(path(i).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fds_[i] < 0) {
      const int error = errno;
      if (i == 1) ::close(fds_[0]);
      fail(ErrorCode::kIo, "opening ", path(i), ": ", std::strerror(error));
    }
  }
}

HiddenStore::~HiddenStore() {
  for (const int fd : fds_) ::close(fd);
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

void HiddenStore::begin(int64_t layer) { mark(layer, -1); }

void HiddenStore::finish(int64_t layer) {
  sync(layer);  // the mark must not reach the disk before the data
  mark(layer, layer);
}

bool HiddenStore::complete(int64_t layer) const {
  int64_t value = -1;
  const ssize_t n = ::pread(fds_[layer % 2], &value, sizeof value, data_bytes());
  return n == static_cast<ssize_t>(sizeof value) && value == layer;
}

void HiddenStore::remove() {
  for (int i = 0; i < 2; ++i) ::unlink(path(i).c_str());
}

}  // namespace lathe
