// From the bytes of one token after the other to text that can be shown at once: half a character
// is held back until it is whole, and so is the beginning of what may become a stop string.
//
//   tokens  "Hel" "lo \xE2" "\x82\xAC" "EN" "D" "x"       stop "END"
//   shown   "Hel" "lo "     "€"        ""   ""  (stopped; "x" is ignored)
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

class Utf8Stream {
 public:
  // The text ends in front of the stop string that is complete first (of several that are complete
  // at the same place, the longest). Stop strings that are empty or not valid UTF-8 never match:
  // half a character must not be held back. What is shown does not depend on how the bytes were cut
  // into tokens.
  explicit Utf8Stream(std::vector<std::string> stops = {});

  // Text that these bytes make safe to show: valid UTF-8, ill-formed bytes replaced by U+FFFD.
  // Empty once stopped(). Valid until the next call. Does not allocate for tokens of usual length.
  const std::string& push(std::string_view bytes);

  // The end of the generation: what was held back. Half a character becomes U+FFFD.
  const std::string& finish();

  bool stopped() const { return stopped_; }
  // The stop string that was found; empty when none was.
  const std::string& stop() const { return stop_; }

 private:
  const std::string& take(bool at_end);

  std::vector<std::string> stops_;
  std::string bytes_;  // not yet a whole character
  std::string text_;   // whole characters that are not shown yet
  std::string shown_;  // what the latest call returned
  std::string stop_;
  bool stopped_ = false;
};

}  // namespace lathe
