// How much a JSON document may hold before parse_json() refuses it.
#pragma once
#include <cstdint>
#include <limits>

namespace lathe {

struct JsonLimits {
  int max_depth = 64;
  int64_t max_keys = std::numeric_limits<int64_t>::max();    // of one object
  int64_t max_values = std::numeric_limits<int64_t>::max();  // of the document, keys not counted
};

}  // namespace lathe
