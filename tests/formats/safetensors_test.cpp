#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "formats/expect_error.h"
#include "formats/temporary_directory.h"

namespace lathe {
namespace {

std::string file_of(const std::string& header, std::size_t data_bytes, char fill = 1) {
  uint64_t size = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &size, 8);
  return file + header + std::string(data_bytes, fill);
}

SafetensorsContent parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)), "test.safetensors");
}

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirBytes) {
  const std::string file = file_of(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[2,10]},)"
      R"("a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},)"
      R"("empty":{"dtype":"I64","shape":[0,7],"data_offsets":[10,10]}}   )",
      10);
  const SafetensorsContent content = parse(file);
  ASSERT_EQ(content.tensors.size(), 3u);
  EXPECT_EQ(content.tensors[0].name, "a");
  EXPECT_EQ(content.tensors[0].view.dtype, DType::kBF16);
  EXPECT_EQ(content.tensors[0].view.shape, Shape{});
  EXPECT_EQ(content.tensors[1].name, "b");
  EXPECT_EQ(content.tensors[1].view.shape, (Shape{2, 1}));
  EXPECT_EQ(content.tensors[1].view.data - content.tensors[0].view.data, 2);
  EXPECT_EQ(content.tensors[2].view.num_bytes(), 0);
  ASSERT_EQ(content.metadata.size(), 1u);
  EXPECT_EQ(content.metadata[0].second, "pt");
  EXPECT_TRUE(parse(file_of("{}", 0)).tensors.empty());
}

TEST(Safetensors, RefusesFilesThatContradictThemselves) {
  const auto one = [](const std::string& entry) { return R"({"a":)" + entry + "}"; };
  const std::string good = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  ASSERT_NO_THROW(parse(file_of(one(good), 8)));
  std::string huge_header = file_of("{}", 0);
  huge_header.replace(0, 8, "\xff\xff\xff\xff\xff\xff\xff\xff");
  std::string long_header = file_of("{}", 0);
  long_header[0] = 3;  // one byte more than there is
  const struct {
    std::string file;
    ErrorCode code;
    const char* message;
  } cases[] = {
      {"", ErrorCode::kCorruptData, "too few"},
      {"1234567", ErrorCode::kCorruptData, "too few"},
      {std::string(8, '\0'), ErrorCode::kCorruptData, "does not begin with '{'"},
      {huge_header, ErrorCode::kCorruptData, "header of 18446744073709551615 bytes"},
      {long_header, ErrorCode::kCorruptData, "header of 3 bytes"},
      {file_of("[]", 0), ErrorCode::kCorruptData, "does not begin with"},
      {file_of("{\"a\":", 0), ErrorCode::kCorruptData, "not valid JSON"},
      {file_of("{} x", 0), ErrorCode::kCorruptData, "not valid JSON"},
      {file_of("{\"\xff\":1}", 0), ErrorCode::kCorruptData, "not valid JSON"},
      {file_of(std::string(100000, '{'), 0), ErrorCode::kCorruptData, "not valid JSON"},
      {file_of("{\"a\":" + std::string(100000, '['), 0), ErrorCode::kCorruptData,
       "unexpected array"},
      {file_of(one(good), 7), ErrorCode::kCorruptData, "tensor 'a': data_offsets [0, 8] outside"},
      {file_of(one(good), 9), ErrorCode::kCorruptData, "tensors end at byte 8 of 9"},
      {file_of(one("5"), 8), ErrorCode::kCorruptData, "unexpected number"},
      {file_of(one("{}"), 8), ErrorCode::kCorruptData, "'a': needs dtype"},
      {file_of(one(R"({"dtype":"F32","shape":[2]})"), 8), ErrorCode::kCorruptData, "needs"},
      {file_of(one(R"({"dtype":"F33","shape":[2],"data_offsets":[0,8]})"), 8),
       ErrorCode::kUnsupported, "unknown dtype 'F33'"},
      {file_of(one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"), 8),
       ErrorCode::kCorruptData, "shape [3] of F32 does not make 8 bytes"},
      {file_of(one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), 8),
       ErrorCode::kCorruptData, "negative"},
      {file_of(one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"), 8),
       ErrorCode::kCorruptData, "fraction"},
      {file_of(one(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]})"), 8),
       ErrorCode::kCorruptData, "impossible shape"},
      // The product wraps around to 8 bytes in 64 bits.
      {file_of(one(R"({"dtype":"F32","shape":[4611686018427387904,4,2],"data_offsets":[0,8]})"), 8),
       ErrorCode::kCorruptData, "impossible shape"},
      {file_of(one(R"({"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]})"), 0),
       ErrorCode::kCorruptData, "does not make 0 bytes"},
      {file_of(
           one(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})"),
           8),
       ErrorCode::kCorruptData, "impossible shape"},
      {file_of(one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"), 8),
       ErrorCode::kCorruptData, "outside"},
      {file_of(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})"), 8),
       ErrorCode::kCorruptData, "two numbers"},
      {file_of(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,8]})"), 8),
       ErrorCode::kCorruptData, "unexpected number"},
      {file_of(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":0})"), 8),
       ErrorCode::kCorruptData, "unexpected"},
      {file_of(one(R"({"dtype":"F32","shape":[2],"data_offsets":[4,12]})"), 12),
       ErrorCode::kCorruptData, "(hole)"},
      {file_of("{\"a\":" + good + ",\"a\":" + good + "}", 8), ErrorCode::kCorruptData,
       "two entries named 'a'"},
      {file_of("{\"a\":" + good + R"(,"b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}})", 12),
       ErrorCode::kCorruptData, "tensor 'b' begins at byte 4, but the tensor before it ends at 8"},
      {file_of("{\"" + std::string(5000, 'n') + "\":" + good + "}", 8), ErrorCode::kCorruptData,
       "a tensor name of 5000 bytes"},
      {file_of(R"({"__metadata__":{"a":1}})", 0), ErrorCode::kCorruptData, "unexpected number"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.message);
    expect_error(c.code, c.message, [&] { parse(c.file); });
    expect_error(c.code, "test.safetensors", [&] { parse(c.file); });
  }
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string file = file_of(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}})",
      9);
  ASSERT_NO_THROW(parse(file));
  for (std::size_t size = 0; size < file.size(); ++size) {
    SCOPED_TRACE(size);
    expect_error(ErrorCode::kCorruptData, "", [&] { parse(file.substr(0, size)); });
  }
}

