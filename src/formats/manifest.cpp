#include "formats/manifest.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/sha256.h"
#include "formats/json_fields.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kManifestVersion = 1;
// Far above any real manifest, which lists some hundred files; bounds what parsing can allocate.
constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;
// Bounds that any real count and number meets, and that survive a trip through a double.
constexpr int64_t kMaxCount = int64_t{1} << 53;
constexpr double kMaxNumber = 1e300;

// A name that stays in the directory.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

bool is_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// An array that must be there, as a list of objects.
std::vector<JsonFields> objects(const JsonFields& fields, const std::string& key) {
  const Json* list = fields.find(key);
  if (list == nullptr || !list->is_array()) fields.refuse(key, "must be a list of objects");
  std::vector<JsonFields> entries;
  for (const Json& entry : *list) entries.emplace_back(entry, fields.what() + ": " + key);
  return entries;
}

ManifestFile parse_file(const JsonFields& fields) {
  ManifestFile file{fields.text("name"), fields.integer("bytes", 0, kMaxCount),
                    fields.text("sha256")};
  if (!is_plain_file_name(file.name)) fields.refuse("name", "must be a file name without a path");
  if (!is_sha256(file.sha256)) fields.refuse("sha256", "must be 64 hexadecimal digits");
  return file;
}

QualityNumber parse_quality(const JsonFields& fields) {
  QualityNumber quality;
  quality.metric = fields.text("metric");
  quality.data = fields.text("data");
  quality.value = fields.number("value", -kMaxNumber, kMaxNumber);
  if (fields.has("baseline")) {
    quality.baseline = fields.number("baseline", -kMaxNumber, kMaxNumber);
  }
  quality.settings = fields.text("settings");
  return quality;
}

LogitsFingerprint parse_fingerprint(const JsonFields& fields) {
  LogitsFingerprint fingerprint;
  fingerprint.token_ids = fields.integers("token_ids", 0, kMaxCount);
  fingerprint.top_ids = fields.integers("top_ids", 0, kMaxCount);
  fingerprint.top_logits = fields.numbers("top_logits", -kMaxNumber, kMaxNumber);
  if (fingerprint.top_logits.size() != fingerprint.top_ids.size()) {
    fields.refuse("top_logits", "must be as long as top_ids");
  }
  fingerprint.tolerance = fields.number("tolerance", 0, kMaxNumber);
  fingerprint.computed_with = fields.text("computed_with");
  return fingerprint;
}

Manifest manifest_from_json(const JsonFields& fields) {
  const int64_t version = fields.integer("lathe_manifest", 1, kMaxCount);
  if (version != kManifestVersion) {
    fields.unsupported("lathe_manifest",
                       str("this lathe reads version ", kManifestVersion,
                           "; use the lathe that wrote the model, or a newer one"));
  }
  Manifest manifest;
  manifest.lathe_version = fields.text("lathe_version");
  manifest.created = fields.text("created");
  manifest.source = fields.text("source");
  manifest.command = fields.text("command");
  const auto settings = fields.object("settings");
  if (!settings) fields.refuse("settings", "must be an object");
  manifest.settings = settings->all_texts();
  std::set<std::string> names;
  for (const JsonFields& file : objects(fields, "files")) {
    manifest.files.push_back(parse_file(file));
    if (!names.insert(manifest.files.back().name).second) file.refuse("name", "is listed twice");
  }
  for (const JsonFields& quality : objects(fields, "quality")) {
    manifest.quality.push_back(parse_quality(quality));
  }
  if (const auto fingerprint = fields.object("logits_fingerprint")) {
    manifest.fingerprint = parse_fingerprint(*fingerprint);
  }
  return manifest;
}

