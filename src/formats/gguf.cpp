#include "formats/gguf.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"

namespace lathe {
namespace {

template <typename T>
T element_at(const GgufArray& array, uint64_t i) {
  T value;
  std::memcpy(&value, array.numbers.data() + i * sizeof value, sizeof value);
  return value;
}

}  // namespace

GgufFile::GgufFile(const std::string& path)
    : file_(path), content_(parse_gguf(file_.bytes(), path)) {
  index_.reserve(content_.tensors.size());
  for (std::size_t i = 0; i < content_.tensors.size(); ++i) {
    if (!index_.emplace(content_.tensors[i].name, i).second) {
      fail(ErrorCode::kCorruptData, path, ": tensor '", content_.tensors[i].name,
           "' is there twice");
    }
  }
}

const GgufTensor* GgufFile::find_tensor(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &content_.tensors[found->second];
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = content_.metadata.find(key);
  return found == content_.metadata.end() ? nullptr : &found->second;
}

const GgufValue& GgufFile::require(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) {
    fail(ErrorCode::kCorruptData, path(), ": metadata '", key, "' is missing");
  }
  return *value;
}

void GgufFile::refuse(std::string_view key, const std::string& reason) const {
  fail(ErrorCode::kCorruptData, path(), ": metadata '", key, "' ", reason);
}

bool GgufFile::has(std::string_view key) const { return find(key) != nullptr; }

bool GgufFile::is_array(std::string_view key) const {
  const GgufValue* value = find(key);
  return value != nullptr && std::holds_alternative<GgufArray>(*value);
}

int64_t GgufFile::integer(std::string_view key, int64_t min, int64_t max) const {
  const GgufValue& value = require(key);
  int64_t number = 0;
  if (const auto* u = std::get_if<uint64_t>(&value)) {
    if (*u > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      refuse(key, str("= ", *u, " is too large"));
    }
    number = static_cast<int64_t>(*u);
  } else if (const auto* i = std::get_if<int64_t>(&value)) {
    number = *i;
  } else {
    refuse(key, "is not a whole number");
  }
  if (number < min || number > max) {
    refuse(key, str("= ", number, ", must be between ", min, " and ", max));
  }
  return number;
}

int64_t GgufFile::integer_or(std::string_view key, int64_t fallback, int64_t min,
                             int64_t max) const {
  return has(key) ? integer(key, min, max) : fallback;
}

double GgufFile::number(std::string_view key, double min, double max) const {
  const GgufValue& value = require(key);
  double number = 0;
  if (const auto* d = std::get_if<double>(&value)) {
    number = *d;
  } else if (const auto* u = std::get_if<uint64_t>(&value)) {
    number = static_cast<double>(*u);
  } else if (const auto* i = std::get_if<int64_t>(&value)) {
    number = static_cast<double>(*i);
  } else {
    refuse(key, "is not a number");
  }
  if (!(number >= min && number <= max)) {  // NaN fails too
    refuse(key, str("= ", number, ", must be between ", min, " and ", max));
  }
  return number;
}

double GgufFile::number_or(std::string_view key, double fallback, double min, double max) const {
  return has(key) ? number(key, min, max) : fallback;
}

bool GgufFile::boolean_or(std::string_view key, bool fallback) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return fallback;
  const auto* boolean = std::get_if<bool>(value);
  if (boolean == nullptr) refuse(key, "is not true or false");
  return *boolean;
}

std::string GgufFile::text(std::string_view key) const {
  const auto* text = std::get_if<std::string_view>(&require(key));
  if (text == nullptr) refuse(key, "is not a string");
  return std::string(*text);
}

std::string GgufFile::text_or(std::string_view key, const std::string& fallback) const {
  return has(key) ? text(key) : fallback;
}

const std::vector<std::string_view>& GgufFile::strings(std::string_view key) const {
  const auto* array = std::get_if<GgufArray>(&require(key));
  if (array == nullptr || array->element != GgufType::kString) {
    refuse(key, "is not a list of strings");
  }
  return array->strings;
}

std::vector<int64_t> GgufFile::integers(std::string_view key) const {
  const auto* array = std::get_if<GgufArray>(&require(key));
  if (array == nullptr) refuse(key, "is not a list");
  std::vector<int64_t> values(array->count);
  for (uint64_t i = 0; i < array->count; ++i) {
    switch (array->element) {
      case GgufType::kUint8:
      case GgufType::kBool:
        values[i] = element_at<uint8_t>(*array, i);
        break;
      case GgufType::kInt8:
        values[i] = element_at<int8_t>(*array, i);
        break;
      case GgufType::kUint16:
        values[i] = element_at<uint16_t>(*array, i);
        break;
      case GgufType::kInt16:
        values[i] = element_at<int16_t>(*array, i);
        break;
      case GgufType::kUint32:
        values[i] = element_at<uint32_t>(*array, i);
        break;
      case GgufType::kInt32:
        values[i] = element_at<int32_t>(*array, i);
        break;
      case GgufType::kInt64:
        values[i] = element_at<int64_t>(*array, i);
        break;
      default:
        refuse(key, "is not a list of whole numbers");
    }
  }
  return values;
}

std::vector<float> GgufFile::floats(std::string_view key) const {
  const auto* array = std::get_if<GgufArray>(&require(key));
  if (array == nullptr || array->element != GgufType::kFloat32) {
    refuse(key, "is not a list of fp32 numbers");
  }
  std::vector<float> values(array->count);
  for (uint64_t i = 0; i < array->count; ++i) values[i] = element_at<float>(*array, i);
  return values;
}

}  // namespace lathe
