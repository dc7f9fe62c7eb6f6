// printf into a string, for numbers in tables and reports.
#pragma once
#include <cstdio>
#include <string>

namespace lathe {

// At most 511 characters; text of any length is appended by the caller.
template <typename... Args>
std::string format(const char* pattern, Args... args) {
  char text[512];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

}  // namespace lathe
