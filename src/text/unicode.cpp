#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"

namespace lathe {
namespace {

struct Utf8Start {
  int length;                      // of the whole character, 0: no character starts with this byte
  uint8_t second_min, second_max;  // RFC 3629's narrower range for the second byte
};

Utf8Start utf8_start(uint8_t lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};  // no surrogates
  if (lead < 0xF0) return {3, 0x80, 0xBF};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4, 0x80, 0xBF};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// How many bytes of text[pos..] agree with the character that its first byte announces.
int utf8_agreeing_bytes(std::string_view text, size_t pos, const Utf8Start& start) {
  int count = 1;
  while (count < start.length && pos + count < text.size()) {
    const auto byte = static_cast<uint8_t>(text[pos + count]);
    const uint8_t low = count == 1 ? start.second_min : 0x80;
    const uint8_t high = count == 1 ? start.second_max : 0xBF;
    if (byte < low || byte > high) break;
    ++count;
  }
  return count;
}

}  // namespace

int utf8_char_length(std::string_view text, size_t pos) {
  const Utf8Start start = utf8_start(static_cast<uint8_t>(text[pos]));
  if (start.length <= 1) return start.length;
  return utf8_agreeing_bytes(text, pos, start) == start.length ? start.length : 0;
}

int utf8_maximal_subpart(std::string_view text, size_t pos) {
  return utf8_agreeing_bytes(text, pos, utf8_start(static_cast<uint8_t>(text[pos])));
}

bool utf8_is_cut_off(std::string_view text, size_t pos) {
  const Utf8Start start = utf8_start(static_cast<uint8_t>(text[pos]));
  const int agreeing = utf8_agreeing_bytes(text, pos, start);
  return agreeing < start.length && pos + agreeing == text.size();
}

bool is_valid_utf8(std::string_view text) {
  for (size_t pos = 0; pos < text.size();) {
    const int length = utf8_char_length(text, pos);
    if (length == 0) return false;
    pos += length;
  }
  return true;
}

std::string to_valid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const int length = utf8_char_length(text, pos);
    if (length > 0) {
      out.append(text.substr(pos, length));
      pos += length;
    } else {
      out.append(kReplacementCharacter);
      pos += utf8_maximal_subpart(text, pos);
    }
  }
  return out;
}

char32_t next_codepoint(std::string_view text, size_t& pos) {
  const auto lead = static_cast<uint8_t>(text[pos]);
  const int length = utf8_start(lead).length;
  char32_t codepoint = length <= 1 ? lead : lead & (0x7F >> length);
  for (int i = 1; i < length; ++i) {
    codepoint = codepoint << 6 | (static_cast<uint8_t>(text[pos + i]) & 0x3F);
  }
  pos += std::max(length, 1);
  return codepoint;
}

void append_utf8(char32_t codepoint, std::string& out) {
  if (codepoint < 0x80) {
    out.push_back(static_cast<char>(codepoint));
    return;
  }
  if (codepoint < 0x800) {
    out.push_back(static_cast<char>(0xC0 | codepoint >> 6));
  } else {
    if (codepoint < 0x10000) {
      out.push_back(static_cast<char>(0xE0 | codepoint >> 12));
    } else {
      out.push_back(static_cast<char>(0xF0 | codepoint >> 18));
      out.push_back(static_cast<char>(0x80 | (codepoint >> 12 & 0x3F)));
    }
    out.push_back(static_cast<char>(0x80 | (codepoint >> 6 & 0x3F)));
  }
  out.push_back(static_cast<char>(0x80 | (codepoint & 0x3F)));
}

std::string normalize(std::string_view text, NormalForm form) {
  // Below U+0300 every character is its own NFC and combines with nothing before it.
  const auto is_beyond = [](char byte) { return static_cast<uint8_t>(byte) >= 0xCC; };
  const auto is_not_ascii = [](char byte) { return static_cast<uint8_t>(byte) >= 0x80; };
  if (form == NormalForm::kNfc ? std::none_of(text.begin(), text.end(), is_beyond)
                               : std::none_of(text.begin(), text.end(), is_not_ascii)) {
    return std::string(text);
  }
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const bool compatibility = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const auto options = static_cast<utf8proc_option_t>(
      UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
      (compatibility ? UTF8PROC_COMPAT : 0));

  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const auto codepoint = static_cast<utf8proc_int32_t>(next_codepoint(text, pos));
    utf8proc_int32_t parts[32];  // the longest decomposition, of U+FDFA, has 18
    int boundary_class = 0;
    const auto count = utf8proc_decompose_char(codepoint, parts, 32, options, &boundary_class);
    if (count < 0 || count > 32) fail(ErrorCode::kInternal, "cannot decompose U+", codepoint);
    points.insert(points.end(), parts, parts + count);
  }

  // Canonical ordering: every run of characters with a non-zero combining class, stably by class.
  const auto combining_class = [](utf8proc_int32_t point) {
    return utf8proc_get_property(point)->combining_class;
  };
  for (size_t begin = 0; begin < points.size();) {
    if (points[begin] < 0x300 || combining_class(points[begin]) == 0) {
      ++begin;
      continue;
    }
    size_t end = begin + 1;
    while (end < points.size() && combining_class(points[end]) != 0) ++end;
    std::stable_sort(points.begin() + begin, points.begin() + end,
                     [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }

  auto count = static_cast<utf8proc_ssize_t>(points.size());
  if (compose) count = utf8proc_normalize_utf32(points.data(), count, options);
  if (count < 0) fail(ErrorCode::kInternal, "cannot normalise text: ", utf8proc_errmsg(count));
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) append_utf8(static_cast<char32_t>(points[i]), out);
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const char32_t codepoint = next_codepoint(text, pos);
    if (codepoint == 0x130) {  // the only character whose lower case is two
      out += "i\xCC\x87";
    } else {
      append_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<int>(codepoint))), out);
    }
  }
  return out;
}

const std::array<char32_t, 256>& byte_level_alphabet() {
  static const std::array<char32_t, 256> alphabet = [] {
    std::array<char32_t, 256> map{};
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      map[byte] = printable ? byte : next++;
    }
    return map;
  }();
  return alphabet;
}

std::string bytes_to_byte_level(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes) append_utf8(byte_level_alphabet()[static_cast<uint8_t>(byte)], out);
  return out;
}

bool byte_level_to_bytes(std::string_view text, std::string& bytes) {
  static const std::array<int16_t, 0x144> byte_of = [] {
    std::array<int16_t, 0x144> map;
    map.fill(-1);
    for (int byte = 0; byte < 256; ++byte) map[byte_level_alphabet()[byte]] = int16_t(byte);
    return map;
  }();
  bytes.clear();
  for (size_t pos = 0; pos < text.size();) {
    if (utf8_char_length(text, pos) == 0) return false;
    const char32_t codepoint = next_codepoint(text, pos);
    if (codepoint >= byte_of.size() || byte_of[codepoint] < 0) return false;
    bytes.push_back(static_cast<char>(byte_of[codepoint]));
  }
  return true;
}

}  // namespace lathe
