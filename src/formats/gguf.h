// GGUF files, versions 2 and 3, little-endian:
//
//   "GGUF" | version u32 | tensor count u64 | metadata count u64
//   metadata: key (length u64, bytes) | type u32 | value
//   tensor infos: name | rank u32 | dimensions u64[rank], innermost first | type u32 | offset u64
//   padding to general.alignment (32), then the tensors' data; offsets count from here
//
// Every length and count is checked against the bytes that are left before it is used, so a hostile
// file costs no more memory than its own size. Source: ggml/docs/gguf.md.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/mmap_file.h"
#include "formats/gguf_dequant.h"
#include "tensor/tensor.h"

namespace lathe {

// Numbers as in the file.
enum class GgufType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

struct GgufArray {
  GgufType element = GgufType::kUint8;  // never kArray: arrays do not nest
  uint64_t count = 0;
  std::span<const std::byte> numbers;     // of a number or bool array, little-endian, unaligned
  std::vector<std::string_view> strings;  // of a string array
};

using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray>;

struct GgufTensor {
  std::string name;
  const GgmlTypeInfo* type = nullptr;
  Shape shape;                      // outermost first: [rows, cols]
  const std::byte* data = nullptr;  // any alignment
  int64_t num_bytes = 0;
};

struct GgufContent {
  uint32_t version = 0;
  std::map<std::string, GgufValue, std::less<>> metadata;  // borrows the file's bytes
  std::vector<GgufTensor> tensors;                         // in the file's order
};

// Parses and checks a whole file that lies in memory. Throws kCorruptData naming `what` and the key
// or tensor; kUnsupported for another version, byte order, or a tensor type that lathe does not
// read.
GgufContent parse_gguf(std::span<const std::byte> file, const std::string& what);

// A mapped file.
class GgufFile {
 public:
  explicit GgufFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<GgufTensor>& tensors() const { return content_.tensors; }
  const GgufTensor* find_tensor(const std::string& name) const;
  void release_pages() const { file_.release_pages(); }

  // Typed metadata. A missing key throws kCorruptData unless there is a fallback; so do another
  // type and a number outside [min, max], naming file, key and value. A fp32 number comes as the
  // double with the same shortest decimal: 1e-5f is 1e-5.
  bool has(std::string_view key) const;
  int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  int64_t integer_or(std::string_view key, int64_t fallback, int64_t min, int64_t max) const;
  double number(std::string_view key, double min, double max) const;
  double number_or(std::string_view key, double fallback, double min, double max) const;
  bool boolean_or(std::string_view key, bool fallback) const;
  std::string text(std::string_view key) const;
  std::string text_or(std::string_view key, const std::string& fallback) const;
  const std::vector<std::string_view>& strings(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;  // booleans count as 0 and 1
  std::vector<float> floats(std::string_view key) const;
  bool is_array(std::string_view key) const;

 private:
  const GgufValue* find(std::string_view key) const;
  const GgufValue& require(std::string_view key) const;
  [[noreturn]] void refuse(std::string_view key, const std::string& reason) const;

  MmapFile file_;
  GgufContent content_;
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace lathe
