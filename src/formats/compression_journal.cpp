#include "formats/compression_journal.h"

#include <array>
#include <limits>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "formats/json_fields.h"

namespace lathe {
namespace {

constexpr int64_t kJournalVersion = 1;
constexpr int64_t kMaxJournalBytes = int64_t{256} << 20;
constexpr int64_t kMaxCount = int64_t{1} << 53;  // exact in a double, as JSON readers may use
constexpr double kMaxFloat = std::numeric_limits<float>::max();

constexpr std::array<std::pair<const char*, ElementType>, 4> kElementNames = {{
    {"e2m1", ElementType::kE2M1},
    {"int4", ElementType::kInt4},
    {"int8", ElementType::kInt8},
    {"e4m3", ElementType::kE4M3},
}};
constexpr std::array<std::pair<const char*, ScaleType>, 5> kScaleNames = {{
    {"e8m0", ScaleType::kE8M0},
    {"e4m3", ScaleType::kE4M3},
    {"bf16", ScaleType::kBF16},
    {"f16", ScaleType::kF16},
    {"f32", ScaleType::kF32},
}};

template <typename Names, typename Value>
const char* name_of(const Names& names, Value value) {
  for (const auto& [name, known] : names) {
    if (known == value) return name;
  }
  fail(ErrorCode::kInternal, "the journal cannot name format ", static_cast<int>(value));
}

template <typename Names>
auto value_of(const Names& names, const JsonFields& fields, const char* key) {
  const std::string text = fields.text(key);
  for (const auto& [name, value] : names) {
    if (text == name) return value;
  }
  fields.refuse(key, "is not known");
}

Json part_json(int64_t number, const JournalPart& part) {
  Json json = {{"part", number},
               {"file", part.file.name},
               {"bytes", part.file.bytes},
               {"sha256", part.file.sha256},
               {"record", part.record}};
  json["modules"] = Json::array();
  for (const ModuleScheme& module : part.modules) {
    json["modules"].push_back({{"module", module.module},
                               {"element", name_of(kElementNames, module.format.element)},
                               {"scale", name_of(kScaleNames, module.format.scale)},
                               {"group_size", module.format.group_size},
                               {"activations", activation_format_name(module.scheme.activations)},
                               {"input_global_scale", module.scheme.input_global_scale},
                               {"hadamard", module.scheme.hadamard}});
  }
  json["dense_linears"] = part.dense_linears;
  json["tensors"] = Json::object();
  for (const auto& [name, bytes] : part.tensors) json["tensors"][name] = bytes;
  return json;
}

std::vector<JsonFields> objects(const JsonFields& fields, const std::string& key) {
  const Json* list = fields.find(key);
  if (list == nullptr || !list->is_array()) fields.refuse(key, "must be a list of objects");
  std::vector<JsonFields> entries;
  for (const Json& entry : *list) entries.emplace_back(entry, fields.what() + ": " + key);
  return entries;
}

JournalPart parse_part(const JsonFields& fields) {
  JournalPart part;
  part.file = {fields.text("file"), fields.integer("bytes", 0, kMaxCount), fields.text("sha256")};
  part.record = fields.text("record");
  for (const JsonFields& entry : objects(fields, "modules")) {
    ModuleScheme module;
    module.module = entry.text("module");
    module.format.element = value_of(kElementNames, entry, "element");
    module.format.scale = value_of(kScaleNames, entry, "scale");
    module.format.group_size = entry.integer("group_size", 0, kMaxCount);
    try {
      module.scheme.activations = activation_format_from_name(entry.text("activations"));
    } catch (const Error& error) {
      entry.refuse("activations", error.what());
    }
    module.scheme.input_global_scale =
        static_cast<float>(entry.number("input_global_scale", 0, kMaxFloat));
    module.scheme.hadamard = entry.integer("hadamard", 0, kMaxCount);
    part.modules.push_back(std::move(module));
  }
  part.dense_linears = fields.texts("dense_linears");
  const auto tensors = fields.object("tensors");
  if (!tensors) fields.refuse("tensors", "must be an object");
  part.tensors = tensors->all_integers(0, kMaxCount);
  return part;
}

}  // namespace

CompressionJournal parse_journal(std::string_view text, const std::string& what) {
  const Json json = parse_json(text, what);
  const JsonFields fields(json, what);
  if (fields.integer("lathe_journal", 1, kMaxCount) != kJournalVersion) {
    fields.unsupported("lathe_journal", str("this lathe continues version ", kJournalVersion));
  }
  CompressionJournal journal;
  journal.settings = fields.text("settings");
  journal.num_parts = fields.integer("num_parts", 1, kMaxCount);
  for (const JsonFields& entry : objects(fields, "parts")) {
    const int64_t number = entry.integer("part", 0, journal.num_parts - 1);
    if (!journal.parts.emplace(number, parse_part(entry)).second) {
      entry.refuse("part", "is there twice");
    }
  }
  return journal;
}

CompressionJournal read_journal(const std::string& directory) {
  const std::string path = directory + "/" + kJournalFileName;
  return parse_journal(read_file(path, kMaxJournalBytes), path);
}

void write_journal(const std::string& directory, const CompressionJournal& journal) {
  Json json;
  json["lathe_journal"] = kJournalVersion;
  json["settings"] = journal.settings;
  json["num_parts"] = journal.num_parts;
  json["parts"] = Json::array();
  for (const auto& [number, part] : journal.parts) json["parts"].push_back(part_json(number, part));
  write_file_atomically(directory + "/" + kJournalFileName, dump_json(json, 1) + "\n");
}

}  // namespace lathe
