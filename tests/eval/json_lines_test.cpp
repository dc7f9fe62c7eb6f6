#include "eval/json_lines.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"

namespace lathe {
namespace {

std::string temporary(const std::string& name, const std::string& content) {
  const auto path = std::filesystem::temp_directory_path() / (std::to_string(getpid()) + name);
  write_file_atomically(path.string(), content);
  return path.string();
}

std::string gzip(const std::string& text) {
  const std::string path = temporary("packed.gz", "");
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  gzclose(file);
  return read_file(path);
}

ErrorCode code_of(const std::string& path, int64_t max_bytes = 1 << 20) {
  try {
    read_text_file(path, max_bytes);
    for_each_json_line(path, [](const Json& line) { string_field(line, "a"); });
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::kInternal;
}

TEST(JsonLines, ReadsPlainAndGzip) {
  const std::string text = "{\"a\": \"1\"}\n\n{\"a\": \"2\"}";
  for (const std::string& content : {text, gzip(text)}) {
    std::string seen;
    for_each_json_line(temporary("ok.jsonl", content),
                       [&](const Json& line) { seen += string_field(line, "a"); });
    EXPECT_EQ(seen, "12");
  }
}

TEST(JsonLines, BadFiles) {
  const std::string packed = gzip(std::string(1 << 16, 'x'));
  EXPECT_EQ(code_of("/no/such/file"), ErrorCode::kNotFound);
  EXPECT_EQ(code_of(temporary("cut.gz", packed.substr(0, packed.size() / 2))),
            ErrorCode::kCorruptData);
  EXPECT_EQ(code_of(temporary("bomb.gz", packed), 1000), ErrorCode::kCorruptData);
  EXPECT_EQ(code_of(temporary("syntax.jsonl", "{\"a\": \"1\"}\n{")), ErrorCode::kCorruptData);
  EXPECT_EQ(code_of(temporary("missing.jsonl", "{\"b\": \"1\"}")), ErrorCode::kCorruptData);
  EXPECT_EQ(code_of(temporary("type.jsonl", "{\"a\": 1}")), ErrorCode::kCorruptData);
  EXPECT_EQ(code_of(temporary("array.jsonl", "[1]")), ErrorCode::kCorruptData);
}

TEST(JsonLines, ErrorsNameTheLine) {
  try {
    for_each_json_line(temporary("third.jsonl", "{\"a\": \"1\"}\n\n{\"b\": 1}"),
                       [](const Json& line) { string_field(line, "a"); });
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("line 3"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace lathe
