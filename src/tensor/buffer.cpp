#include "tensor/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace lathe {
namespace {
constexpr int64_t kHugePage = int64_t{2} << 20;
}

Buffer::Buffer(int64_t num_bytes) : size_(num_bytes) {
  if (num_bytes < 0) fail(ErrorCode::kInvalidArgument, "buffer of ", num_bytes, " bytes");
  if (num_bytes == 0) return;
  const int64_t alignment = num_bytes >= kHugePage ? kHugePage : 64;
  const int64_t padded = (num_bytes + alignment - 1) / alignment * alignment;
  data_ = static_cast<std::byte*>(
      std::aligned_alloc(static_cast<std::size_t>(alignment), static_cast<std::size_t>(padded)));
  if (data_ == nullptr) {
    fail(ErrorCode::kOutOfMemory, "cannot allocate ", num_bytes, " bytes of memory");
  }
  if (alignment == kHugePage) madvise(data_, static_cast<std::size_t>(padded), MADV_HUGEPAGE);
}

Buffer::~Buffer() { std::free(data_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    std::free(data_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

Buffer Buffer::clone() const {
  Buffer copy(size_);
  if (size_ > 0) std::memcpy(copy.data_, data_, static_cast<std::size_t>(size_));
  return copy;
}

void Buffer::reserve(int64_t num_bytes) {
  if (num_bytes > size_) *this = Buffer(num_bytes);
}

}  // namespace lathe
