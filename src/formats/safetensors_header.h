// The JSON header of a safetensors file as it stands, before its numbers are believed. Read with a
// streaming parser: a header may be 100 MB, so no tree is built, and every value that does not
// belong there (an unknown key, a second entry of the same name, a negative offset) is refused.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace lathe {

struct SafetensorsHeaderEntry {
  std::string name;
  std::string dtype;
  Shape shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsHeaderEntry> entries;  // in header order
  std::vector<std::pair<std::string, std::string>> metadata;
};

// Throws kCorruptData naming `what` and the tensor.
SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& what);

}  // namespace lathe
