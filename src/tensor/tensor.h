// Tensor owns, TensorView borrows. Row-major, dense, on the host.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "tensor/buffer.h"
#include "tensor/dtype.h"

namespace lathe {

using Shape = std::vector<int64_t>;

// Product of the dimensions (1 for a scalar). Throws kCorruptData on a negative dimension or when
// it does not fit into int64.
int64_t num_elements(const Shape& shape);
std::string to_string(const Shape& shape);  // "[2, 3]"

struct TensorView {
  DType dtype = DType::kF32;
  Shape shape;
  const std::byte* data = nullptr;

  int64_t num_elements() const { return lathe::num_elements(shape); }
  int64_t num_bytes() const { return num_elements() * dtype_size(dtype); }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data);
  }
};

class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, Shape shape);  // uninitialised

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int64_t i) const { return shape_[static_cast<std::size_t>(i)]; }
  int64_t num_elements() const { return lathe::num_elements(shape_); }
  int64_t num_bytes() const { return num_elements() * dtype_size(dtype_); }
  bool empty() const { return buffer_.size() == 0; }
  std::byte* data() { return buffer_.data(); }
  const std::byte* data() const { return buffer_.data(); }
  template <typename T>
  T* as() {
    return buffer_.as<T>();
  }
  template <typename T>
  const T* as() const {
    return buffer_.as<T>();
  }
  TensorView view() const { return {dtype_, shape_, buffer_.data()}; }
  Tensor clone() const;
  void reshape(Shape shape);  // same number of elements, or kInvalidArgument

 private:
  DType dtype_ = DType::kF32;
  Shape shape_ = {0};
  Buffer buffer_;
};

// Converts between F64, F32, F16, BF16 (any to any of F32, F16, BF16), element by element, nearest
// even. Throws kUnsupported for the others.
Tensor convert(const TensorView& from, DType to);

}  // namespace lathe
