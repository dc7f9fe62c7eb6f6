// Server-sent events from the other end: bytes in, the data of whole events out.
#pragma once
#include <functional>
#include <string>
#include <string_view>

namespace lathe {

class EventReader {
 public:
  // max_bytes: of one line; what is longer is an Error (kCorruptData).
  explicit EventReader(std::size_t max_bytes = std::size_t{16} << 20) : max_bytes_(max_bytes) {}
  // Calls on_data with each event that these bytes complete; its lines of "data" are joined by line
  // feeds. on_data returns false to stop; so does push() then.
  bool push(std::string_view bytes, const std::function<bool(const std::string&)>& on_data);

 private:
  const std::size_t max_bytes_;
  std::string line_;
  std::string data_;
  bool has_data_ = false;
};

}  // namespace lathe
