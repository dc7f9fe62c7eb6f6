#include "text/utf8_stream.h"

#include <algorithm>
#include <utility>

#include "text/unicode.h"

namespace lathe {
namespace {

// Bytes at the end of `text` that a stop string could begin with.
size_t held_back(std::string_view text, std::string_view stop) {
  const size_t most = std::min(text.size(), stop.size() - 1);
  for (size_t length = most; length > 0; --length) {
    if (stop.starts_with(text.substr(text.size() - length))) return length;
  }
  return 0;
}

}  // namespace

Utf8Stream::Utf8Stream(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& s) { return s.empty() || !is_valid_utf8(s); });
  constexpr size_t kUsualTokenBytes = 256;
  size_t longest_stop = 0;
  for (const std::string& stop : stops_) longest_stop = std::max(longest_stop, stop.size());
  bytes_.reserve(kUsualTokenBytes);
  text_.reserve(kUsualTokenBytes + longest_stop);
  shown_.reserve(kUsualTokenBytes + longest_stop);
}

const std::string& Utf8Stream::push(std::string_view bytes) {
  shown_.clear();
  if (stopped_) return shown_;
  bytes_ += bytes;
  // Move everything but a cut-off character at the very end.
  size_t pos = 0;
  while (pos < bytes_.size()) {
    if (const int length = utf8_char_length(bytes_, pos); length > 0) {
      text_.append(bytes_, pos, static_cast<size_t>(length));
      pos += static_cast<size_t>(length);
    } else if (utf8_is_cut_off(bytes_, pos)) {
      break;
    } else {
      text_ += kReplacementCharacter;
      pos += static_cast<size_t>(utf8_maximal_subpart(bytes_, pos));
    }
  }
  bytes_.erase(0, pos);
  return take(/*at_end=*/false);
}

const std::string& Utf8Stream::finish() {
  shown_.clear();
  if (stopped_) return shown_;
  text_ += to_valid_utf8(bytes_);
  bytes_.clear();
  return take(/*at_end=*/true);
}

const std::string& Utf8Stream::take(bool at_end) {
  size_t first_end = std::string::npos;
  size_t begin = std::string::npos;
  size_t held = 0;
  for (const std::string& stop : stops_) {
    const size_t found = text_.find(stop);
    if (found != std::string::npos) {
      const size_t end = found + stop.size();
      if (end > first_end || (end == first_end && found >= begin)) continue;
      first_end = end;
      begin = found;
      stop_ = stop;
    } else if (!at_end) {
      held = std::max(held, held_back(text_, stop));
    }
  }
  stopped_ = begin != std::string::npos;
  shown_.assign(text_, 0, stopped_ ? begin : text_.size() - held);
  text_.erase(0, stopped_ ? text_.size() : shown_.size());
  return shown_;
}

}  // namespace lathe
