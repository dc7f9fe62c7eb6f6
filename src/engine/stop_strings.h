// Cuts a stream of text before the first stop string, and holds back what may become one.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace lathe {

class StopStrings {
 public:
  StopStrings() = default;
  // Borrows the strings (none of them empty).
  explicit StopStrings(std::span<const std::string> stops);

  // Adds text and returns what is safe to show; valid until the next call. is_last: nothing
  // follows, so nothing is held back. The result over a whole stream does not depend on how it is
  // cut into calls: the stop string that ends first wins.
  std::string_view append(std::string_view text, bool is_last);
  bool found() const { return found_; }

 private:
  std::span<const std::string> stops_;
  std::string pending_;
  std::size_t shown_ = 0;  // of pending_, by the previous call
  bool found_ = false;
};

}  // namespace lathe
