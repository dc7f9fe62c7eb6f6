// Any text is either refused with an Error or a manifest that survives being written: what is read
// back writes the same text. The journal of an unfinished run is the other JSON file of our own.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "formats/compression_journal.h"
#include "formats/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace lathe;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    parse_journal(text, "fuzz");
  } catch (const Error&) {
  }
  Manifest manifest;
  try {
    manifest = parse_manifest(text, "fuzz");
  } catch (const Error&) {
    return 0;
  }
  const std::string written = manifest_text(manifest);
  if (manifest_text(parse_manifest(written, "written")) != written) std::abort();
  return 0;
}
