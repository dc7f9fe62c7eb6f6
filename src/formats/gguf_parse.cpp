#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "base/error.h"
#include "formats/gguf.h"

namespace lathe {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kMaxNameBytes = 65535;
constexpr uint32_t kMaxRank = 4;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;

// Takes values off the front of the file; everything is checked against what is left.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& what) : bytes_(bytes), what_(what) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }

  std::span<const std::byte> take(uint64_t count) {
    if (count > left()) {
      fail(ErrorCode::kCorruptData, what_, ": ", count, " bytes wanted at byte ", position_,
           ", the file ends at ", bytes_.size());
    }
    const auto part = bytes_.subspan(position_, count);
    position_ += count;
    return part;
  }
  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view string() {
    const auto size = number<uint64_t>();
    const auto part = take(size);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& what_;
  uint64_t position_ = 0;
};

uint64_t size_of(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    default:
      return 8;
  }
}

GgufType read_type(Cursor& cursor, const std::string& what, std::string_view key) {
  const auto type = cursor.number<uint32_t>();
  if (type > static_cast<uint32_t>(GgufType::kFloat64)) {
    fail(ErrorCode::kCorruptData, what, ": metadata '", key, "' has unknown type ", type);
  }
  return static_cast<GgufType>(type);
}

// A fp32 value as written by people: the double nearest to its shortest decimal.
double widen(float value);

GgufValue read_value(Cursor& cursor, GgufType type, const std::string& what, std::string_view key) {
  switch (type) {
    case GgufType::kUint8:
      return uint64_t{cursor.number<uint8_t>()};
    case GgufType::kInt8:
      return int64_t{cursor.number<int8_t>()};
    case GgufType::kUint16:
      return uint64_t{cursor.number<uint16_t>()};
    case GgufType::kInt16:
      return int64_t{cursor.number<int16_t>()};
    case GgufType::kUint32:
      return uint64_t{cursor.number<uint32_t>()};
    case GgufType::kInt32:
      return int64_t{cursor.number<int32_t>()};
    case GgufType::kFloat32:
      return widen(cursor.number<float>());
    case GgufType::kBool:
      return cursor.number<uint8_t>() != 0;
    case GgufType::kString:
      return cursor.string();
    case GgufType::kUint64:
      return cursor.number<uint64_t>();
    case GgufType::kInt64:
      return cursor.number<int64_t>();
    case GgufType::kFloat64:
      return cursor.number<double>();
    case GgufType::kArray:
      break;
  }
  GgufArray array;
  array.element = read_type(cursor, what, key);
  array.count = cursor.number<uint64_t>();
  if (array.element == GgufType::kArray) {
    fail(ErrorCode::kUnsupported, what, ": metadata '", key, "' is an array of arrays");
  }
  const uint64_t smallest = size_of(array.element);  // a string has its length at least
  if (array.count > cursor.left() / smallest) {
    fail(ErrorCode::kCorruptData, what, ": metadata '", key, "' has ", array.count,
         " elements, more than the file holds");
  }
  if (array.element == GgufType::kString) {
    array.strings.reserve(array.count);
    for (uint64_t i = 0; i < array.count; ++i) array.strings.push_back(cursor.string());
  } else {
    array.numbers = cursor.take(array.count * smallest);
  }
  return array;
}

double widen(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
  for (int digits = 1; digits < 9; ++digits) {
    char shorter[32];
    std::snprintf(shorter, sizeof shorter, "%.*g", digits, static_cast<double>(value));
    if (std::strtof(shorter, nullptr) == value) return std::strtod(shorter, nullptr);
  }
  return static_cast<double>(value);
}

struct TensorInfo {
  std::string name;
  const GgmlTypeInfo* type;
  Shape shape;
  uint64_t offset;
  uint64_t num_bytes;
};

