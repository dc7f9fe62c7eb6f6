#include "formats/safetensors_writer.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstring>
#include <filesystem>
#include <numeric>

#include "base/json.h"
#include "formats/expect_error.h"
#include "formats/manifest.h"
#include "formats/temporary_directory.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

Tensor counting(DType dtype, const Shape& shape, int first = 0) {
  Tensor tensor(dtype, shape);
  auto* bytes = tensor.as<unsigned char>();
  for (int64_t i = 0; i < tensor.num_bytes(); ++i) {
    bytes[i] = static_cast<unsigned char>(first + i);
  }
  return tensor;
}

// A file taken apart by the letter of the format, without the project's own reader.
struct Parsed {
  Json header;
  std::string data;
  std::string bytes_of(const std::string& tensor) const {
    const auto begin = header.at(tensor).at("data_offsets").at(0).get<std::size_t>();
    const auto end = header.at(tensor).at("data_offsets").at(1).get<std::size_t>();
    return data.substr(begin, end - begin);
  }
};
Parsed parse(const std::string& path) {
  const std::string file = read_file(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  EXPECT_LE(8 + header_bytes, file.size());
  return {parse_json(file.substr(8, header_bytes), path), file.substr(8 + header_bytes)};
}

std::string bytes_of(const Tensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.data()),
          static_cast<std::size_t>(tensor.num_bytes())};
}

// While it lives, this process cannot make a file longer than num_bytes: the nearest thing to a
// full disk that needs no privileges.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t num_bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = num_bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

TEST(SafetensorsWriter, WritesWhatTheFormatSays) {
  const TemporaryDirectory scratch;
  const Tensor bytes = counting(DType::kU8, {3}, 1);
  const Tensor floats = counting(DType::kF32, {2, 3}, 10);
  const Tensor scalar = counting(DType::kI64, {}, 50);
  const Tensor none = counting(DType::kBF16, {0, 4});
  SafetensorsWriter writer(scratch / "a.safetensors", {{"b", DType::kU8, {3}},
                                                       {"f", DType::kF32, {2, 3}},
                                                       {"s", DType::kI64, {}},
                                                       {"n", DType::kBF16, {0, 4}}});
  writer.write("b", bytes.view());  // neither declared nor stored in this order
  writer.write("s", scalar.view());
  writer.write("n", none.view());
  EXPECT_FALSE(writer.complete());
  writer.write("f", floats.view());
  EXPECT_TRUE(writer.complete());
  EXPECT_FALSE(fs::exists(scratch / "a.safetensors"));
  writer.commit();

  const Parsed file = parse(scratch / "a.safetensors");
  EXPECT_EQ(file.header.at("__metadata__").at("format"), "pt");
  EXPECT_EQ(file.header.at("f").at("dtype"), "F32");
  EXPECT_EQ(file.header.at("f").at("shape"), Json({2, 3}));
  EXPECT_EQ(file.header.at("s").at("shape"), Json::array());
  EXPECT_EQ(file.bytes_of("b"), bytes_of(bytes));
  EXPECT_EQ(file.bytes_of("f"), bytes_of(floats));
  EXPECT_EQ(file.bytes_of("s"), bytes_of(scalar));
  EXPECT_EQ(file.bytes_of("n"), "");
  EXPECT_EQ(file.data.size(), 3u + 24u + 8u);  // no gaps
  EXPECT_EQ(fs::file_size(scratch / "a.safetensors"),
            static_cast<std::uintmax_t>(writer.file_bytes()));
  EXPECT_EQ((fs::file_size(scratch / "a.safetensors") - file.data.size()) % 64, 0u);
}