Json manifest_json(const Manifest& manifest) {
  Json json;
  json["lathe_manifest"] = kManifestVersion;
  json["lathe_version"] = manifest.lathe_version;
  json["created"] = manifest.created;
  json["source"] = manifest.source;
  json["command"] = manifest.command;
  json["settings"] = Json::object();
  for (const auto& [name, value] : manifest.settings) json["settings"][name] = value;
  json["files"] = Json::array();
  for (const ManifestFile& file : manifest.files) {
    json["files"].push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  json["quality"] = Json::array();
  for (const QualityNumber& quality : manifest.quality) {
    Json entry = {{"metric", quality.metric}, {"data", quality.data}, {"value", quality.value}};
    if (quality.baseline) entry["baseline"] = *quality.baseline;
    entry["settings"] = quality.settings;
    json["quality"].push_back(std::move(entry));
  }
  if (manifest.fingerprint) {
    json["logits_fingerprint"] = {{"token_ids", manifest.fingerprint->token_ids},
                                  {"top_ids", manifest.fingerprint->top_ids},
                                  {"top_logits", manifest.fingerprint->top_logits},
                                  {"tolerance", manifest.fingerprint->tolerance},
                                  {"computed_with", manifest.fingerprint->computed_with}};
  }
  return json;
}

// What is wrong with one listed file, or nothing.
std::optional<std::string> check_file(const std::string& directory, const ManifestFile& listed,
                                      bool digests) {
  const fs::path path = fs::path(directory) / listed.name;
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return listed.name + ": missing";
  const auto bytes = static_cast<int64_t>(fs::file_size(path, error));
  if (error) return listed.name + ": " + error.message();
  if (bytes != listed.bytes) {
    return str(listed.name, ": ", bytes, " bytes, the manifest says ", listed.bytes);
  }
  if (!digests) return std::nullopt;
  try {
    if (sha256_hex_of_file(path.string()) != listed.sha256) {
      return listed.name + ": the content differs from what was written (SHA-256)";
    }
  } catch (const Error& unreadable) {
    return listed.name + ": " + unreadable.what();
  }
  return std::nullopt;
}

}  // namespace

ManifestFile describe_file(const std::string& directory, const std::string& name) {
  const std::string path = directory + "/" + name;
  std::error_code error;
  const auto bytes = static_cast<int64_t>(fs::file_size(path, error));
  if (error) fail(ErrorCode::kNotFound, "'", path, "': ", error.message());
  return {name, bytes, sha256_hex_of_file(path)};
}

void update_file(Manifest& manifest, const std::string& directory, const std::string& name) {
  ManifestFile described = describe_file(directory, name);
  const auto found = std::find_if(manifest.files.begin(), manifest.files.end(),
                                  [&](const ManifestFile& file) { return file.name == name; });
  if (found != manifest.files.end()) {
    *found = std::move(described);
  } else {
    manifest.files.push_back(std::move(described));
  }
}

Manifest parse_manifest(std::string_view text, const std::string& what) {
  const Json json = parse_json(text, what);
  return manifest_from_json(JsonFields(json, what));
}

Manifest read_manifest(const std::string& directory) {
  const std::string path = directory + "/" + kManifestFileName;
  return parse_manifest(read_file(path, kMaxManifestBytes), path);
}

std::string manifest_text(Manifest manifest) {
  std::sort(manifest.files.begin(), manifest.files.end(),
            [](const ManifestFile& a, const ManifestFile& b) { return a.name < b.name; });
  return dump_json(manifest_json(manifest), 2) + "\n";
}

void write_manifest(const std::string& directory, Manifest manifest) {
  const std::string path = directory + "/" + kManifestFileName;
  const std::string text = manifest_text(std::move(manifest));
  parse_manifest(text, path);  // never writes what read_manifest() would refuse
  write_file_atomically(path, text);
}

DirectoryReport verify_directory(const std::string& directory, bool digests) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    fail(ErrorCode::kNotFound, "'", directory, "' is not a directory");
  }
  DirectoryReport report;
  if (!fs::exists(fs::path(directory) / kManifestFileName, error)) {
    if (fs::exists(fs::path(directory) / kJournalFileName, error)) {
      report.state = DirectoryState::kIncomplete;
      report.problems.push_back(
          "the compression was interrupted: run it again with --resume to finish it");
    }
    return report;
  }
  for (const ManifestFile& listed : read_manifest(directory).files) {
    if (auto problem = check_file(directory, listed, digests)) {
      report.problems.push_back(std::move(*problem));
    }
  }
  report.state = report.problems.empty() ? DirectoryState::kWhole : DirectoryState::kDamaged;
  return report;
}

}  // namespace lathe
