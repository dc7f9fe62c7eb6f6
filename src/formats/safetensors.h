// safetensors files: an 8-byte little-endian header length, a JSON header, the tensors' bytes.
//
//   {"__metadata__": {"format": "pt"}, "name": {"dtype": "F32", "shape": [2, 3],
//                                               "data_offsets": [0, 24]}, ...}
//
// Offsets count from the end of the header. As in the reference implementation, tensors must cover
// the data area exactly: no overlap, no hole, nothing behind the last one. So a truncated download
// is seen at open, and no byte has two meanings. Alignment is not promised by the format: see
// aligned().
// Source: huggingface/safetensors, "Format" section of its README (0.4 and later).
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mmap_file.h"
#include "tensor/tensor.h"

namespace lathe {

// The reference's limit; a header of a real model has some 100 bytes a tensor.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr std::size_t kMaxSafetensorsRank = 16;

struct SafetensorsTensor {
  std::string name;
  TensorView view;  // borrows the file's bytes
};

struct SafetensorsContent {
  std::vector<SafetensorsTensor> tensors;  // in the order of their bytes
  std::vector<std::pair<std::string, std::string>> metadata;
};

// Parses and checks a whole file that lies in memory. Throws kCorruptData naming `what`, the tensor
// and the value; kUnsupported for a dtype that lathe does not know.
SafetensorsContent parse_safetensors(std::span<const std::byte> file, const std::string& what);

// Whether the view's data may be read as its dtype. Writers pad the header and sort by element
// size, but nothing forces them to.
bool aligned(const TensorView& view);

// convert() for a view that may be misaligned.
Tensor load_dense(const TensorView& view, DType dtype);

// One mapped file.
class SafetensorsFile {
 public:
  // Throws what MmapFile and parse_safetensors throw.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<SafetensorsTensor>& tensors() const { return content_.tensors; }
  const std::vector<std::pair<std::string, std::string>>& metadata() const {
    return content_.metadata;
  }
  // nullptr when there is none.
  const TensorView* find(const std::string& name) const;
  // Throws kNotFound naming the file.
  const TensorView& at(const std::string& name) const;
  void release_pages() const { file_.release_pages(); }

 private:
  MmapFile file_;
  SafetensorsContent content_;
  std::unordered_map<std::string, std::size_t> index_;
};

// A model's weights: model.safetensors, or the shards that model.safetensors.index.json names. The
// index says which file holds a tensor; a tensor that it does not name does not exist.
class SafetensorsSet {
 public:
  // Throws kNotFound when the directory has neither file or a shard is missing; kCorruptData when
  // the index names a tensor that its shard does not have, or a file outside the directory.
  explicit SafetensorsSet(const std::string& directory);

  const TensorView* find(const std::string& name) const;
  // Every tensor with its view, sorted by name. The views live as long as the set.
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  std::vector<std::string> file_names() const;  // without the directory
  void release_pages() const;

 private:
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, TensorView> tensors_;
};

// The tensor -> file map of an index file's text. Throws kCorruptData.
std::vector<std::pair<std::string, std::string>> parse_safetensors_index(std::string_view text,
                                                                         const std::string& what);

}  // namespace lathe
