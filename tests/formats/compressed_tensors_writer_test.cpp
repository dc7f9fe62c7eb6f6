#include "formats/compressed_tensors_writer.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "base/atomic_file.h"
#include "base/json.h"
#include "formats/expect_error.h"
#include "formats/random_matrix.h"
#include "formats/safetensors.h"
#include "formats/temporary_directory.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kNumLayers = 3;
constexpr int64_t kNumParts = kNumLayers + 1;
constexpr const char* kConfig =
    R"({"model_type": "llama", "torch_dtype": "float32", "hidden_size": 64})";

CompressedTensorsOptions options(const std::string& directory, bool resume = false) {
  CompressedTensorsOptions result;
  result.directory = directory;
  result.num_parts = kNumParts;
  result.settings = "mxfp4 seed 1";
  result.resume = resume;
  result.config_json = kConfig;
  result.auxiliary_files = {{"tokenizer.json", "{\"version\": \"1.0\"}"}};
  return result;
}

Manifest provenance() {
  Manifest manifest;
  manifest.lathe_version = "0.1.0";
  manifest.created = "2026-11-23T12:00:00Z";
  return manifest;
}

// What a quantizer would do for one part: always the same numbers.
void write_example_part(CompressedTensorsWriter& writer, int64_t part) {
  Tensor norm(DType::kBF16, {64});
  std::memset(norm.data(), static_cast<int>(part), static_cast<std::size_t>(norm.num_bytes()));
  if (part == kNumLayers) {
    Tensor embedding(DType::kBF16, {16, 64});
    std::memset(embedding.data(), 1, static_cast<std::size_t>(embedding.num_bytes()));
    const NamedTensor dense[] = {{"model.norm.weight", norm.view()},
                                 {"model.embed_tokens.weight", embedding.view()}};
    writer.write_part(part, {}, dense, "");
    return;
  }
  const std::string prefix = "model.layers." + std::to_string(part) + ".";
  const QuantizedMatrix q =
      random_matrix(weight_format_from_name("mxfp4"), 32, 64, static_cast<uint32_t>(2 * part));
  const QuantizedMatrix down =
      random_matrix(weight_format_from_name("mxfp4"), 64, 128, static_cast<uint32_t>(2 * part + 1));
  const LinearScheme scheme{ActivationFormat::kNone, 0, 32};
  const QuantizedLinear linears[] = {{prefix + "self_attn.q_proj", &q, scheme},
                                     {prefix + "mlp.down_proj", &down, scheme}};
  Tensor router(DType::kBF16, {4, 64});
  std::memset(router.data(), 2, static_cast<std::size_t>(router.num_bytes()));
  const NamedTensor dense[] = {{prefix + "input_layernorm.weight", norm.view()},
                               {prefix + "mlp.gate.weight", router.view()}};
  writer.write_part(part, linears, dense, "error of layer " + std::to_string(part));
}

// Name and content of every file.
std::map<std::string, std::string> files_of(const std::string& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(directory)) {
    files[entry.path().filename().string()] = read_file(entry.path().string());
  }
  return files;
}

std::map<std::string, std::string> whole_directory() {
  const TemporaryDirectory scratch;
  CompressedTensorsWriter writer(options(scratch / "out"));
  for (int64_t part = 0; part < kNumParts; ++part) write_example_part(writer, part);
  writer.finish(provenance());
  return files_of(scratch / "out");
}

TEST(CompressedTensorsWriter, WritesAWholeModel) {
  const TemporaryDirectory scratch;
  const std::string out = scratch / "out";
  CompressedTensorsWriter writer(options(out));
  EXPECT_EQ(verify_directory(out).state, DirectoryState::kIncomplete);
  for (int64_t part = 0; part < kNumParts; ++part) {
    EXPECT_FALSE(writer.is_done(part));
    write_example_part(writer, part);
    EXPECT_TRUE(writer.is_done(part));
    EXPECT_TRUE(fs::exists(writer.part_path(part)));
    EXPECT_EQ(verify_directory(out).state, DirectoryState::kIncomplete);
  }
  EXPECT_FALSE(fs::exists(out + "/config.json"));  // nobody can take it for a model yet
  writer.finish(provenance());
  EXPECT_EQ(verify_directory(out).state, DirectoryState::kWhole);
  EXPECT_FALSE(fs::exists(out + "/" + kJournalFileName));

  const Json config = read_json_file(out + "/config.json");
  EXPECT_EQ(config.at("model_type"), "llama");
  EXPECT_EQ(config.at("torch_dtype"), "bfloat16");
  const Json& quantization = config.at("quantization_config");
  EXPECT_EQ(quantization.at("format"), "mxfp4-pack-quantized");
  EXPECT_EQ(quantization.at("ignore"),
            Json::array({"model.layers.0.mlp.gate", "model.layers.1.mlp.gate",
                         "model.layers.2.mlp.gate", "lm_head"}));
  EXPECT_EQ(read_file(out + "/tokenizer.json"), "{\"version\": \"1.0\"}");

  // Every tensor is there, and where the index says.
  const SafetensorsSet set(out);
  EXPECT_EQ(set.tensors().size(), 3u * (2 * 3 + 2) + 2);
  const QuantizedMatrix down = random_matrix(weight_format_from_name("mxfp4"), 64, 128, 3);
  const TensorView* codes = set.find("model.layers.1.mlp.down_proj.weight_packed");
  ASSERT_NE(codes, nullptr);
  EXPECT_EQ(codes->shape, (Shape{64, 64}));
  EXPECT_EQ(std::memcmp(codes->data, down.codes.data(), 64 * 64), 0);
  // Manifest: everything but itself.
  EXPECT_EQ(read_manifest(out).files.size(), files_of(out).size() - 1);
}

