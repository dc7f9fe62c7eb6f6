// lathe.json: what is in a model directory, where it came from and what it costs in quality.
// Written last, so a directory that has one is whole; other programs ignore it. Version 1:
//
//   {"lathe_manifest": 1,
//    "lathe_version", "created", "source", "command", "settings": {name: text},
//    "files": [{"name", "bytes", "sha256"}],                   every file but lathe.json itself
//    "quality": [{"metric", "data", "value", "baseline"?, "settings"}],
//    "logits_fingerprint"?: {"token_ids", "top_ids", "top_logits", "tolerance", "computed_with"}}
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lathe {

inline constexpr const char* kManifestFileName = "lathe.json";
inline constexpr const char* kJournalFileName = "quantize.journal.json";

struct ManifestFile {
  std::string name;  // in the directory itself, without a path
  int64_t bytes = 0;
  std::string sha256;  // lower-case hex
};

// One measured number, for example perplexity on wiki.test.raw.
struct QualityNumber {
  std::string metric;
  std::string data;
  double value = 0;
  std::optional<double> baseline;  // the same for the uncompressed model
  std::string settings;            // "windows 32, length 512"
};

// The largest logits after a fixed prompt, to see on the machine at hand whether its kernels
// compute what the compressor's machine computed.
struct LogitsFingerprint {
  std::vector<int64_t> token_ids;  // the prompt
  std::vector<int64_t> top_ids;    // of the next token, best first
  std::vector<double> top_logits;  // as many
  double tolerance = 0;            // absolute, per logit
  std::string computed_with;       // kernel path and version
};

struct Manifest {
  std::string lathe_version;
  std::string created;  // as the caller spells the time: the library reads no clock
  std::string source;   // the uncompressed model
  std::string command;
  std::vector<std::pair<std::string, std::string>> settings;
  std::vector<ManifestFile> files;
  std::vector<QualityNumber> quality;
  std::optional<LogitsFingerprint> fingerprint;
};

// Size and digest of directory/name. Throws kNotFound, kIo.
ManifestFile describe_file(const std::string& directory, const std::string& name);

// Adds the file, or brings its entry up to date. For files added later (kv_codec.safetensors).
void update_file(Manifest& manifest, const std::string& directory, const std::string& name);

// From the text of lathe.json; `what` names it in messages. Throws kCorruptData for anything
// malformed (a file name with a path in it, sizes and digests that cannot be), kUnsupported for a
// later version.
Manifest parse_manifest(std::string_view text, const std::string& what);
// Reads directory/lathe.json. Throws kNotFound without one, and as parse_manifest.
Manifest read_manifest(const std::string& directory);

// The text for it, files sorted by name.
std::string manifest_text(Manifest manifest);
// Writes directory/lathe.json. Atomic.
void write_manifest(const std::string& directory, Manifest manifest);

enum class DirectoryState {
  kWhole,       // a manifest, and (as far as checked) every file as it says
  kDamaged,     // a manifest, and files that differ from it
  kIncomplete,  // no manifest, but the journal of an unfinished run
  kForeign,     // neither: not written by lathe, so there is nothing to compare with
};

struct DirectoryReport {
  DirectoryState state = DirectoryState::kForeign;
  std::vector<std::string> problems;  // one line each: "model-00001-of-00002.safetensors: ..."
};

// With `digests` every byte is read and compared; otherwise existence and size only. Throws
// kNotFound when there is no such directory, and as read_manifest for a malformed manifest.
DirectoryReport verify_directory(const std::string& directory, bool digests = true);

}  // namespace lathe
