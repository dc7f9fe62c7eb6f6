// UTF-8 as the text layer needs it: lossy decoding of untrusted bytes, the Unicode normal forms,
// and GPT-2's byte-level alphabet.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace lathe {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// Length in bytes of the well-formed UTF-8 character that starts at text[pos] (RFC 3629: no
// surrogates, no overlong forms, at most U+10FFFF), or 0 when there is none. pos < text.size().
int utf8_char_length(std::string_view text, size_t pos);

// Length of the longest prefix of a well-formed character at text[pos] (the "maximal subpart" of
// the Unicode standard, section 3.9), at least 1: what one U+FFFD stands for.
int utf8_maximal_subpart(std::string_view text, size_t pos);

// True when text[pos..] is a proper prefix of some well-formed character: more bytes may complete
// it.
bool utf8_is_cut_off(std::string_view text, size_t pos);

bool is_valid_utf8(std::string_view text);

// Each maximal subpart of an ill-formed sequence becomes one U+FFFD, as Rust's from_utf8_lossy and
// Python's errors="replace" do.
std::string to_valid_utf8(std::string_view text);

// Decodes the well-formed character at text[pos] (see utf8_char_length) and moves pos behind it.
char32_t next_codepoint(std::string_view text, size_t& pos);
void append_utf8(char32_t codepoint, std::string& out);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// The text in the given normal form (Unicode 15.0). `text` must be valid UTF-8. Linear but for the
// sorting of runs of combining marks (n log n): utf8proc's own is quadratic on hostile runs.
std::string normalize(std::string_view text, NormalForm form);

// Full lower-casing of every character, without context or locale.
std::string to_lower(std::string_view text);

// GPT-2's reversible alphabet, which names each byte by a printable character: printable Latin-1
// bytes stand for themselves, the other 68 are U+0100 and following.
const std::array<char32_t, 256>& byte_level_alphabet();
std::string bytes_to_byte_level(std::string_view bytes);
// False when some character is not of the alphabet; `bytes` is then unspecified.
bool byte_level_to_bytes(std::string_view text, std::string& bytes);

}  // namespace lathe
