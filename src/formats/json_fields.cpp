#include "formats/json_fields.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/json.h"

namespace lathe {

JsonFields::JsonFields(const Json& object, std::string what)
    : json_(&object), what_(std::move(what)) {
  if (!object.is_object()) fail(ErrorCode::kCorruptData, what_, ": is not a JSON object");
}

const Json* JsonFields::find(const std::string& key) const {
  const auto found = json_->find(key);
  return found == json_->end() || found->is_null() ? nullptr : &*found;
}

bool JsonFields::mentions(const std::string& key) const { return json_->contains(key); }

std::string JsonFields::describe(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr) return what_ + ": " + key + ": ";
  std::string text = value->is_structured() ? value->type_name() : dump_json(*value);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return what_ + ": " + key + " = " + text + ": ";
}

void JsonFields::refuse(const std::string& key, const std::string& reason) const {
  fail(ErrorCode::kCorruptData, describe(key), reason);
}

void JsonFields::unsupported(const std::string& key, const std::string& reason) const {
  fail(ErrorCode::kUnsupported, describe(key), reason);
}

const Json& JsonFields::require(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr) fail(ErrorCode::kCorruptData, what_, ": ", key, " is missing");
  return *value;
}

double JsonFields::to_number(const std::string& key, const Json& value, double min,
                             double max) const {
  if (!value.is_number()) refuse(key, "must be a number");
  const double number = value.get<double>();
  if (!(number >= min && number <= max)) {  // NaN fails too
    refuse(key, str("must be between ", min, " and ", max));
  }
  return number;
}

int64_t JsonFields::to_integer(const std::string& key, const Json& value, int64_t min,
                               int64_t max) const {
  const std::string range = str("must be a whole number between ", min, " and ", max);
  int64_t number = 0;
  if (value.is_number_unsigned()) {
    if (value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      refuse(key, range);
    }
    number = value.get<int64_t>();
  } else if (value.is_number_integer()) {
    number = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double fraction = value.get<double>();
    if (!(std::abs(fraction) <= 0x1p53) || fraction != std::trunc(fraction)) refuse(key, range);
    number = static_cast<int64_t>(fraction);
  } else {
    refuse(key, range);
  }
  if (number < min || number > max) refuse(key, range);
  return number;
}

int64_t JsonFields::integer(const std::string& key, int64_t min, int64_t max) const {
  return to_integer(key, require(key), min, max);
}

int64_t JsonFields::integer_or(const std::string& key, int64_t fallback, int64_t min,
                               int64_t max) const {
  const Json* value = find(key);
  return value == nullptr ? fallback : to_integer(key, *value, min, max);
}

double JsonFields::number(const std::string& key, double min, double max) const {
  return to_number(key, require(key), min, max);
}

double JsonFields::number_or(const std::string& key, double fallback, double min,
                             double max) const {
  const Json* value = find(key);
  return value == nullptr ? fallback : to_number(key, *value, min, max);
}

bool JsonFields::boolean_or(const std::string& key, bool fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) refuse(key, "must be true or false");
  return value->get<bool>();
}

std::string JsonFields::text(const std::string& key) const {
  const Json& value = require(key);
  if (!value.is_string()) refuse(key, "must be a string");
  return value.get<std::string>();
}

std::string JsonFields::text_or(const std::string& key, const std::string& fallback) const {
  return has(key) ? text(key) : fallback;
}

std::vector<double> JsonFields::numbers(const std::string& key, double min, double max) const {
  const Json& list = require(key);
  if (!list.is_array()) refuse(key, "must be a list of numbers");
  std::vector<double> values;
  for (const Json& value : list) values.push_back(to_number(key, value, min, max));
  return values;
}

std::vector<int64_t> JsonFields::integers(const std::string& key, int64_t min, int64_t max) const {
  const Json& list = require(key);
  if (!list.is_array()) refuse(key, "must be a list of whole numbers");
  std::vector<int64_t> values;
  for (const Json& value : list) values.push_back(to_integer(key, value, min, max));
  return values;
}

std::vector<std::pair<std::string, int64_t>> JsonFields::all_integers(int64_t min,
                                                                      int64_t max) const {
  std::vector<std::pair<std::string, int64_t>> values;
  for (const auto& [key, value] : json_->items()) {
    values.emplace_back(key, to_integer(key, value, min, max));
  }
  return values;
}

std::vector<std::pair<std::string, std::string>> JsonFields::all_texts() const {
  std::vector<std::pair<std::string, std::string>> values;
  for (const auto& [key, value] : json_->items()) {
    if (!value.is_string()) refuse(key, "must be a string");
    values.emplace_back(key, value.get<std::string>());
  }
  return values;
}

std::vector<std::string> JsonFields::texts(const std::string& key) const {
  const Json& list = require(key);
  if (!list.is_array()) refuse(key, "must be a list of strings");
  std::vector<std::string> values;
  for (const Json& value : list) {
    if (!value.is_string()) refuse(key, "must be a list of strings");
    values.push_back(value.get<std::string>());
  }
  return values;
}

std::optional<JsonFields> JsonFields::object(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) refuse(key, "must be an object");
  return JsonFields(*value, what_ + ": " + key);
}

}  // namespace lathe
