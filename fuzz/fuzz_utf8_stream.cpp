// Streaming detokenization: the bytes of tokens come in pieces; what is shown is valid UTF-8, does
// not depend on how they were cut, and ends before the first stop string.
#include <cstdlib>
#include <string>
#include <vector>

#include "text/unicode.h"
#include "text/utf8_stream.h"

namespace {

std::string shown(const std::vector<std::string>& stops, std::string_view bytes,
                  std::size_t piece) {
  lathe::Utf8Stream stream(stops);
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += piece) {
    const std::string& part = stream.push(bytes.substr(i, piece));
    if (!lathe::is_valid_utf8(part)) std::abort();
    text += part;
  }
  text += stream.finish();
  return text;
}

}  // namespace

// The first byte: how many stop strings follow, each a length and its bytes; the rest is the text.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> stops;
  if (!rest.empty()) {
    int count = static_cast<unsigned char>(rest[0]) % 4;
    rest.remove_prefix(1);
    while (count-- > 0 && !rest.empty()) {
      const std::size_t length =
          std::min<std::size_t>(static_cast<unsigned char>(rest[0]) % 8, rest.size() - 1);
      stops.emplace_back(rest.substr(1, length));
      rest.remove_prefix(1 + length);
    }
  }
  const std::string whole = shown(stops, rest, rest.size() + 1);
  if (!lathe::is_valid_utf8(whole)) std::abort();
  for (const std::string& stop : stops) {
    if (!stop.empty() && lathe::is_valid_utf8(stop) && whole.find(stop) != std::string::npos)
      std::abort();
  }
  for (const std::size_t piece : {1, 2, 3, 5}) {
    if (shown(stops, rest, piece) != whole) std::abort();
  }
  return 0;
}
