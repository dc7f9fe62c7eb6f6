#include <filesystem>
#include <unordered_map>

#include "base/atomic_file.h"
#include "base/error.h"
#include "formats/safetensors.h"

namespace lathe {
namespace {

// A shard's name comes from a file: it may not lead out of the directory.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

}  // namespace

SafetensorsSet::SafetensorsSet(const std::string& directory) {
  const std::filesystem::path root(directory);
  const std::string single = (root / "model.safetensors").string();
  const std::string index = (root / "model.safetensors.index.json").string();
  if (!std::filesystem::exists(index)) {
    if (!std::filesystem::exists(single)) {
      fail(ErrorCode::kNotFound, "'", directory,
           "' has neither model.safetensors nor model.safetensors.index.json");
    }
    files_.push_back(std::make_unique<SafetensorsFile>(single));
    for (const SafetensorsTensor& tensor : files_.back()->tensors()) {
      tensors_.emplace(tensor.name, tensor.view);
    }
    return;
  }
  const auto weight_map =
      parse_safetensors_index(read_file(index, kMaxSafetensorsHeaderBytes), index);
  std::unordered_map<std::string, const SafetensorsFile*> shards;
  for (const auto& [tensor, file_name] : weight_map) {
    if (!is_plain_file_name(file_name)) {
      fail(ErrorCode::kCorruptData, index, ": tensor '", tensor, "' is said to be in '", file_name,
           "', which is not a file name");
    }
    const SafetensorsFile*& shard = shards[file_name];
    if (shard == nullptr) {
      files_.push_back(std::make_unique<SafetensorsFile>((root / file_name).string()));
      shard = files_.back().get();
    }
    const TensorView* view = shard->find(tensor);
    if (view == nullptr) {
      fail(ErrorCode::kCorruptData, index, ": tensor '", tensor, "' is not in ", file_name);
    }
    tensors_.emplace(tensor, *view);
  }
}

const TensorView* SafetensorsSet::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

std::vector<std::string> SafetensorsSet::file_names() const {
  std::vector<std::string> names;
  for (const auto& file : files_) {
    names.push_back(std::filesystem::path(file->path()).filename().string());
  }
  return names;
}

void SafetensorsSet::release_pages() const {
  for (const auto& file : files_) file->release_pages();
}

}  // namespace lathe
