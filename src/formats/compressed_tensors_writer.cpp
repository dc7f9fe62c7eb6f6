#include "formats/compressed_tensors_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/sha256.h"
#include "formats/safetensors_writer.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigFileName = "config.json";
constexpr const char* kIndexFileName = "model.safetensors.index.json";

bool holds_model_files(const std::string& directory) {
  for (const auto& entry : fs::directory_iterator(directory)) {
    const fs::path name = entry.path().filename();
    if (name == kConfigFileName || name == kManifestFileName ||
        name.extension() == ".safetensors") {
      return true;
    }
  }
  return false;
}

// Linear layers among the tensors that are stored as they are: engines must be told that the
// quantization does not apply to them. By shape alone an embedding looks the same, and naming it
// does no harm, but it is no linear layer.
std::vector<std::string> dense_linear_modules(std::span<const NamedTensor> dense) {
  constexpr std::string_view kWeight = ".weight";
  std::vector<std::string> modules;
  for (const NamedTensor& tensor : dense) {
    const bool is_weight = tensor.name.ends_with(kWeight) && tensor.view.shape.size() == 2;
    if (!is_weight || tensor.name.find("embed") != std::string::npos) continue;
    modules.push_back(tensor.name.substr(0, tensor.name.size() - kWeight.size()));
  }
  return modules;
}

const char* torch_dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    default:
      fail(ErrorCode::kInvalidArgument, "dense tensors in ", dtype_name(dtype),
           "; they may be F32, F16 or BF16");
  }
}

Json parse_config(const std::string& text) {
  Json config = parse_json(text, kConfigFileName);
  if (!config.is_object()) fail(ErrorCode::kCorruptData, kConfigFileName, ": not a JSON object");
  return config;
}

// The words (split at blanks) of `text` that `other` does not have; both whole when that is none.
std::string words_not_in(const std::string& text, const std::string& other) {
  const auto words_of = [](const std::string& line) {
    std::istringstream stream(line);
    return std::vector<std::string>(std::istream_iterator<std::string>(stream), {});
  };
  const std::vector<std::string> others = words_of(other);
  std::string left;
  for (const std::string& word : words_of(text)) {
    if (std::find(others.begin(), others.end(), word) != others.end()) continue;
    left += (left.empty() ? "" : " ") + word;
  }
  return left.empty() ? text : left;
}

}  // namespace

CompressedTensorsWriter::CompressedTensorsWriter(CompressedTensorsOptions options)
    : options_(std::move(options)) {
  const std::string& directory = options_.directory;
  if (options_.num_parts < 1) {
    fail(ErrorCode::kInvalidArgument, "'", directory, "': ", options_.num_parts, " parts");
  }
  parse_config(options_.config_json);
  torch_dtype_name(options_.dense_dtype);

  std::error_code error;
  fs::create_directories(directory, error);
  if (error) fail(ErrorCode::kIo, "cannot create '", directory, "': ", error.message());
  directory_fd_ = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory_fd_ < 0) {
    fail(ErrorCode::kIo, "cannot open '", directory, "': ", std::strerror(errno));
  }
  try {
    if (::flock(directory_fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      fail(ErrorCode::kInvalidArgument, "'", directory, "': another lathe is writing into it");
    }
    if (fs::exists(fs::path(directory) / kManifestFileName)) {
      fail(ErrorCode::kInvalidArgument, "'", directory,
           "' already holds a whole model; choose another directory, or delete it");
    }
    if (fs::exists(fs::path(directory) / kJournalFileName)) {
      if (!options_.resume) {
        fail(ErrorCode::kInvalidArgument, "'", directory,
             "' holds an unfinished compression; continue it with --resume, or delete it");
      }
      journal_ = read_journal(directory);
      if (journal_.settings != options_.settings || journal_.num_parts != options_.num_parts) {
        fail(ErrorCode::kInvalidArgument, "'", directory,
             "' was begun with other settings; give the same ones, or delete it. Begun with: ",
             words_not_in(journal_.settings, options_.settings),
             "; now: ", words_not_in(options_.settings, journal_.settings));
      }
      forget_damaged_parts();
    } else {
      if (holds_model_files(directory)) {
        fail(ErrorCode::kInvalidArgument, "'", directory,
             "' already holds a model that is not lathe's; choose another directory");
      }
      journal_.settings = options_.settings;
      journal_.num_parts = options_.num_parts;
    }
    write_journal(directory, journal_);  // from here on the directory is marked as incomplete
  } catch (...) {
    ::close(directory_fd_);
    throw;
  }
}

CompressedTensorsWriter::~CompressedTensorsWriter() { ::close(directory_fd_); }

std::string CompressedTensorsWriter::part_name(int64_t part) const {
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05lld-of-%05lld.safetensors",
                static_cast<long long>(part + 1), static_cast<long long>(options_.num_parts));
  return name;
}

std::string CompressedTensorsWriter::part_path(int64_t part) const {
  return options_.directory + "/" + part_name(part);
}