TEST(CompressedTensorsWriter, DenseWeightsAloneMakeAnOrdinaryModel) {
  const TemporaryDirectory scratch;
  CompressedTensorsOptions dense_options = options(scratch / "out");
  dense_options.num_parts = 1;
  dense_options.config_json = R"({"dtype": "float32", "quantization_config": {"old": 1}})";
  CompressedTensorsWriter writer(dense_options);
  Tensor weight(DType::kBF16, {4, 64});
  std::memset(weight.data(), 1, static_cast<std::size_t>(weight.num_bytes()));
  const NamedTensor dense[] = {{"model.layers.0.mlp.up_proj.weight", weight.view()}};
  writer.write_part(0, {}, dense, "");
  writer.finish(provenance());
  EXPECT_EQ(dump_json(read_json_file(scratch / "out/config.json")), R"({"dtype":"bfloat16"})");
}

TEST(CompressedTensorsWriter, AResumedRunGivesTheSameBytes) {
  const auto expected = whole_directory();
  const TemporaryDirectory scratch;
  const std::string out = scratch / "out";
  for (int64_t stop_after = 0; stop_after < kNumParts; ++stop_after) {
    CompressedTensorsWriter writer(options(out, /*resume=*/true));
    for (int64_t part = 0; part < kNumParts; ++part) {
      EXPECT_EQ(writer.is_done(part), part < stop_after);
    }
    if (stop_after > 0 && stop_after <= kNumLayers) {
      EXPECT_EQ(writer.record(stop_after - 1), "error of layer " + std::to_string(stop_after - 1));
    }
    write_example_part(writer, stop_after);
  }
  CompressedTensorsWriter(options(out, true)).finish(provenance());
  EXPECT_EQ(files_of(out), expected);
}

// The real thing: a process killed without warning at random moments, many times over, until one
// gets through. The directory is never taken for whole before, and is right afterwards.
TEST(CompressedTensorsWriter, SurvivesKillsAtAnyMoment) {
  const auto expected = whole_directory();
  const TemporaryDirectory scratch;
  const std::string out = scratch / "out";
  int num_kills = 0;
  useconds_t delay_us = 100;
  while (true) {
    ASSERT_LT(num_kills, 1000);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      try {
        CompressedTensorsWriter writer(options(out, true));
        for (int64_t part = 0; part < kNumParts; ++part) {
          if (!writer.is_done(part)) write_example_part(writer, part);
        }
        writer.finish(provenance());
      } catch (...) {
        ::_exit(2);
      }
      ::_exit(0);
    }
    ::usleep(delay_us);
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    if (fs::exists(out + "/" + kManifestFileName))
      break;  // whole, even if it was killed after that
    ASSERT_TRUE(WIFSIGNALED(status)) << "the run failed by itself";
    ++num_kills;
    if (fs::exists(out) && !fs::is_empty(out)) {
      // Only what AtomicFile was about to put there may exist before the journal does.
      const auto state = verify_directory(out).state;
      EXPECT_TRUE(state == DirectoryState::kIncomplete ||
                  !fs::exists(out + "/model-00001-of-00004.safetensors"));
    }
    delay_us += 150;
  }
  EXPECT_GT(num_kills, 3);
  auto actual = files_of(out);
  actual.erase(kJournalFileName);  // a kill between the last two steps leaves it
  EXPECT_EQ(actual, expected);
  EXPECT_EQ(verify_directory(out).state, DirectoryState::kWhole);
}

TEST(CompressedTensorsWriter, ADamagedPartIsWrittenAnew) {
  const auto expected = whole_directory();
  const TemporaryDirectory scratch;
  const std::string out = scratch / "out";
  {
    CompressedTensorsWriter writer(options(out));
    for (int64_t part = 0; part < kNumParts; ++part) write_example_part(writer, part);
    std::string damaged = read_file(writer.part_path(1));
    damaged.back() = static_cast<char>(damaged.back() ^ 1);
    write_file_atomically(writer.part_path(1), damaged);
    fs::remove(writer.part_path(2));
  }
  CompressedTensorsWriter writer(options(out, true));
  EXPECT_TRUE(writer.is_done(0));
  EXPECT_FALSE(writer.is_done(1));
  EXPECT_FALSE(writer.is_done(2));
  EXPECT_TRUE(writer.is_done(3));
  write_example_part(writer, 1);
  write_example_part(writer, 2);
  writer.finish(provenance());
  EXPECT_EQ(files_of(out), expected);
}

