#include "formats/checkpoint.h"

#include <filesystem>

#include "base/error.h"
#include "formats/hf_checkpoint.h"

namespace lathe {

std::unique_ptr<Checkpoint> Checkpoint::open(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return std::make_unique<HfCheckpoint>(path);
  if (!std::filesystem::exists(path, error)) {
    fail(ErrorCode::kNotFound, "no model at '", path, "' (a directory or a .gguf file)");
  }
  fail(ErrorCode::kUnsupported, "'", path, "' is neither a model directory nor a GGUF file");
}

}  // namespace lathe
