#include "server/request_fields.h"

#include <cmath>

#include "base/json.h"
#include "server/api_error.h"

namespace lathe {

std::string kind_of(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_string()) return "a string";
  if (value.is_boolean()) return "a boolean";
  if (value.is_number()) return "the number " + dump_json(value);
  return "null";
}

RequestFields::RequestFields(const Json& value, std::string path)
    : object_(value), path_(std::move(path)) {
  if (value.is_object()) return;
  const std::string name = path_.empty() ? "" : path_.substr(0, path_.size() - 1);
  bad_field(name, name.empty() ? "the body" : name, " must be an object, not ", kind_of(value));
}

const Json* RequestFields::find(std::string_view name) const {
  const auto found = object_.find(std::string(name));
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<bool> RequestFields::boolean(std::string_view name) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    bad_field(path(name), path(name), " must be true or false, not ", kind_of(*value));
  }
  return value->get<bool>();
}

std::optional<double> RequestFields::number(std::string_view name, double low, double high) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    bad_field(path(name), path(name), " must be a number, not ", kind_of(*value));
  }
  const auto number = value->get<double>();
  if (!(number >= low && number <= high)) {
    bad_field(path(name), path(name), " is ", dump_json(*value), "; it must be in [", low, ", ",
              high, "]");
  }
  return number;
}

std::optional<int64_t> RequestFields::integer(std::string_view name, int64_t low,
                                              int64_t high) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  // A double holds every whole number up to 2^53; what is larger comes as an integer or not at all.
  constexpr double kExact = 9007199254740992.0;
  const bool whole_double = value->is_number_float() && std::abs(value->get<double>()) <= kExact &&
                            std::floor(value->get<double>()) == value->get<double>();
  if (!value->is_number_integer() && !whole_double) {
    bad_field(path(name), path(name), " must be a whole number, not ", kind_of(*value));
  }
  int64_t number = 0;
  bool in_range = true;
  if (value->is_number_unsigned()) {
    const auto wide = value->get<uint64_t>();
    in_range = high >= 0 && wide <= static_cast<uint64_t>(high);
    number = in_range ? static_cast<int64_t>(wide) : 0;
  } else {
    number = whole_double ? static_cast<int64_t>(value->get<double>()) : value->get<int64_t>();
  }
  if (!in_range || number < low || number > high) {
    bad_field(path(name), path(name), " is ", dump_json(*value), "; it must be in [", low, ", ",
              high, "]");
  }
  return number;
}

std::optional<std::string> RequestFields::string(std::string_view name) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    bad_field(path(name), path(name), " must be a string, not ", kind_of(*value));
  }
  return value->get<std::string>();
}

std::vector<std::string> RequestFields::strings(std::string_view name) const {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  std::vector<std::string> result;
  if (value->is_array()) {
    for (const Json& item : *value) {
      if (!item.is_string()) {
        bad_field(path(name), path(name), " must hold strings, not ", kind_of(item));
      }
      result.push_back(item.get<std::string>());
    }
    return result;
  }
  bad_field(path(name), path(name), " must be a string or an array of strings, not ",
            kind_of(*value));
}

std::vector<int32_t> token_ids(const Json& value, const std::string& param, int64_t vocab_size) {
  if (!value.is_array()) {
    bad_field(param, param, " must be an array of token ids, not ", kind_of(value));
  }
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const Json& item : value) {
    if (!item.is_number_integer()) {
      bad_field(param, param, " must hold token ids, not ", kind_of(item));
    }
    const bool in_range = item.is_number_unsigned()
                              ? item.get<uint64_t>() < static_cast<uint64_t>(vocab_size)
                              : item.get<int64_t>() >= 0 && item.get<int64_t>() < vocab_size;
    if (!in_range) {
      bad_field(param, param, " has token ", dump_json(item), "; the vocabulary has ", vocab_size,
                " tokens");
    }
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

}  // namespace lathe