TEST(CompressedTensorsWriter, NeverWritesOverAnythingElse) {
  const auto invalid = ErrorCode::kInvalidArgument;
  const TemporaryDirectory scratch;
  {  // a model of someone else, for example the source itself
    const std::string source = scratch / "source";
    fs::create_directory(source);
    write_file_atomically(source + "/config.json", "{}");
    for (const bool resume : {false, true}) {
      expect_error(invalid, "not lathe's",
                   [&] { CompressedTensorsWriter(options(source, resume)); });
    }
    EXPECT_EQ(files_of(source).size(), 1u);
  }
  const std::string out = scratch / "out";
  {
    CompressedTensorsWriter writer(options(out));
    write_example_part(writer, 0);
    expect_error(invalid, "another lathe", [&] { CompressedTensorsWriter(options(out, true)); });
    expect_error(invalid, "part 1 of 4 is not done", [&] { writer.finish(provenance()); });
    expect_error(invalid, "is done", [&] { write_example_part(writer, 0); });
    expect_error(invalid, "does not exist", [&] { write_example_part(writer, 4); });
    expect_error(invalid, "not done", [&] { writer.record(1); });
    Tensor again(DType::kBF16, {64});
    const NamedTensor dense[] = {{"model.layers.0.input_layernorm.weight", again.view()}};
    expect_error(invalid, "in another part", [&] { writer.write_part(1, {}, dense, ""); });
    EXPECT_FALSE(writer.is_done(1));
  }
  expect_error(invalid, "--resume", [&] { CompressedTensorsWriter(options(out, false)); });
  CompressedTensorsOptions other = options(out, true);
  other.settings = "nvfp4 seed 1";
  expect_error(invalid, "Begun with: mxfp4; now: nvfp4", [&] { CompressedTensorsWriter{other}; });
  other = options(out, true);
  other.num_parts = 2;
  expect_error(invalid, "other settings", [&] { CompressedTensorsWriter{other}; });
  {
    CompressedTensorsWriter writer(options(out, true));
    for (int64_t part = 1; part < kNumParts; ++part) write_example_part(writer, part);
    writer.finish(provenance());
  }
  for (const bool resume : {false, true}) {
    expect_error(invalid, "whole model", [&] { CompressedTensorsWriter(options(out, resume)); });
  }
}

TEST(CompressedTensorsWriter, RefusesABadJournalOrConfig) {
  const TemporaryDirectory scratch;
  CompressedTensorsOptions bad = options(scratch / "bad");
  bad.config_json = "[]";
  expect_error(ErrorCode::kCorruptData, "config.json", [&] { CompressedTensorsWriter{bad}; });
  EXPECT_FALSE(fs::exists(scratch / "bad"));

  const std::string out = scratch / "out";
  {
    CompressedTensorsWriter writer(options(out));
    write_example_part(writer, 0);
  }
  const std::string journal_path = out + "/" + kJournalFileName;
  const Json good = read_json_file(journal_path);
  struct Case {
    const char* pointer;
    Json value;
    ErrorCode code;
  };
  const auto corrupt = ErrorCode::kCorruptData;
  const Case cases[] = {
      {"/lathe_journal", 2, ErrorCode::kUnsupported},
      {"/settings", nullptr, corrupt},
      {"/num_parts", 0, corrupt},
      {"/num_parts", "4", corrupt},
      {"/parts", Json::object(), corrupt},
      {"/parts/0", 1, corrupt},
      {"/parts/0/part", 4, corrupt},
      {"/parts/0/part", -1, corrupt},
      {"/parts/0/bytes", -1, corrupt},
      {"/parts/0/modules/0/element", "e5m2", corrupt},
      {"/parts/0/modules/0/scale", nullptr, corrupt},
      {"/parts/0/modules/0/group_size", -1, corrupt},
      {"/parts/0/modules/0/activations", "int3", corrupt},
      {"/parts/0/modules/0/input_global_scale", -1, corrupt},
      {"/parts/0/modules/0/hadamard", 1.5, corrupt},
      {"/parts/0/dense_linears", Json::array({1}), corrupt},
      {"/parts/0/tensors", Json::array(), corrupt},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.pointer) + " = " + dump_json(c.value));
    Json changed = good;
    changed[Json::json_pointer(c.pointer)] = c.value;
    write_file_atomically(journal_path, dump_json(changed));
    expect_error(c.code, "", [&] { CompressedTensorsWriter(options(out, true)); });
  }
  write_file_atomically(journal_path, "{");
  expect_error(corrupt, kJournalFileName, [&] { CompressedTensorsWriter(options(out, true)); });
  // A journal that names a file elsewhere is not believed.
  Json outside = good;
  outside["parts"][0]["file"] = "../secret";
  write_file_atomically(journal_path, dump_json(outside));
  EXPECT_FALSE(CompressedTensorsWriter(options(out, true)).is_done(0));
}

}  // namespace
}  // namespace lathe