TEST(SafetensorsWriter, EachTensorIsAlignedToItsElement) {
  const TemporaryDirectory scratch;
  std::vector<TensorSpec> specs;
  for (const DType dtype : {DType::kU8, DType::kF32, DType::kBF16, DType::kI64, DType::kF8E4M3}) {
    specs.push_back({"odd_" + std::string(dtype_name(dtype)), dtype, {3, 5}});
  }
  SafetensorsWriter writer(scratch / "a.safetensors", specs);
  for (const TensorSpec& spec : specs) {
    writer.write(spec.name, counting(spec.dtype, spec.shape).view());
  }
  writer.commit();
  const Parsed file = parse(scratch / "a.safetensors");
  for (const TensorSpec& spec : specs) {
    const auto begin = file.header.at(spec.name).at("data_offsets").at(0).get<int64_t>();
    EXPECT_EQ(begin % dtype_size(spec.dtype), 0) << spec.name;
  }
}

TEST(SafetensorsWriter, PiecesAndOrderDoNotChangeTheBytes) {
  const TemporaryDirectory scratch;
  const Tensor a = counting(DType::kF32, {7}, 3);
  const Tensor b = counting(DType::kF32, {5}, 90);
  const std::vector<TensorSpec> specs = {{"a", DType::kF32, {7}}, {"b", DType::kF32, {5}}};
  SafetensorsWriter whole(scratch / "whole", specs);
  whole.write("a", a.view());
  whole.write("b", b.view());
  whole.commit();
  SafetensorsWriter pieces(scratch / "pieces", specs);
  pieces.append("b", {b.data(), 9});
  pieces.append("a", {a.data(), 1});
  pieces.append("b", {b.data() + 9, 11});
  pieces.append("a", {a.data() + 1, 27});
  pieces.commit();
  EXPECT_EQ(read_file(scratch / "whole"), read_file(scratch / "pieces"));
}

TEST(SafetensorsWriter, RefusesWhatWasNotDeclared) {
  const TemporaryDirectory scratch;
  const auto invalid = ErrorCode::kInvalidArgument;
  const std::string path = scratch / "a.safetensors";
  const TensorSpec a{"a", DType::kF32, {2}};
  expect_error(invalid, "two tensors 'a'", [&] { SafetensorsWriter(path, {a, a}); });
  expect_error(invalid, "cannot name", [&] {
    SafetensorsWriter(path, {{"__metadata__", DType::kF32, {2}}});
  });
  expect_error(invalid, "cannot name", [&] { SafetensorsWriter(path, {{"", DType::kF32, {2}}}); });

  SafetensorsWriter writer(path, {a});
  const Tensor good = counting(DType::kF32, {2});
  expect_error(invalid, "'b' was not declared", [&] { writer.write("b", good.view()); });
  expect_error(invalid, "declared F32 [2] and is BF16 [2]",
               [&] { writer.write("a", counting(DType::kBF16, {2}).view()); });
  expect_error(invalid, "declared F32 [2] and is F32 [2, 1]", [&] {
    writer.write("a", counting(DType::kF32, {2, 1}).view());
  });
  writer.append("a", {good.data(), 5});
  expect_error(invalid, "has 8 bytes, 9 were written", [&] {
    writer.append("a", {good.data(), 4});
  });
  expect_error(invalid, "written before", [&] { writer.write("a", good.view()); });
  expect_error(invalid, "only 5 were written", [&] { writer.commit(); });
  EXPECT_FALSE(fs::exists(path));
}

