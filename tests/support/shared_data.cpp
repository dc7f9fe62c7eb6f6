#include "support/shared_data.h"

#include <cstdlib>
#include <filesystem>

namespace lathe {
namespace {

std::string source_directory() {
  const char* directory = std::getenv("LATHE_SOURCE_DIR");
  return directory != nullptr ? directory : ".";
}

std::optional<std::string> existing(const std::string& path) {
  if (std::filesystem::exists(path)) return path;
  return std::nullopt;
}

}  // namespace

std::string golden_path(const std::string& relative) {
  return source_directory() + "/tests/golden/" + relative;
}

std::optional<std::string> shared_path(const std::string& relative) {
  const char* root = std::getenv("LATHE_SHARED");
  return existing((root != nullptr ? std::string(root) : source_directory() + "/../shared") + "/" +
                  relative);
}

std::optional<std::string> model_path(const std::string& name) {
  const char* root = std::getenv("LATHE_MODELS");
  return existing((root != nullptr ? std::string(root) : source_directory() + "/models") + "/" +
                  name + ".gguf");
}

}  // namespace lathe
