#include "formats/gguf.h"

#include <gtest/gtest.h>

#include "formats/expect_error.h"
#include "formats/gguf_builder.h"
#include "formats/temporary_directory.h"

namespace lathe {
namespace {

using B = GgufBuilder;

GgufContent parse(const std::string& file) {
  return parse_gguf(std::as_bytes(std::span(file)), "test.gguf");
}

GgufBuilder small() {
  GgufBuilder builder;
  builder.u32("a.u32", 7)
      .value("a.u8", 0, B::raw(uint8_t{200}))
      .value("a.i8", 1, B::raw(int8_t{-3}))
      .value("a.u16", 2, B::raw(uint16_t{60000}))
      .value("a.i16", 3, B::raw(int16_t{-300}))
      .value("a.i32", 5, B::raw(int32_t{-7}))
      .value("a.f32", 6, B::raw(1e-5f))
      .value("a.bool", 7, B::raw(uint8_t{1}))
      .string("a.text", "h\xc3\xa9")
      .value("a.u64", 10, B::raw(uint64_t{1} << 63))
      .value("a.i64", 11, B::raw(int64_t{-1}))
      .value("a.f64", 12, B::raw(0.25))
      .value("a.names", 9, B::raw(uint32_t{8}) + B::raw(uint64_t{2}) + B::text("x") + B::text(""))
      .value("a.types", 9,
             B::raw(uint32_t{5}) + B::raw(uint64_t{2}) + B::raw(int32_t{3}) + B::raw(int32_t{-1}))
      .value("a.scores", 9, B::raw(uint32_t{6}) + B::raw(uint64_t{1}) + B::raw(-1.5f))
      .value("a.empty", 9, B::raw(uint32_t{4}) + B::raw(uint64_t{0}));
  builder.tensor("w", {4, 2}, 0, 0).tensor("q", {32, 3}, 8, 32);
  builder.data.assign(32 + 3 * 34, '\x01');
  return builder;
}

TEST(Gguf, ReadsMetadataAndTensors) {
  for (const uint32_t version : {2u, 3u}) {
    GgufBuilder builder = small();
    builder.version = version;
    TemporaryDirectory directory;
    const GgufFile file(directory.write("x.gguf", builder.file()));
    EXPECT_EQ(file.integer("a.u32", 0, 10), 7);
    EXPECT_EQ(file.integer("a.u8", 0, 255), 200);
    EXPECT_EQ(file.integer("a.i8", -10, 10), -3);
    EXPECT_EQ(file.integer("a.u16", 0, 65535), 60000);
    EXPECT_EQ(file.integer("a.i16", -1000, 0), -300);
    EXPECT_EQ(file.integer("a.i32", -10, 10), -7);
    EXPECT_EQ(file.integer("a.i64", -1, 0), -1);
    EXPECT_EQ(file.number("a.f32", 0, 1), 1e-5);  // the decimal, not the nearest float
    EXPECT_EQ(file.number("a.f64", 0, 1), 0.25);
    EXPECT_EQ(file.number("a.u32", 0, 10), 7);
    EXPECT_TRUE(file.boolean_or("a.bool", false));
    EXPECT_EQ(file.text("a.text"), "h\xc3\xa9");
    EXPECT_EQ(file.strings("a.names"), (std::vector<std::string_view>{"x", ""}));
    EXPECT_EQ(file.integers("a.types"), (std::vector<int64_t>{3, -1}));
    EXPECT_EQ(file.floats("a.scores"), std::vector<float>{-1.5f});
    EXPECT_TRUE(file.integers("a.empty").empty());
    EXPECT_EQ(file.integer_or("none", 5, 0, 9), 5);
    EXPECT_EQ(file.text_or("none", "d"), "d");

    const GgufTensor* q = file.find_tensor("q");
    ASSERT_NE(q, nullptr);
    EXPECT_EQ(q->shape, (Shape{3, 32}));
    EXPECT_EQ(q->num_bytes, 3 * 34);
    EXPECT_EQ(q->type->name, "Q8_0");
    EXPECT_EQ(q->data - file.find_tensor("w")->data, 32);
    EXPECT_EQ(file.find_tensor("none"), nullptr);

    const auto corrupt = [&](const char* message, const auto& body) {
      SCOPED_TRACE(message);
      expect_error(ErrorCode::kCorruptData, message, body);
    };
    corrupt("'none' is missing", [&] { file.integer("none", 0, 1); });
    corrupt("'a.u32' = 7, must be between 0 and 6", [&] { file.integer("a.u32", 0, 6); });
    corrupt("'a.u64' = 9223372036854775808 is too large", [&] { file.integer("a.u64", 0, 1); });
    corrupt("'a.text' is not a whole number", [&] { file.integer("a.text", 0, 1); });
    corrupt("'a.text' is not a number", [&] { file.number("a.text", 0, 1); });
    corrupt("'a.u32' is not a string", [&] { file.text("a.u32"); });
    corrupt("'a.u32' is not true or false", [&] { file.boolean_or("a.u32", true); });
    corrupt("'a.types' is not a list of strings", [&] { file.strings("a.types"); });
    corrupt("'a.names' is not a list of whole", [&] { file.integers("a.names"); });
    corrupt("'a.types' is not a list of fp32", [&] { file.floats("a.types"); });
  }
}

TEST(Gguf, EveryTruncationIsRefused) {
  const std::string whole = small().file();
  ASSERT_NO_THROW(parse(whole));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    SCOPED_TRACE(size);
    expect_error(ErrorCode::kCorruptData, "test.gguf", [&] { parse(whole.substr(0, size)); });
  }
}

TEST(Gguf, RefusesFilesThatContradictThemselves) {
  const auto with = [](const auto& change) {
    GgufBuilder builder;
    builder.data.assign(1024, '\0');
    change(builder);
    return builder.file();
  };
  const auto versioned = [&](uint32_t version) { return with([&](B& b) { b.version = version; }); };
  constexpr uint64_t kHuge = uint64_t{1} << 62;
  const struct {
    std::string file;
    ErrorCode code;
    const char* message;
  } cases[] = {
      {"GGML", ErrorCode::kCorruptData, "does not begin with GGUF"},
      {"GGUX1234", ErrorCode::kCorruptData, "does not begin with GGUF"},
      {versioned(1), ErrorCode::kUnsupported, "version 1 "},
      {versioned(4), ErrorCode::kUnsupported, "version 4 "},
      {versioned(0x03000000), ErrorCode::kUnsupported, "version 3 in big-endian"},
      {with([](B& b) { b.num_values = kHuge; }), ErrorCode::kCorruptData, "test.gguf"},
      {with([](B& b) { b.num_tensors = kHuge; }), ErrorCode::kCorruptData, "test.gguf"},
      {with([](B& b) { b.value("k", 13, ""); }), ErrorCode::kCorruptData,
       "'k' has unknown type 13"},
      {with([](B& b) { b.value("k", 8, B::raw(kHuge)); }), ErrorCode::kCorruptData, "bytes wanted"},
      {with([](B& b) { b.value("k", 9, B::raw(uint32_t{4}) + B::raw(kHuge)); }),
       ErrorCode::kCorruptData, "'k' has 4611686018427387904 elements"},
      {with([](B& b) { b.value("k", 9, B::raw(uint32_t{8}) + B::raw(kHuge)); }),
       ErrorCode::kCorruptData, "more than the file holds"},
      {with([](B& b) { b.value("k", 9, B::raw(uint32_t{9}) + B::raw(uint64_t{1})); }),
       ErrorCode::kUnsupported, "array of arrays"},
      {with([](B& b) { b.value("k", 9, B::raw(uint32_t{99}) + B::raw(uint64_t{1})); }),
       ErrorCode::kCorruptData, "unknown type 99"},
      {with([](B& b) { b.u32("k", 1).u32("k", 2); }), ErrorCode::kCorruptData,
       "'k' is there twice"},
      {with([](B& b) { b.u32("general.alignment", 0); }), ErrorCode::kCorruptData, "alignment"},
      {with([](B& b) { b.u32("general.alignment", 48); }), ErrorCode::kCorruptData, "alignment"},
      {with([](B& b) { b.u32("general.alignment", 1u << 31); }), ErrorCode::kCorruptData,
       "alignment"},
      {with([](B& b) { b.string("general.alignment", "32"); }), ErrorCode::kCorruptData,
       "alignment"},
      {with([](B& b) { b.tensor("", {4}, 0, 0); }), ErrorCode::kCorruptData, "name of 0 bytes"},
      {with([](B& b) { b.tensor("t", {}, 0, 0); }), ErrorCode::kCorruptData, "0 dimensions"},
      {with([](B& b) {
         b.tensor("t", {1, 1, 1, 1, 1}, 0, 0);
       }),
       ErrorCode::kCorruptData, "5 dimensions"},
      {with([](B& b) { b.tensor("t", {0}, 0, 0); }), ErrorCode::kCorruptData, "dimension 0 is 0"},
      {with([](B& b) { b.tensor("t", {uint64_t{1} << 63}, 0, 0); }), ErrorCode::kCorruptData,
       "dimension 0 is"},
      {with([](B& b) {
         b.tensor("t", {uint64_t{1} << 32, uint64_t{1} << 32}, 0, 0);
       }),
       ErrorCode::kCorruptData, "impossible shape"},
      {with([](B& b) { b.tensor("t", {kHuge}, 0, 0); }), ErrorCode::kCorruptData,
       "impossible shape"},
      {with([](B& b) { b.tensor("t", {32}, 16, 0); }), ErrorCode::kUnsupported, "ggml type 16"},
      {with([](B& b) { b.tensor("t", {48}, 8, 0); }), ErrorCode::kCorruptData,
       "48 columns do not make blocks of 32"},
      {with([](B& b) { b.tensor("t", {512}, 0, 0); }), ErrorCode::kCorruptData,
       "2048 bytes at offset 0 of 1024"},
      {with([](B& b) { b.tensor("t", {4}, 0, 1024); }), ErrorCode::kCorruptData,
       "16 bytes at offset 1024"},
      {with([](B& b) { b.tensor("t", {4}, 0, UINT64_MAX - 15); }), ErrorCode::kCorruptData,
       "at offset 18446744073709551600"},
      {with([](B& b) { b.tensor("t", {4}, 0, 8); }), ErrorCode::kCorruptData,
       "not a multiple of 32"},
      {with([](B& b) { b.tensor("s", {16}, 0, 0).tensor("t", {4}, 0, 32); }),
       ErrorCode::kCorruptData, "'t' overlaps another"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.message);
    expect_error(c.code, c.message, [&] { parse(c.file); });
  }
  TemporaryDirectory directory;
  const std::string twice = with([](B& b) { b.tensor("t", {4}, 0, 0).tensor("t", {4}, 0, 32); });
  expect_error(ErrorCode::kCorruptData, "'t' is there twice",
               [&] { GgufFile file(directory.write("x.gguf", twice)); });
}

TEST(Gguf, TakesAnotherAlignment) {
  GgufBuilder builder;
  builder.u32("general.alignment", 128).tensor("t", {4}, 0, 128);
  builder.data.assign(128, '\0');
  builder.data.append(B::raw(2.5f) + std::string(12, '\0'));
  const std::string file = builder.file(128);
  const GgufContent content = parse(file);
  float value = 0;
  std::memcpy(&value, content.tensors[0].data, 4);
  EXPECT_EQ(value, 2.5f);
}

}  // namespace
}  // namespace lathe
