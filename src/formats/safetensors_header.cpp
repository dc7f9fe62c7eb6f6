#include "formats/safetensors_header.h"

#include <limits>
#include <unordered_set>

#include "base/error.h"
#include "base/json.h"
#include "formats/safetensors.h"

namespace lathe {
namespace {

// What the next value belongs to.
enum class Place { kStart, kTop, kMetadata, kEntry, kShape, kOffsets, kEnd };

class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(const std::string& what) : what_(what) {}
  SafetensorsHeader take() { return std::move(header_); }

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kTop;
    } else if (place_ == Place::kTop && key_ == "__metadata__") {
      place_ = Place::kMetadata;
    } else if (place_ == Place::kTop) {
      place_ = Place::kEntry;
      header_.entries.push_back({key_, {}, {}, 0, 0});
      seen_ = 0;
    } else {
      unexpected("object");
    }
    return true;
  }
  bool end_object() override {
    if (place_ == Place::kEntry && seen_ != (kDType | kShapeSeen | kOffsetsSeen)) {
      refuse("needs dtype, shape and data_offsets");
    }
    place_ = place_ == Place::kTop ? Place::kEnd : Place::kTop;
    return true;
  }
  bool start_array(std::size_t) override {
    if (place_ == Place::kEntry && key_ == "shape" && (seen_ & kShapeSeen) == 0) {
      seen_ |= kShapeSeen;
      place_ = Place::kShape;
    } else if (place_ == Place::kEntry && key_ == "data_offsets" && (seen_ & kOffsetsSeen) == 0) {
      seen_ |= kOffsetsSeen;
      num_offsets_ = 0;
      place_ = Place::kOffsets;
    } else {
      unexpected("array");
    }
    return true;
  }
  bool end_array() override {
    if (place_ == Place::kOffsets && num_offsets_ != 2) refuse("data_offsets needs two numbers");
    place_ = Place::kEntry;
    return true;
  }
  bool key(std::string& name) override {
    if (place_ == Place::kTop && !names_.insert(name).second) {
      fail(ErrorCode::kCorruptData, what_, ": two entries named '", shorten(name), "'");
    }
    if (name.size() > kMaxNameBytes && place_ != Place::kMetadata) {
      fail(ErrorCode::kCorruptData, what_, ": a tensor name of ", name.size(), " bytes");
    }
    key_ = std::move(name);
    return true;
  }
  bool string(std::string& value) override {
    if (place_ == Place::kMetadata) {
      header_.metadata.emplace_back(key_, std::move(value));
    } else if (place_ == Place::kEntry && key_ == "dtype" && (seen_ & kDType) == 0) {
      seen_ |= kDType;
      header_.entries.back().dtype = std::move(value);
    } else {
      unexpected("string");
    }
    return true;
  }
  bool number_unsigned(uint64_t value) override {
    if (place_ == Place::kShape) {
      Shape& shape = header_.entries.back().shape;
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
          shape.size() == kMaxSafetensorsRank) {
        refuse("impossible shape");
      }
      shape.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::kOffsets && num_offsets_ < 2) {
      (num_offsets_++ == 0 ? header_.entries.back().begin : header_.entries.back().end) = value;
    } else {
      unexpected("number");
    }
    return true;
  }
  bool number_integer(int64_t) override { return unexpected("negative number"); }
  bool number_float(double, const std::string&) override { return unexpected("fraction"); }
  bool boolean(bool) override { return unexpected("boolean"); }
  bool null() override { return unexpected("null"); }
  bool binary(Json::binary_t&) override { return unexpected("binary"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    fail(ErrorCode::kCorruptData, what_, ": header is not valid JSON at byte ", position);
  }

 private:
  static constexpr unsigned kDType = 1, kShapeSeen = 2, kOffsetsSeen = 4;
  static constexpr std::size_t kMaxNameBytes = 4096;

  static std::string shorten(const std::string& name) {
    return name.size() <= 200 ? name : name.substr(0, 200) + "...";
  }
  [[noreturn]] void refuse(const char* reason) const {
    fail(ErrorCode::kCorruptData, what_, ": tensor '", shorten(header_.entries.back().name),
         "': ", reason);
  }
  bool unexpected(const char* kind) const {
    fail(ErrorCode::kCorruptData, what_, ": header has an unexpected ", kind, " at key '",
         shorten(key_), "'");
  }

  const std::string& what_;
  SafetensorsHeader header_;
  std::unordered_set<std::string> names_;
  std::string key_;
  Place place_ = Place::kStart;
  unsigned seen_ = 0;
  int num_offsets_ = 0;
};

// {"metadata": ..., "weight_map": {"tensor": "file"}}; everything but weight_map is skipped.
class IndexReader final : public nlohmann::json_sax<Json> {
 public:
  explicit IndexReader(const std::string& what) : what_(what) {}
  std::vector<std::pair<std::string, std::string>> take() {
    if (!found_) fail(ErrorCode::kCorruptData, what_, ": no weight_map");
    return std::move(map_);
  }

  bool start_object(std::size_t) override {
    if (depth_ == 1 && key_ == "weight_map") {
      if (found_) refuse("two weight_map entries");
      found_ = in_map_ = true;
    } else if (in_map_) {
      refuse("weight_map holds something else than names");
    }
    return deeper();
  }
  bool end_object() override {
    in_map_ = false;
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override {
    other();
    return deeper();
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(std::string& name) override {
    if (in_map_ && !names_.insert(name).second) refuse("a tensor is named twice");
    key_ = std::move(name);
    return true;
  }
  bool string(std::string& value) override {
    if (!in_map_) return other();
    map_.emplace_back(key_, std::move(value));
    return true;
  }
  bool number_unsigned(uint64_t) override { return other(); }
  bool number_integer(int64_t) override { return other(); }
  bool number_float(double, const std::string&) override { return other(); }
  bool boolean(bool) override { return other(); }
  bool null() override { return other(); }
  bool binary(Json::binary_t&) override { return other(); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    fail(ErrorCode::kCorruptData, what_, ": not valid JSON at byte ", position);
  }

 private:
  [[noreturn]] void refuse(const char* reason) const {
    fail(ErrorCode::kCorruptData, what_, ": ", reason);
  }
  bool other() const {
    if (in_map_ || depth_ == 0) refuse("weight_map holds something else than names");
    return true;
  }
  bool deeper() {
    if (++depth_ > 64) refuse("nested deeper than 64 levels");
    return true;
  }

  const std::string& what_;
  std::vector<std::pair<std::string, std::string>> map_;
  std::unordered_set<std::string> names_;
  std::string key_;
  int depth_ = 0;
  bool found_ = false;
  bool in_map_ = false;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& what) {
  HeaderReader reader(what);
  if (text.empty() || text.front() != '{') {
    fail(ErrorCode::kCorruptData, what, ": header does not begin with '{'");
  }
  Json::sax_parse(text.begin(), text.end(), &reader);  // errors are thrown by the reader
  return reader.take();
}

std::vector<std::pair<std::string, std::string>> parse_safetensors_index(std::string_view text,
                                                                         const std::string& what) {
  IndexReader reader(what);
  Json::sax_parse(text.begin(), text.end(), &reader);
  return reader.take();
}

}  // namespace lathe
