#include "base/json.h"

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json_member.h"

namespace lathe {
namespace {

// From this many keys on, an object that is being read has an index: looking for duplicates one by
// one would take a minute for a file of a few megabytes that is nothing but keys.
constexpr std::size_t kIndexedKeys = 32;

// nlohmann's events, made into a tree: what its own builder makes, within max_depth and in linear
// time. As there, a key that comes again keeps its place and takes the later value.
class TreeBuilder {
 public:
  explicit TreeBuilder(const JsonLimits& limits) : limits_(limits) {}

  Json take() { return std::move(root_); }
  // Why it stopped: a limit, or what the parser said.
  const std::string& limit() const { return limit_; }
  const std::string& reason() const { return reason_; }

  bool null() { return add(Json(nullptr)); }
  bool boolean(bool value) { return add(Json(value)); }
  bool number_integer(int64_t value) { return add(Json(value)); }
  bool number_unsigned(uint64_t value) { return add(Json(value)); }
  bool number_float(double value, const std::string&) { return add(Json(value)); }
  bool string(std::string& value) { return add(Json(std::move(value))); }
  bool binary(Json::binary_t&) { return false; }  // not in text

  bool start_object(std::size_t) { return open(Json::object()); }
  bool start_array(std::size_t) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& name) {
    Open& open = open_.back();
    Members& members = open.json.get_ref<Json::object_t&>();
    open.member = place_of(open, members, name);
    if (open.member < members.size()) return true;
    if (static_cast<int64_t>(members.size()) >= limits_.max_keys) {
      limit_ = str("an object with more than ", limits_.max_keys, " keys");
      return false;
    }
    if (members.size() >= kIndexedKeys) open.index.emplace(name, members.size());
    members.emplace_back(std::move(name), Json());
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& error) {
    reason_ = error.what();
    return false;
  }

 private:
  // What an object is underneath: the map's own functions compare with every key.
  using Members = Json::object_t::Container;
  struct Open {
    Json json;
    std::size_t member = 0;                              // of an object: whose value comes next
    std::unordered_map<std::string, std::size_t> index;  // of an object with many keys
  };

  // Where the key is; the number of keys when it is new.
  static std::size_t place_of(Open& open, const Members& members, const std::string& name) {
    if (members.size() < kIndexedKeys) {
      std::size_t place = 0;
      while (place < members.size() && members[place].first != name) ++place;
      return place;
    }
    if (open.index.empty()) {
      for (std::size_t i = 0; i < members.size(); ++i) open.index.emplace(members[i].first, i);
    }
    const auto found = open.index.find(name);
    return found == open.index.end() ? members.size() : found->second;
  }

  bool open(Json json) {
    if (static_cast<int>(open_.size()) >= limits_.max_depth) {
      limit_ = str("JSON nested deeper than ", limits_.max_depth, " levels");
      return false;
    }
    open_.push_back({std::move(json), 0, {}});
    return true;
  }

  bool close() {
    Json json = std::move(open_.back().json);
    open_.pop_back();
    return add(std::move(json));
  }

  bool add(Json value) {
    if (++num_values_ > limits_.max_values) {
      limit_ = str("JSON with more than ", limits_.max_values, " values");
      return false;
    }
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (Open& open = open_.back(); open.json.is_array()) {
      open.json.get_ref<Json::array_t&>().push_back(std::move(value));
    } else {
      Members& members = open.json.get_ref<Json::object_t&>();
      members[open.member].second = std::move(value);
    }
    return true;
  }

  const JsonLimits limits_;
  int64_t num_values_ = 0;
  std::string limit_;
  std::string reason_;
  std::vector<Open> open_;  // from the outermost in
  Json root_;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& what, const JsonLimits& limits) {
  TreeBuilder tree(limits);
  if (Json::sax_parse(text.begin(), text.end(), &tree)) return tree.take();
  if (!tree.limit().empty()) fail(ErrorCode::kCorruptData, what, ": ", tree.limit());
  // nlohmann's text quotes the input around the error, which may be long and hostile.
  std::string reason = tree.reason();
  // "[json.exception.parse_error.101] parse error at line 1, column 1: ...": the place and what
  // is wrong there.
  constexpr std::string_view kPlace = "parse error at ";
  if (const auto place = reason.find(kPlace); reason[0] == '[' && place < 60) {
    reason.erase(0, place + kPlace.size());
  }
  if (reason.size() > 200) reason = reason.substr(0, 200) + "...";
  fail(ErrorCode::kCorruptData, what, ": not valid JSON: ", reason);
}

Json parse_json(std::string_view text, const std::string& what, int max_depth) {
  return parse_json(text, what, JsonLimits{.max_depth = max_depth});
}

Json read_json_file(const std::string& path, int64_t max_bytes) {
  return parse_json(read_file(path, max_bytes), path);
}

std::string dump_json(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

const Json* member(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

}  // namespace lathe
