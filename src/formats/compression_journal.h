// quantize.journal.json: which parts of a compressed model are on disk, so that a run that was
// killed can be continued, and a directory without the rest is never taken for a model.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/compressed_tensors_layout.h"
#include "formats/manifest.h"

namespace lathe {

// A finished part: one safetensors file.
struct JournalPart {
  ManifestFile file;
  std::string record;                                    // the caller's text
  std::vector<ModuleScheme> modules;                     // quantized
  std::vector<std::string> dense_linears;                // linear modules left dense
  std::vector<std::pair<std::string, int64_t>> tensors;  // names and bytes, for the index
};

struct CompressionJournal {
  std::string settings;  // what determines the weights, as the caller spells it
  int64_t num_parts = 0;
  std::map<int64_t, JournalPart> parts;  // finished, by number
};

// From the text of the file; `what` names it in messages. Throws kCorruptData for a malformed one,
// kUnsupported for a later version.
CompressionJournal parse_journal(std::string_view text, const std::string& what);
// Throws kNotFound without a journal, and as parse_journal.
CompressionJournal read_journal(const std::string& directory);
// Atomic and synced.
void write_journal(const std::string& directory, const CompressionJournal& journal);

}  // namespace lathe
