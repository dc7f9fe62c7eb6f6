// A chat template: parse it and render one conversation with it, within small limits.
#include <cstdlib>

#include "base/error.h"
#include "base/json.h"
#include "text/jinja.h"
#include "text/unicode.h"

namespace {

const lathe::Json& variables() {
  static const lathe::Json values = lathe::Json::parse(R"({
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " h\u00e9 'x' "},
      {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1.5}}}]}],
    "tools": [{"type": "function", "function": {"name": "f"}}], "add_generation_prompt": true,
    "n": 7, "s": "a b", "d": {"b": 1, "a": [true, 2.5]}, "none": null, "bos_token": "<s>"})");
  return values;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const lathe::JinjaTemplate parsed({reinterpret_cast<const char*>(data), size});
    const lathe::JinjaLimits limits{.max_steps = 100'000, .max_bytes = 8 << 20};
    const std::string text = parsed.render(variables(), limits, 0);
    if (!lathe::is_valid_utf8(text)) std::abort();
  } catch (const lathe::Error&) {
  }
  return 0;
}
