// J11: what a judge is bound to, and that one of an older schema still loads and says so. Round
// trips and damaged files: tests/compress/judge_training_test.cpp.
#include "formats/judge_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/mmap_file.h"
#include "formats/expect_error.h"
#include "formats/safetensors.h"
#include "formats/temporary_directory.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

std::string read_file(const std::string& path) {
  const MmapFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

JudgeTarget a_target() {
  return {.config_sha256 = "c",
          .weights_sha256 = "w",
          .weight_format = "mxfp4",
          .hidden_size = 2,
          .layers_sha256 = "l",
          .tokenizer_sha256 = "t",
          .compute = "auto",
          .kv_format = "bf16",
          .name = "tiny"};
}

JudgeFile a_judge() {
  return {.weight = {1, -1},
          .bias = 0.5f,
          .mean = {0, 0},
          .scale = {1, 1},
          .raw_weight = {1, -1},
          .threshold = {0.25f},
          .recall = {0.9f},
          .rho = {0.5f},
          .target = a_target(),
          .default_threshold = 0.25,
          .certified = {},
          .metadata = "{}"};
}

// The same file with other text of the same length in its metadata.
std::string replaced(std::string bytes, const std::string& from, const std::string& to) {
  const std::size_t at = bytes.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  EXPECT_EQ(from.size(), to.size());
  return at == std::string::npos ? bytes : bytes.replace(at, from.size(), to);
}

TEST(JudgeFile, IsRefusedForAnotherTarget) {
  const JudgeFile judge = a_judge();
  EXPECT_EQ(check_judge_target(judge, "j", a_target(), "m"), "");
  struct Case {
    std::string JudgeTarget::*field;
    const char* part;
  };
  const Case cases[] = {{&JudgeTarget::config_sha256, "configuration c"},
                        {&JudgeTarget::weights_sha256, "weights w"},
                        {&JudgeTarget::weight_format, "weight format mxfp4"},
                        {&JudgeTarget::layers_sha256, "other layers' weights l"},
                        {&JudgeTarget::tokenizer_sha256, "tokenizer t"},
                        {&JudgeTarget::compute, "--dtype auto"},
                        {&JudgeTarget::kv_format, "--kv bf16"}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.part);
    JudgeTarget other = a_target();
    other.*c.field = "another";
    expect_error(ErrorCode::kInvalidArgument, c.part,
                 [&] { check_judge_target(judge, "j", other, "m"); });
  }
  JudgeTarget wide = a_target();
  wide.hidden_size = 3;
  expect_error(ErrorCode::kInvalidArgument, "hidden size 2",
               [&] { check_judge_target(judge, "j", wide, "m"); });
  JudgeTarget moved = a_target();
  moved.name = "elsewhere";
  EXPECT_EQ(check_judge_target(judge, "j", moved, "m"), "");
}

TEST(JudgeFile, OfTheFirstSchemaSaysWhatItDoesNotKnow) {
  const TemporaryDirectory directory;
  write_judge_file(directory / "new", a_judge());
  const std::string bytes = read_file(directory / "new");
  directory.write("old", replaced(bytes, R"(\"schema\":2)", R"(\"schema\":1)"));
  const JudgeFile old = read_judge_file(directory / "old");
  EXPECT_EQ(check_judge_target(old, "old", a_target(), "m"),
            "tokenizer, other layers' weights, precision, cache format");
  JudgeTarget other = a_target();
  other.weights_sha256 = "v";
  expect_error(ErrorCode::kInvalidArgument, "weights w",
               [&] { check_judge_target(old, "old", other, "m"); });
  expect_error(ErrorCode::kUnsupported, "schema 3", [&] {
    read_judge_file(directory.write("next", replaced(bytes, R"(\"schema\":2)", R"(\"schema\":3)")));
  });
}

// Hidden states of another model, or of another token, are none of its business.
TEST(JudgeFile, OfOtherFeaturesOrForOneDraftIsRefused) {
  const TemporaryDirectory directory;
  write_judge_file(directory / "good", a_judge());
  const std::string bytes = read_file(directory / "good");
  const auto expect_refused = [&](const char* part, const std::string& from,
                                  const std::string& to) {
    expect_error(ErrorCode::kUnsupported, part,
                 [&] { read_judge_file(directory.write("bad", replaced(bytes, from, to))); });
  };
  expect_refused("features", "h_target", "h_drafts");
  expect_refused("features", "draft_token", "some_token_");
  expect_refused("features", R"(\"dim\":2)", R"(\"dim\":3)");
  expect_refused("one draft", R"(\"any\")", R"(\"one\")");
  expect_error(ErrorCode::kCorruptData, "kv_format", [&] {
    read_judge_file(directory.write("bad", replaced(bytes, "kv_format", "kv_farmat")));
  });
}

// Whichever weights a fine-tune has changed: the fingerprint of all of them together is another.
TEST(JudgeTarget, ChangesWithTheWeightsOfAnyPart) {
  const std::string golden = golden_path("tiny/qwen2-tied-mqa");
  const JudgeTarget original = judge_target(*Checkpoint::open(golden));
  EXPECT_EQ(original, judge_target(*Checkpoint::open(golden)));
  EXPECT_EQ(original.weight_format, "dense");
  const SafetensorsFile weights(golden + "/model.safetensors");
  for (const char* name :
       {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.input_layernorm.weight", "model.layers.2.self_attn.o_proj.weight",
        "model.layers.2.mlp.down_proj.weight", "model.norm.weight"}) {
    SCOPED_TRACE(name);
    const TemporaryDirectory copy;
    std::filesystem::copy_file(golden + "/config.json", copy / "config.json");
    std::string bytes = read_file(golden + "/model.safetensors");
    const TensorView& view = weights.at(name);
    const std::string_view content(reinterpret_cast<const char*>(view.data),
                                   static_cast<std::size_t>(view.num_bytes()));
    const std::size_t at = bytes.find(content);
    ASSERT_NE(at, std::string::npos);
    bytes[at] = static_cast<char>(bytes[at] ^ 1);  // the least bit of the first number
    copy.write("model.safetensors", bytes);
    const JudgeTarget changed = judge_target(*Checkpoint::open(copy.path()));
    EXPECT_TRUE(changed.weights_sha256 != original.weights_sha256 ||
                changed.layers_sha256 != original.layers_sha256);
    EXPECT_EQ(changed.config_sha256, original.config_sha256);
  }
}

}  // namespace
}  // namespace lathe