TEST(Safetensors, LoadsMisalignedTensors) {
  // One byte in front makes the floats begin at an odd address.
  std::string file = file_of(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
      9);
  const float values[] = {1.5f, -2.25f};
  std::memcpy(file.data() + file.size() - 8, values, 8);
  TemporaryDirectory directory;
  const SafetensorsFile mapped(directory.write("x.safetensors", file));
  const TensorView& view = mapped.at("b");
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor loaded = convert(load_dense(view, dtype).view(), DType::kF32);
    EXPECT_EQ(loaded.as<float>()[0], 1.5f);
    EXPECT_EQ(loaded.as<float>()[1], -2.25f);
  }
  expect_error(ErrorCode::kNotFound, "x.safetensors: no tensor 'c'", [&] { mapped.at("c"); });
}

class ShardedSafetensors : public testing::Test {
 protected:
  void SetUp() override {
    directory.write("one.safetensors",
                    file_of(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2, 'x'));
    directory.write("two.safetensors",
                    file_of(R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", 3, 'y'));
  }
  void index(const std::string& text) { directory.write("model.safetensors.index.json", text); }
  TemporaryDirectory directory;
};

TEST_F(ShardedSafetensors, FindsTensorsThroughTheIndex) {
  index(R"({"metadata":{"total_size":5,"x":[1,{"y":null}]},)"
        R"("weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  const SafetensorsSet set(directory.path());
  EXPECT_EQ(set.tensors().size(), 2u);
  EXPECT_EQ(*set.find("b")->as<char>(), 'y');
  EXPECT_EQ(set.find("c"), nullptr);
  EXPECT_EQ(set.file_names(), (std::vector<std::string>{"one.safetensors", "two.safetensors"}));
  set.release_pages();
  EXPECT_EQ(*set.find("a")->as<char>(), 'x');
}

TEST_F(ShardedSafetensors, RefusesBadIndexes) {
  const struct {
    const char* text;
    ErrorCode code;
    const char* message;
  } cases[] = {
      {"", ErrorCode::kCorruptData, "not valid JSON"},
      {"{}", ErrorCode::kCorruptData, "no weight_map"},
      {"5", ErrorCode::kCorruptData, ""},
      {R"({"weight_map":[]})", ErrorCode::kCorruptData, "no weight_map"},
      {R"({"weight_map":{"a":1}})", ErrorCode::kCorruptData, "something else than names"},
      {R"({"weight_map":{"a":{}}})", ErrorCode::kCorruptData, "something else than names"},
      {R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})", ErrorCode::kCorruptData,
       "named twice"},
      {R"({"weight_map":{"a":"two.safetensors"}})", ErrorCode::kCorruptData,
       "tensor 'a' is not in two.safetensors"},
      {R"({"weight_map":{"a":"../one.safetensors"}})", ErrorCode::kCorruptData, "not a file name"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", ErrorCode::kCorruptData, "not a file name"},
      {R"({"weight_map":{"a":""}})", ErrorCode::kCorruptData, "not a file name"},
      {R"({"weight_map":{"a":"three.safetensors"}})", ErrorCode::kNotFound, "three.safetensors"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.text);
    index(c.text);
    expect_error(c.code, c.message, [&] { SafetensorsSet set(directory.path()); });
  }
}

TEST(SafetensorsSet, NamesWhatIsMissing) {
  TemporaryDirectory directory;
  expect_error(ErrorCode::kNotFound, "neither model.safetensors nor",
               [&] { SafetensorsSet set(directory.path()); });
}

}  // namespace
}  // namespace lathe
