// Writes safetensors files.
//
//   8 bytes   length of the header, little-endian
//   header    JSON: {"__metadata__": {"format": "pt"}, NAME: {"dtype", "shape", "data_offsets"},
//   ...},
//             padded with spaces so that the data begin at a multiple of 64 bytes
//   data      the tensors without gaps (readers reject gaps)
//
// All tensors are declared first, so the header is final before the first tensor is written and the
// tensors themselves stream through: memory is what the caller holds. Inside the file they are
// ordered by element size, largest first, then as declared; so each one is aligned to its element.
// Equal declarations and data give equal bytes. Files are AtomicFiles: whole or absent.
// Source: the format's documentation, https://github.com/huggingface/safetensors.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "tensor/tensor.h"

namespace lathe {

struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;  // {} is a scalar; a dimension may be 0

  int64_t num_bytes() const { return num_elements(shape) * dtype_size(dtype); }
};

// Keys and values of the header's "__metadata__". Some loaders insist on "format": "pt".
using SafetensorsMetadata = std::vector<std::pair<std::string, std::string>>;

class SafetensorsWriter {
 public:
  // Writes the header. Throws kInvalidArgument when a name is empty, reserved or there twice; kIo
  // when the file cannot be written or its disk has less room than the whole file needs.
  SafetensorsWriter(const std::string& path, std::vector<TensorSpec> tensors,
                    const SafetensorsMetadata& metadata = {{"format", "pt"}});

  // Writes one tensor, in any order. dtype and shape must be the declared ones (kInvalidArgument).
  void write(const std::string& name, const TensorView& tensor);
  // Writes the next bytes of a tensor that comes in pieces. Throws kInvalidArgument for more bytes
  // than declared.
  void append(const std::string& name, std::span<const std::byte> bytes);

  bool complete() const { return bytes_missing_ == 0; }
  int64_t file_bytes() const { return file_bytes_; }
  // Makes the file appear. Throws kInvalidArgument naming a tensor that is not fully written; kIo.
  void commit();

 private:
  struct Slot {
    TensorSpec spec;
    int64_t offset = 0;   // in the file
    int64_t written = 0;  // bytes
  };
  Slot& slot(const std::string& name);

  std::string path_;
  std::map<std::string, Slot> slots_;
  int64_t file_bytes_ = 0;
  int64_t bytes_missing_ = 0;
  std::unique_ptr<AtomicFile> file_;
};

// The tensors of a model in a directory: model.safetensors, or model-00001-of-0000N.safetensors and
// model.safetensors.index.json when they exceed max_shard_bytes. A shard appears when its last
// tensor is written; the index, which makes the shards a model, comes last.
class ShardedSafetensorsWriter {
 public:
  // From here until finish() the directory is not a whole model: a manifest, an index and a
  // model.safetensors of an earlier run are removed. The directory must exist. Tensors are put into
  // shards in the order of declaration. Throws as SafetensorsWriter does, and kIo when the disk has
  // less room than all shards need.
  ShardedSafetensorsWriter(const std::string& directory, const std::vector<TensorSpec>& tensors,
                           int64_t max_shard_bytes = int64_t{5'000'000'000});

  // As SafetensorsWriter. Writing in the order of declaration keeps one file open at a time.
  void write(const std::string& name, const TensorView& tensor);
  void append(const std::string& name, std::span<const std::byte> bytes);
  // Throws kInvalidArgument naming a tensor that is not fully written.
  void finish();
  int64_t num_shards() const { return static_cast<int64_t>(shards_.size()); }

 private:
  struct Shard {
    std::string file_name;
    std::vector<TensorSpec> tensors;
    std::unique_ptr<SafetensorsWriter> writer;  // while some, but not all, is written
    bool done = false;
  };
  Shard& shard_of(const std::string& tensor_name);
  void commit_if_complete(Shard& shard);

  std::string directory_;
  std::vector<Shard> shards_;
  std::map<std::string, std::size_t> shard_idx_of_;  // by tensor name
};

// The text of model.safetensors.index.json. `total_bytes`: of the tensors, without headers.
std::string safetensors_index(const std::map<std::string, std::string>& file_of_tensor,
                              int64_t total_bytes);

}  // namespace lathe
