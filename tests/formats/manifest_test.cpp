#include "formats/manifest.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/atomic_file.h"
#include "base/json.h"
#include "base/sha256.h"
#include "formats/expect_error.h"
#include "formats/temporary_directory.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

const std::string kDigest(64, 'a');

// A directory with two files and a manifest with every field.
Manifest write_example(const std::string& directory) {
  write_file_atomically(directory + "/weights", "0123456789");
  write_file_atomically(directory + "/config.json", "{}");
  Manifest manifest;
  manifest.lathe_version = "0.1.0";
  manifest.created = "2026-11-23T12:00:00Z";
  manifest.source = "model";
  manifest.command = "lathe quantize model out --format mxfp4";
  manifest.settings = {{"format", "mxfp4"}, {"hadamard", "32"}};
  update_file(manifest, directory, "weights");
  update_file(manifest, directory, "config.json");
  manifest.quality = {{"perplexity", "wiki.test", 20.5, 19.25, "windows 8"},
                      {"kld", "wiki.test", 0.01, std::nullopt, ""}};
  manifest.fingerprint = LogitsFingerprint{{1, 2, 3}, {7, 5}, {3.25, 1.5}, 0.01, "ref"};
  write_manifest(directory, manifest);
  return manifest;
}

TEST(Manifest, ReadsBackWhatWasWritten) {
  const TemporaryDirectory scratch;
  write_example(scratch.path());
  const Manifest manifest = read_manifest(scratch.path());
  EXPECT_EQ(manifest.lathe_version, "0.1.0");
  EXPECT_EQ(manifest.created, "2026-11-23T12:00:00Z");
  EXPECT_EQ(manifest.source, "model");
  EXPECT_EQ(manifest.command, "lathe quantize model out --format mxfp4");
  ASSERT_EQ(manifest.settings.size(), 2u);
  EXPECT_EQ(manifest.settings[1].second, "32");
  ASSERT_EQ(manifest.files.size(), 2u);
  EXPECT_EQ(manifest.files[1].name, "weights");  // sorted
  EXPECT_EQ(manifest.files[1].bytes, 10);
  EXPECT_EQ(manifest.files[1].sha256, sha256_hex_of_file(scratch / "weights"));
  ASSERT_EQ(manifest.quality.size(), 2u);
  EXPECT_EQ(manifest.quality[0].baseline, 19.25);
  EXPECT_FALSE(manifest.quality[1].baseline.has_value());
  ASSERT_TRUE(manifest.fingerprint.has_value());
  EXPECT_EQ(manifest.fingerprint->top_ids, (std::vector<int64_t>{7, 5}));
  EXPECT_EQ(manifest.fingerprint->top_logits, (std::vector<double>{3.25, 1.5}));

  // Equal content gives equal bytes, whatever order the files came in.
  const std::string before = read_file(scratch / kManifestFileName);
  write_manifest(scratch.path(), manifest);
  EXPECT_EQ(read_file(scratch / kManifestFileName), before);
}

TEST(VerifyDirectory, SaysWhatDiffers) {
  const TemporaryDirectory scratch;
  EXPECT_EQ(verify_directory(scratch.path()).state, DirectoryState::kForeign);
  write_example(scratch.path());
  EXPECT_EQ(verify_directory(scratch.path()).state, DirectoryState::kWhole);

  write_file_atomically(scratch / "weights", "012345678X");  // same size
  EXPECT_EQ(verify_directory(scratch.path(), false).state, DirectoryState::kWhole);
  DirectoryReport report = verify_directory(scratch.path());
  EXPECT_EQ(report.state, DirectoryState::kDamaged);
  ASSERT_EQ(report.problems.size(), 1u);
  EXPECT_NE(report.problems[0].find("weights: the content differs"), std::string::npos);

  write_file_atomically(scratch / "weights", "01234");
  fs::remove(scratch / "config.json");
  report = verify_directory(scratch.path(), false);
  EXPECT_EQ(report.state, DirectoryState::kDamaged);
  EXPECT_EQ(report.problems, (std::vector<std::string>{"config.json: missing",
                                                       "weights: 5 bytes, the manifest says 10"}));
}

TEST(VerifyDirectory, AJournalWithoutAManifestIsAnUnfinishedRun) {
  const TemporaryDirectory scratch;
  write_file_atomically(scratch / kJournalFileName, "{}");
  write_file_atomically(scratch / "config.json", "{}");
  const DirectoryReport report = verify_directory(scratch.path());
  EXPECT_EQ(report.state, DirectoryState::kIncomplete);
  EXPECT_EQ(report.problems.size(), 1u);
  expect_error(ErrorCode::kNotFound, scratch.path(),
               [&] { verify_directory(scratch / "nowhere"); });
}

TEST(Manifest, RefusesWhatCannotBe) {
  struct Case {
    const char* pointer;  // the place to change
    Json value;
    ErrorCode code;
  };
  const auto corrupt = ErrorCode::kCorruptData;
  const Case cases[] = {
      {"/lathe_manifest", 2, ErrorCode::kUnsupported},
      {"/lathe_manifest", "1", corrupt},
      {"/created", nullptr, corrupt},
      {"/settings", Json::array(), corrupt},
      {"/settings/format", 4, corrupt},
      {"/files", Json::object(), corrupt},
      {"/files/0", "weights", corrupt},
      {"/files/0/name", "../../etc/passwd", corrupt},
      {"/files/0/name", "/etc/passwd", corrupt},
      {"/files/0/name", "..", corrupt},
      {"/files/0/name", "", corrupt},
      {"/files/0/name", std::string("a\0b", 3), corrupt},
      {"/files/0/name", "weights", corrupt},  // listed twice
      {"/files/0/bytes", -1, corrupt},
      {"/files/0/bytes", 1.5, corrupt},
      {"/files", nullptr, corrupt},
      {"/quality/0", 3, corrupt},
      {"/files/0/bytes", 18446744073709551615u, corrupt},
      {"/files/0/sha256", "abc", corrupt},
      {"/files/0/sha256", std::string(64, 'G'), corrupt},
      {"/quality/0/value", "low", corrupt},
      {"/quality/0/baseline", "low", corrupt},
      {"/logits_fingerprint/token_ids/0", -1, corrupt},
      {"/logits_fingerprint/token_ids/0", 1.5, corrupt},
      {"/logits_fingerprint/top_logits", Json::array({1.0}), corrupt},  // top_ids has two
      {"/logits_fingerprint/tolerance", nullptr, corrupt},
  };
  for (const Case& bad : cases) {
    SCOPED_TRACE(std::string(bad.pointer) + " = " + dump_json(bad.value));
    const TemporaryDirectory scratch;
    write_example(scratch.path());
    Json json = read_json_file(scratch / kManifestFileName);
    json[Json::json_pointer(bad.pointer)] = bad.value;
    write_file_atomically(scratch / kManifestFileName, dump_json(json));
    expect_error(bad.code, kManifestFileName, [&] { read_manifest(scratch.path()); });
    expect_error(bad.code, kManifestFileName, [&] { verify_directory(scratch.path()); });
  }
}

TEST(Manifest, IsNeverWrittenUnreadable) {
  const TemporaryDirectory scratch;
  Manifest manifest;
  manifest.files = {{"sub/file", 1, kDigest}};
  expect_error(ErrorCode::kCorruptData, "sub/file",
               [&] { write_manifest(scratch.path(), manifest); });
  EXPECT_FALSE(fs::exists(scratch / kManifestFileName));
}

}  // namespace
}  // namespace lathe
