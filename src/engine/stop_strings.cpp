#include "engine/stop_strings.h"

#include <algorithm>

namespace lathe {

StopStrings::StopStrings(std::span<const std::string> stops) : stops_(stops) {
  std::size_t longest = 0;
  for (const std::string& stop : stops) longest = std::max(longest, stop.size());
  pending_.reserve(longest + 1024);  // a token's text is rarely longer than some hundred bytes
}

std::string_view StopStrings::append(std::string_view text, bool is_last) {
  if (found_) return {};
  pending_.erase(0, shown_);
  pending_ += text;

  std::size_t first_end = std::string::npos;
  for (const std::string& stop : stops_) {
    const std::size_t begin = pending_.find(stop);
    if (begin == std::string::npos) continue;
    const std::size_t end = begin + stop.size();
    if (end > first_end || (end == first_end && begin > shown_)) continue;
    first_end = end;
    shown_ = begin;
    found_ = true;
  }
  if (found_) return std::string_view(pending_).substr(0, shown_);

  std::size_t held = 0;  // longest end of pending_ that begins a stop string
  for (const std::string& stop : stops_) {
    if (is_last) break;
    for (std::size_t size = std::min(stop.size() - 1, pending_.size()); size > held; --size) {
      if (std::string_view(pending_).ends_with(std::string_view(stop).substr(0, size))) held = size;
    }
  }
  shown_ = pending_.size() - held;
  return std::string_view(pending_).substr(0, shown_);
}

}  // namespace lathe