void CompressedTensorsWriter::forget_damaged_parts() {
  for (auto entry = journal_.parts.begin(); entry != journal_.parts.end();) {
    const ManifestFile& file = entry->second.file;
    const std::string path = part_path(entry->first);
    std::error_code error;
    const bool intact = file.name == part_name(entry->first) &&
                        static_cast<int64_t>(fs::file_size(path, error)) == file.bytes && !error &&
                        sha256_hex_of_file(path) == file.sha256;
    entry = intact ? std::next(entry) : journal_.parts.erase(entry);
  }
}

const std::string& CompressedTensorsWriter::record(int64_t part) const {
  const auto found = journal_.parts.find(part);
  if (found == journal_.parts.end()) {
    fail(ErrorCode::kInvalidArgument, "part ", part, " is not done");
  }
  return found->second.record;
}

void CompressedTensorsWriter::write_part(int64_t part, std::span<const QuantizedLinear> linears,
                                         std::span<const NamedTensor> dense,
                                         const std::string& record) {
  if (part < 0 || part >= options_.num_parts || is_done(part)) {
    fail(ErrorCode::kInvalidArgument, "part ", part, " of ", options_.num_parts,
         is_done(part) ? " is done" : " does not exist");
  }
  check_expressible(linears);

  JournalPart done;
  done.record = record;
  done.dense_linears = dense_linear_modules(dense);
  std::vector<LinearTensors> stored;
  std::vector<NamedTensor> tensors(dense.begin(), dense.end());
  for (const QuantizedLinear& linear : linears) {
    done.modules.push_back({linear.module, linear.weight->format, linear.scheme});
    stored.push_back(linear_tensors(linear));
    tensors.insert(tensors.end(), stored.back().tensors.begin(), stored.back().tensors.end());
  }
  std::set<std::string> elsewhere;
  for (const auto& [number, other] : journal_.parts) {
    for (const auto& [name, bytes] : other.tensors) elsewhere.insert(name);
  }
  std::vector<TensorSpec> specs;
  for (const NamedTensor& tensor : tensors) {
    if (elsewhere.contains(tensor.name)) {
      fail(ErrorCode::kInvalidArgument, "'", options_.directory, "': tensor '", tensor.name,
           "' is in another part already");
    }
    specs.push_back({tensor.name, tensor.view.dtype, tensor.view.shape});
    done.tensors.emplace_back(tensor.name, tensor.view.num_bytes());
  }

  SafetensorsWriter writer(part_path(part), specs);
  for (const NamedTensor& tensor : tensors) writer.write(tensor.name, tensor.view);
  writer.commit();
  done.file = describe_file(options_.directory, part_name(part));

  journal_.parts[part] = std::move(done);
  try {
    write_journal(options_.directory, journal_);
  } catch (...) {
    journal_.parts.erase(part);  // as after a crash here: written, but not done
    throw;
  }
}

void CompressedTensorsWriter::finish(Manifest manifest) {
  const std::string& directory = options_.directory;
  std::map<std::string, std::string> file_of_tensor;
  int64_t total_bytes = 0;
  std::vector<ModuleScheme> modules;
  std::vector<std::string> ignore;
  for (int64_t number = 0; number < options_.num_parts; ++number) {
    if (!is_done(number)) {
      fail(ErrorCode::kInvalidArgument, "'", directory, "': part ", number, " of ",
           options_.num_parts, " is not done");
    }
    const JournalPart& part = journal_.parts.at(number);
    for (const auto& [name, bytes] : part.tensors) {
      file_of_tensor[name] = part.file.name;
      total_bytes += bytes;
    }
    modules.insert(modules.end(), part.modules.begin(), part.modules.end());
    ignore.insert(ignore.end(), part.dense_linears.begin(), part.dense_linears.end());
    manifest.files.push_back(part.file);
  }
  // Models that tie it to the embeddings have the module, though not the tensor.
  const auto is_output = [](const auto& module) { return module.module == "lm_head"; };
  if (std::none_of(modules.begin(), modules.end(), is_output) &&
      std::find(ignore.begin(), ignore.end(), "lm_head") == ignore.end()) {
    ignore.push_back("lm_head");
  }

  Json config = parse_config(options_.config_json);
  // transformers 5 says "dtype", 4 says "torch_dtype"; both read both.
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] =
      torch_dtype_name(options_.dense_dtype);
  config.erase("quantization_config");
  if (!modules.empty()) {  // a run may store decoded weights only
    config["quantization_config"] =
        parse_json(quantization_config(modules, ignore), "quantization_config");
  }

  const auto write = [&](const std::string& name, const std::string& content) {
    write_file_atomically(directory + "/" + name, content);
    update_file(manifest, directory, name);
  };
  for (const auto& [name, content] : options_.auxiliary_files) write(name, content);
  write(kConfigFileName, dump_json(config, 2) + "\n");
  write(kIndexFileName, safetensors_index(file_of_tensor, total_bytes));
  // What a killed run was in the middle of.
  std::error_code left_behind;  // untidy, no more
  for (int64_t part = 0; part < options_.num_parts; ++part) {
    fs::remove(part_path(part) + ".partial", left_behind);
  }
  write_manifest(directory, std::move(manifest));
  fs::remove(fs::path(directory) / kJournalFileName, left_behind);
}

}  // namespace lathe
