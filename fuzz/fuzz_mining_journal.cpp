// Any text, alone or under the right first line, is either refused with an Error or questions that
// survive being written: what is read back writes the same lines.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "compress/mining_journal.h"

namespace {

constexpr const char* kIdentity = "who";

std::string written(const lathe::MiningJournalText& journal) {
  std::string text = kIdentity + std::string("\n");
  for (const lathe::MinedQuestion& question : journal.questions) {
    text += lathe::mining_journal_line(question) + "\n";
  }
  return text;
}

void read(std::string_view text) {
  lathe::MiningJournalText journal;
  try {
    journal = lathe::parse_mining_journal(text, kIdentity, "fuzz");
  } catch (const lathe::Error&) {
    return;
  }
  const auto size = static_cast<int64_t>(text.size());
  if (journal.whole_bytes < 0 || journal.whole_bytes > size) std::abort();
  if (!journal.has_identity && journal.whole_bytes != 0) std::abort();
  const std::string again = written(journal);
  const auto read_back = lathe::parse_mining_journal(again, kIdentity, "written");
  if (read_back.num_rows != journal.num_rows || written(read_back) != again) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  read(text);
  read(kIdentity + std::string("\n") + std::string(text));
  return 0;
}
