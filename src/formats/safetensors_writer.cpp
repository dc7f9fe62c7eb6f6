#include "formats/safetensors_writer.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "formats/manifest.h"

namespace lathe {
namespace {

// Where the data begin in the file: a cache line, so that a mapped file gives aligned loads to the
// tensors of element sizes that divide it.
constexpr int64_t kDataAlignment = 64;

constexpr const char* kSingleFileName = "model.safetensors";
constexpr const char* kIndexFileName = "model.safetensors.index.json";

// Fails early, before hours of work, and in one sentence. Writing may still hit a full disk: others
// write too, and not every file system tells.
void require_room(const std::string& path, const std::string& directory, int64_t bytes) {
  std::error_code error;
  const auto space =
      std::filesystem::space(directory.empty() ? std::string(".") : directory, error);
  if (error || static_cast<int64_t>(space.available) < 0) return;
  if (static_cast<int64_t>(space.available) < bytes) {
    fail(ErrorCode::kIo, "cannot write '", path, "': it needs ",
         format_bytes(static_cast<double>(bytes)), ", the disk has ",
         format_bytes(static_cast<double>(space.available)), " free");
  }
}

std::string shard_name(std::size_t shard_idx, std::size_t num_shards) {
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", shard_idx + 1, num_shards);
  return name;
}

// model-00001-of-00002.safetensors, whatever the two numbers.
bool is_shard_name(const std::string& name) {
  std::size_t shard_idx = 0;
  std::size_t num_shards = 0;
  return std::sscanf(name.c_str(), "model-%5zu-of-%5zu", &shard_idx, &num_shards) == 2 &&
         shard_idx > 0 && name == shard_name(shard_idx - 1, num_shards);
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<TensorSpec> tensors,
                                     const SafetensorsMetadata& metadata)
    : path_(path) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return dtype_size(a.dtype) > dtype_size(b.dtype);
  });
  Json header;
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  int64_t data_offset = 0;
  for (TensorSpec& spec : tensors) {
    if (spec.name.empty() || spec.name == "__metadata__") {
      fail(ErrorCode::kInvalidArgument, "'", path, "': '", spec.name, "' cannot name a tensor");
    }
    const int64_t data_end = data_offset + spec.num_bytes();
    header[spec.name] = {{"dtype", dtype_name(spec.dtype)},
                         {"shape", spec.shape},
                         {"data_offsets", {data_offset, data_end}}};
    bytes_missing_ += spec.num_bytes();
    const std::string name = spec.name;
    const auto [slot, is_new] = slots_.emplace(name, Slot{std::move(spec), data_offset, 0});
    if (!is_new) fail(ErrorCode::kInvalidArgument, "'", path, "': two tensors '", name, "'");
    data_offset = data_end;
  }

  std::string text = dump_json(header);
  const auto padded = [](int64_t size) {
    return (size + kDataAlignment - 1) / kDataAlignment * kDataAlignment;
  };
  const int64_t data_begin = padded(8 + static_cast<int64_t>(text.size()));
  text.resize(static_cast<std::size_t>(data_begin - 8), ' ');
  for (auto& [name, slot] : slots_) slot.offset += data_begin;
  file_bytes_ = data_begin + data_offset;

  require_room(path, std::filesystem::path(path).parent_path().string(), file_bytes_);
  file_ = std::make_unique<AtomicFile>(path);
  char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>((text.size() >> (8 * i)) & 0xff);
  file_->write(std::string_view(length, sizeof(length)));
  file_->write(text);
}

SafetensorsWriter::Slot& SafetensorsWriter::slot(const std::string& name) {
  const auto found = slots_.find(name);
  if (found == slots_.end()) {
    fail(ErrorCode::kInvalidArgument, "'", path_, "': tensor '", name, "' was not declared");
  }
  return found->second;
}

void SafetensorsWriter::write(const std::string& name, const TensorView& tensor) {
  const Slot& declared = slot(name);
  if (tensor.dtype != declared.spec.dtype || tensor.shape != declared.spec.shape) {
    fail(ErrorCode::kInvalidArgument, "'", path_, "': tensor '", name, "' was declared ",
         dtype_name(declared.spec.dtype), " ", to_string(declared.spec.shape), " and is ",
         dtype_name(tensor.dtype), " ", to_string(tensor.shape));
  }
  if (declared.written != 0) {
    fail(ErrorCode::kInvalidArgument, "'", path_, "': tensor '", name, "' was written before");
  }
  append(name, {tensor.data, static_cast<std::size_t>(tensor.num_bytes())});
}

void SafetensorsWriter::append(const std::string& name, std::span<const std::byte> bytes) {
  Slot& target = slot(name);
  const auto num_bytes = static_cast<int64_t>(bytes.size());
  if (num_bytes > target.spec.num_bytes() - target.written) {
    fail(ErrorCode::kInvalidArgument, "'", path_, "': tensor '", name, "' has ",
         target.spec.num_bytes(), " bytes, ", target.written + num_bytes, " were written");
  }
  file_->write_at(target.offset + target.written, bytes);
  target.written += num_bytes;
  bytes_missing_ -= num_bytes;
}