TEST(SafetensorsWriter, AFullDiskIsOneErrorAndLeavesNothing) {
  const TemporaryDirectory scratch;
  const std::string path = scratch / "a.safetensors";
  const Tensor tensor = counting(DType::kU8, {100'000});
  {
    const FileSizeLimit limit(50'000);
    expect_error(ErrorCode::kIo, "cannot write '" + path + "': File too large", [&] {
      SafetensorsWriter writer(path, {{"a", DType::kU8, {100'000}}});
      writer.write("a", tensor.view());
    });
  }
  EXPECT_TRUE(fs::is_empty(scratch.path()));
  // More than any disk: refused before the first byte.
  expect_error(ErrorCode::kIo, "free", [&] {
    SafetensorsWriter(path, {{"a", DType::kU8, {int64_t{1} << 60}}});
  });
  EXPECT_TRUE(fs::is_empty(scratch.path()));
}

// Four tensors of 400 bytes.
std::vector<TensorSpec> four_tensors() {
  std::vector<TensorSpec> specs;
  for (const char* name : {"w0", "w1", "w2", "w3"}) specs.push_back({name, DType::kF32, {100}});
  return specs;
}

TEST(ShardedSafetensorsWriter, OneFileWhenItFits) {
  const TemporaryDirectory scratch;
  ShardedSafetensorsWriter writer(scratch.path(), four_tensors());
  for (const TensorSpec& spec : four_tensors()) {
    writer.write(spec.name, counting(DType::kF32, {100}).view());
  }
  writer.finish();
  EXPECT_EQ(writer.num_shards(), 1);
  EXPECT_TRUE(fs::exists(scratch / "model.safetensors"));
  EXPECT_FALSE(fs::exists(scratch / "model.safetensors.index.json"));
}

TEST(ShardedSafetensorsWriter, ShardsAndIndexAgree) {
  const TemporaryDirectory scratch;
  ShardedSafetensorsWriter writer(scratch.path(), four_tensors(), 900);
  ASSERT_EQ(writer.num_shards(), 2);
  int first = 0;
  for (const TensorSpec& spec : four_tensors()) {
    writer.write(spec.name, counting(DType::kF32, {100}, first++).view());
    // A shard appears with its last tensor.
    EXPECT_EQ(fs::exists(scratch / "model-00001-of-00002.safetensors"), first >= 2);
  }
  EXPECT_FALSE(fs::exists(scratch / "model.safetensors.index.json"));
  writer.finish();

  const Json index = read_json_file(scratch / "model.safetensors.index.json");
  EXPECT_EQ(index.at("metadata").at("total_size"), 1600);
  EXPECT_EQ(index.at("weight_map").size(), 4u);
  first = 0;
  for (const TensorSpec& spec : four_tensors()) {
    const std::string file = index.at("weight_map").at(spec.name).get<std::string>();
    EXPECT_EQ(parse(scratch / file).bytes_of(spec.name),
              bytes_of(counting(DType::kF32, {100}, first++)));
  }
}

TEST(ShardedSafetensorsWriter, ATensorLargerThanAShardHasItsOwn) {
  const TemporaryDirectory scratch;
  const ShardedSafetensorsWriter writer(scratch.path(), four_tensors(), 1);
  EXPECT_EQ(writer.num_shards(), 4);
}

TEST(ShardedSafetensorsWriter, NothingOfAnEarlierModelSurvives) {
  const TemporaryDirectory scratch;
  write_file_atomically(scratch / "model-00003-of-00007.safetensors", "old");
  write_file_atomically(scratch / "model.safetensors.index.json", "old");
  write_file_atomically(scratch / kManifestFileName, "old");
  write_file_atomically(scratch / "model-00003-of-00007.safetensors.bak", "kept");
  ShardedSafetensorsWriter writer(scratch.path(), four_tensors());
  // At no moment does the old manifest or index stand beside new tensors.
  EXPECT_FALSE(fs::exists(scratch / kManifestFileName));
  EXPECT_FALSE(fs::exists(scratch / "model.safetensors.index.json"));
  for (const TensorSpec& spec : four_tensors()) {
    writer.write(spec.name, counting(DType::kF32, {100}).view());
  }
  writer.finish();
  EXPECT_FALSE(fs::exists(scratch / "model-00003-of-00007.safetensors"));
  EXPECT_TRUE(fs::exists(scratch / "model-00003-of-00007.safetensors.bak"));
}

TEST(ShardedSafetensorsWriter, AMissingTensorIsNamed) {
  const TemporaryDirectory scratch;
  ShardedSafetensorsWriter writer(scratch.path(), four_tensors(), 900);
  writer.write("w0", counting(DType::kF32, {100}).view());
  expect_error(ErrorCode::kInvalidArgument, "'w1'", [&] { writer.finish(); });
  EXPECT_FALSE(fs::exists(scratch / "model.safetensors.index.json"));
}

}  // namespace
}  // namespace lathe
