// tokenizer.json: parse it, build the tokenizer, encode and decode with it, write it out again and
// compare what the copy does.
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "text/tokenizer.h"
#include "text/tokenizer_json.h"
#include "text/unicode.h"

namespace {

constexpr std::string_view kTexts[] = {
    "",
    "ab  abba the dog 123\n\n\tx",
    "caf\xC3\xA9 e\xCC\x81 \xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x98\x80<|end|>\xE2\x96\x81<s>",
    "\xFF\xE2\x82",
};

void check(bool condition) {
  if (!condition) std::abort();
}

void run(std::string_view json) {
  const lathe::TokenizerSpec spec = lathe::parse_tokenizer_json(json);
  const std::string written = lathe::write_tokenizer_json(spec);
  const lathe::Tokenizer tokenizer(spec);
  const lathe::Tokenizer copy(lathe::parse_tokenizer_json(written));
  for (const std::string_view text : kTexts) {
    for (const bool parse_special : {false, true}) {
      const auto ids = tokenizer.encode(text, parse_special);
      check(copy.encode(text, parse_special) == ids);
      check(lathe::is_valid_utf8(tokenizer.decode(ids, parse_special)));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    run({reinterpret_cast<const char*>(data), size});
  } catch (const lathe::Error&) {
  }
  return 0;
}