void SafetensorsWriter::commit() {
  for (const auto& [name, slot] : slots_) {
    if (slot.written != slot.spec.num_bytes()) {
      fail(ErrorCode::kInvalidArgument, "'", path_, "': tensor '", name, "' has ",
           slot.spec.num_bytes(), " bytes, only ", slot.written, " were written");
    }
  }
  file_->commit();
}

ShardedSafetensorsWriter::ShardedSafetensorsWriter(const std::string& directory,
                                                   const std::vector<TensorSpec>& tensors,
                                                   int64_t max_shard_bytes)
    : directory_(directory) {
  int64_t shard_bytes = 0;
  int64_t total_bytes = 0;
  for (const TensorSpec& spec : tensors) {
    if (!shard_idx_of_.emplace(spec.name, 0).second) {
      fail(ErrorCode::kInvalidArgument, "'", directory, "': two tensors '", spec.name, "'");
    }
    const int64_t bytes = spec.num_bytes();
    if (shards_.empty() || (shard_bytes > 0 && bytes > max_shard_bytes - shard_bytes)) {
      shards_.emplace_back();
      shard_bytes = 0;
    }
    shard_idx_of_[spec.name] = shards_.size() - 1;
    shards_.back().tensors.push_back(spec);
    shard_bytes += bytes;
    total_bytes += bytes;
  }
  if (shards_.empty()) shards_.emplace_back();
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    shards_[i].file_name = shards_.size() == 1 ? kSingleFileName : shard_name(i, shards_.size());
  }
  require_room(directory + "/" + shards_.front().file_name, directory, total_bytes);

  // First what makes the directory whole, then what would be mistaken for it.
  for (const char* name : {kManifestFileName, kIndexFileName, kSingleFileName}) {
    std::error_code error;
    std::filesystem::remove(std::filesystem::path(directory) / name, error);
    if (error) {
      fail(ErrorCode::kIo, "cannot remove '", directory, "/", name, "': ", error.message());
    }
  }
}

ShardedSafetensorsWriter::Shard& ShardedSafetensorsWriter::shard_of(
    const std::string& tensor_name) {
  const auto found = shard_idx_of_.find(tensor_name);
  if (found == shard_idx_of_.end()) {
    fail(ErrorCode::kInvalidArgument, "'", directory_, "': tensor '", tensor_name,
         "' was not declared");
  }
  Shard& shard = shards_[found->second];
  if (shard.done) {
    fail(ErrorCode::kInvalidArgument, "'", directory_, "': tensor '", tensor_name,
         "' was written before");
  }
  if (!shard.writer) {
    shard.writer =
        std::make_unique<SafetensorsWriter>(directory_ + "/" + shard.file_name, shard.tensors);
  }
  return shard;
}

void ShardedSafetensorsWriter::commit_if_complete(Shard& shard) {
  if (!shard.writer->complete()) return;
  shard.writer->commit();
  shard.writer.reset();
  shard.done = true;
}

void ShardedSafetensorsWriter::write(const std::string& name, const TensorView& tensor) {
  if (tensor.num_bytes() == 0) return;  // its shard may have been complete without it
  Shard& shard = shard_of(name);
  shard.writer->write(name, tensor);
  commit_if_complete(shard);
}

void ShardedSafetensorsWriter::append(const std::string& name, std::span<const std::byte> bytes) {
  Shard& shard = shard_of(name);
  shard.writer->append(name, bytes);
  commit_if_complete(shard);
}

void ShardedSafetensorsWriter::finish() {
  for (Shard& shard : shards_) {
    if (shard.done) continue;
    if (!shard.writer) {  // nothing of it was written, which is right when all of it is empty
      shard.writer =
          std::make_unique<SafetensorsWriter>(directory_ + "/" + shard.file_name, shard.tensors);
    }
    shard.writer->commit();  // names what is missing
    shard.done = true;
  }
  // Shards of an earlier run with another division.
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
    const std::string name = entry.path().filename().string();
    const bool ours = std::any_of(shards_.begin(), shards_.end(),
                                  [&](const Shard& shard) { return shard.file_name == name; });
    if (!ours && is_shard_name(name)) std::filesystem::remove(entry.path());
  }
  if (shards_.size() == 1) return;

  std::map<std::string, std::string> file_of_tensor;
  int64_t total_bytes = 0;
  for (const Shard& shard : shards_) {
    for (const TensorSpec& spec : shard.tensors) {
      file_of_tensor[spec.name] = shard.file_name;
      total_bytes += spec.num_bytes();
    }
  }
  write_file_atomically(directory_ + "/" + kIndexFileName,
                        safetensors_index(file_of_tensor, total_bytes));
}

std::string safetensors_index(const std::map<std::string, std::string>& file_of_tensor,
                              int64_t total_bytes) {
  Json index;
  index["metadata"]["total_size"] = total_bytes;
  index["weight_map"] = Json::object();
  for (const auto& [tensor, file] : file_of_tensor) index["weight_map"][tensor] = file;
  return dump_json(index, 2) + "\n";
}

}  // namespace lathe
