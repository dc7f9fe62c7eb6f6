#include "server/event_reader.h"

#include "base/error.h"

namespace lathe {

bool EventReader::push(std::string_view bytes,
                       const std::function<bool(const std::string&)>& on_data) {
  for (const char c : bytes) {
    if (c != '\n') {
      if (line_.size() + data_.size() >= max_bytes_) {
        fail(ErrorCode::kCorruptData, "the server sends an event of more than ", max_bytes_,
             " bytes");
      }
      line_ += c;
      continue;
    }
    if (!line_.empty() && line_.back() == '\r') line_.pop_back();
    if (line_.rfind("data:", 0) == 0) {
      std::string_view value = std::string_view(line_).substr(5);
      if (!value.empty() && value.front() == ' ') value.remove_prefix(1);
      if (has_data_) data_ += '\n';
      data_ += value;
      has_data_ = true;
    } else if (line_.empty() && has_data_) {
      has_data_ = false;
      const std::string data = std::move(data_);
      data_.clear();
      line_.clear();
      if (!on_data(data)) return false;
    }
    line_.clear();
  }
  return true;
}

}  // namespace lathe
