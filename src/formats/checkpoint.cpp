#include "formats/checkpoint.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "formats/gguf_checkpoint.h"
#include "formats/hf_checkpoint.h"
#include "formats/manifest.h"

namespace lathe {
namespace {

bool begins_with_gguf(const std::string& path) {
  char magic[4] = {};
  std::ifstream file(path, std::ios::binary);
  return file.read(magic, sizeof magic) && std::memcmp(magic, "GGUF", sizeof magic) == 0;
}

}  // namespace

std::unique_ptr<Checkpoint> Checkpoint::open(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    // An unfinished compression has none either, and a better message of its own.
    if (!std::filesystem::exists(std::filesystem::path(path) / "config.json", error) &&
        !std::filesystem::exists(std::filesystem::path(path) / kJournalFileName, error)) {
      fail(ErrorCode::kNotFound, "no model at '", path, "': a directory without config.json");
    }
    return std::make_unique<HfCheckpoint>(path);
  }
  if (!std::filesystem::exists(path, error)) {
    fail(ErrorCode::kNotFound, "no model at '", path, "' (a directory or a .gguf file)");
  }
  if (std::filesystem::is_regular_file(path, error) && begins_with_gguf(path)) {
    return std::make_unique<GgufCheckpoint>(path);
  }
  fail(ErrorCode::kUnsupported, "'", path, "' is neither a model directory nor a GGUF file");
}

}  // namespace lathe