TensorInfo read_tensor_info(Cursor& cursor, const std::string& what) {
  TensorInfo info;
  const std::string_view name = cursor.string();
  if (name.empty() || name.size() > kMaxNameBytes) {
    fail(ErrorCode::kCorruptData, what, ": a tensor name of ", name.size(), " bytes");
  }
  info.name = name;
  const auto refuse = [&](ErrorCode code, const auto&... parts) {
    fail(code, what, ": tensor '", info.name, "': ", parts...);
  };
  const auto rank = cursor.number<uint32_t>();
  if (rank == 0 || rank > kMaxRank) refuse(ErrorCode::kCorruptData, rank, " dimensions");
  for (uint32_t i = 0; i < rank; ++i) {
    const auto dim = cursor.number<uint64_t>();
    if (dim == 0 || dim > static_cast<uint64_t>(INT64_MAX)) {
      refuse(ErrorCode::kCorruptData, "dimension ", i, " is ", dim);
    }
    info.shape.push_back(static_cast<int64_t>(dim));
  }
  const auto type = cursor.number<uint32_t>();
  info.offset = cursor.number<uint64_t>();
  info.type = ggml_type_info(type);
  if (info.type == nullptr) {
    refuse(ErrorCode::kUnsupported, "has ggml type ", type, ", which lathe does not read");
  }
  const int64_t cols = info.shape.front();
  if (cols % info.type->block_values != 0) {
    refuse(ErrorCode::kCorruptData, cols, " columns do not make blocks of ",
           info.type->block_values);
  }
  std::reverse(info.shape.begin(), info.shape.end());
  const int64_t count =
      with_context(what + ": tensor '" + info.name + "'", [&] { return num_elements(info.shape); });
  int64_t num_bytes = 0;
  if (__builtin_mul_overflow(count / info.type->block_values, info.type->block_bytes, &num_bytes)) {
    refuse(ErrorCode::kCorruptData, "impossible shape ", to_string(info.shape));
  }
  info.num_bytes = static_cast<uint64_t>(num_bytes);
  return info;
}

uint64_t alignment_of(const GgufContent& content, const std::string& what) {
  const auto found = content.metadata.find("general.alignment");
  if (found == content.metadata.end()) return 32;
  const auto* value = std::get_if<uint64_t>(&found->second);
  if (value == nullptr || !std::has_single_bit(*value) || *value > kMaxAlignment) {
    fail(ErrorCode::kCorruptData, what, ": general.alignment is not a power of two up to ",
         kMaxAlignment);
  }
  return *value;
}

}  // namespace

GgufContent parse_gguf(std::span<const std::byte> file, const std::string& what) {
  Cursor cursor(file, what);
  if (file.size() < 8 || cursor.number<uint32_t>() != kMagic) {
    fail(ErrorCode::kCorruptData, what, ": does not begin with GGUF");
  }
  GgufContent content;
  content.version = cursor.number<uint32_t>();
  if (content.version != 2 && content.version != 3) {
    const bool swapped = content.version != 0 && (content.version & 0xffff) == 0;
    fail(ErrorCode::kUnsupported, what, ": GGUF version ",
         swapped ? __builtin_bswap32(content.version) : content.version,
         swapped ? " in big-endian order" : "", " (lathe reads 2 and 3, little-endian)");
  }
  const auto num_tensors = cursor.number<uint64_t>();
  const auto num_values = cursor.number<uint64_t>();

  for (uint64_t i = 0; i < num_values; ++i) {
    const std::string_view key = cursor.string();
    if (key.size() > kMaxNameBytes) {
      fail(ErrorCode::kCorruptData, what, ": a metadata key of ", key.size(), " bytes");
    }
    const GgufType type = read_type(cursor, what, key);
    GgufValue value = read_value(cursor, type, what, key);
    if (!content.metadata.emplace(std::string(key), std::move(value)).second) {
      fail(ErrorCode::kCorruptData, what, ": metadata '", key, "' is there twice");
    }
  }

  std::vector<TensorInfo> infos;
  for (uint64_t i = 0; i < num_tensors; ++i) infos.push_back(read_tensor_info(cursor, what));
  const uint64_t alignment = alignment_of(content, what);
  const uint64_t data_begin = (cursor.position() + alignment - 1) / alignment * alignment;
  const uint64_t data_bytes = data_begin <= file.size() ? file.size() - data_begin : 0;

  // In the order of their bytes, to see overlaps.
  std::vector<std::size_t> order(infos.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return infos[a].offset < infos[b].offset; });
  uint64_t previous_end = 0;
  for (const std::size_t i : order) {
    const TensorInfo& info = infos[i];
    if (info.offset > data_bytes || info.num_bytes > data_bytes - info.offset) {
      fail(ErrorCode::kCorruptData, what, ": tensor '", info.name, "': ", info.num_bytes,
           " bytes at offset ", info.offset, " of ", data_bytes,
           " bytes of data (is the file complete?)");
    }
    if (info.offset % alignment != 0) {
      fail(ErrorCode::kCorruptData, what, ": tensor '", info.name, "': offset ", info.offset,
           " is not a multiple of ", alignment);
    }
    if (info.offset < previous_end) {
      fail(ErrorCode::kCorruptData, what, ": tensor '", info.name, "' overlaps another");
    }
    previous_end = info.offset + info.num_bytes;
  }

  content.tensors.reserve(infos.size());
  for (TensorInfo& info : infos) {
    content.tensors.push_back({std::move(info.name), info.type, std::move(info.shape),
                               file.data() + data_begin + info.offset,
                               static_cast<int64_t>(info.num_bytes)});
  }
  return content;
}

}  // namespace lathe
