// The fields of a request's JSON object, each read with its type and range. What does not fit is an
// ApiError 400 that names the field, what it is and what it should be. A field that is null counts
// as not given, as in OpenAI's API.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

class RequestFields {
 public:
  // Borrows the value. path: in front of the names in errors: "" or "stream_options.". Throws when
  // the value is not an object.
  explicit RequestFields(const nlohmann::ordered_json& value, std::string path = "");

  const nlohmann::ordered_json& json() const { return object_; }
  // The value as it is; null when it is not given.
  const nlohmann::ordered_json* find(std::string_view name) const;

  std::optional<bool> boolean(std::string_view name) const;
  // Whole numbers; 3.0 is one too.
  std::optional<int64_t> integer(std::string_view name, int64_t low, int64_t high) const;
  std::optional<double> number(std::string_view name, double low, double high) const;
  std::optional<std::string> string(std::string_view name) const;
  // One string, or an array of them.
  std::vector<std::string> strings(std::string_view name) const;

  std::string path(std::string_view name) const { return path_ + std::string(name); }

 private:
  const nlohmann::ordered_json& object_;
  std::string path_;
};

// "a string", "an array", ... for messages.
std::string kind_of(const nlohmann::ordered_json& value);

// Token ids below vocab_size; `param` names the field. Throws ApiError.
std::vector<int32_t> token_ids(const nlohmann::ordered_json& value, const std::string& param,
                               int64_t vocab_size);

}  // namespace lathe
