// Typed, checked access to one JSON object of a configuration file. Every error names the file, the
// key with its path and the value. A null counts as absent, as transformers writes it.
// What a value is, is for .cpp files to see: they include base/json.h.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lathe {

using Json = nlohmann::ordered_json;  // as in base/json.h

class JsonFields {
 public:
  // Borrows `object`. `what` names it in messages ("model/config.json"). Throws kCorruptData when
  // it is not an object.
  JsonFields(const nlohmann::ordered_json& object, std::string what);

  const std::string& what() const { return what_; }
  // nullptr when absent or null.
  const nlohmann::ordered_json* find(const std::string& key) const;
  bool has(const std::string& key) const { return find(key) != nullptr; }
  // Whether the key is there, be it null: where absent means a default and null means none.
  bool mentions(const std::string& key) const;

  // Required when no fallback is given. A whole number may be written as 8.0. Throw kCorruptData on
  // a missing key, another type, or a value outside [min, max].
  int64_t integer(const std::string& key, int64_t min, int64_t max) const;
  int64_t integer_or(const std::string& key, int64_t fallback, int64_t min, int64_t max) const;
  double number(const std::string& key, double min, double max) const;
  double number_or(const std::string& key, double fallback, double min, double max) const;
  bool boolean_or(const std::string& key, bool fallback) const;
  std::string text(const std::string& key) const;
  std::string text_or(const std::string& key, const std::string& fallback) const;
  std::vector<double> numbers(const std::string& key, double min, double max) const;
  std::vector<int64_t> integers(const std::string& key, int64_t min, int64_t max) const;
  std::vector<std::string> texts(const std::string& key) const;
  // Every key of this object with its value, in linear time. Throw as integer() and text().
  std::vector<std::pair<std::string, int64_t>> all_integers(int64_t min, int64_t max) const;
  std::vector<std::pair<std::string, std::string>> all_texts() const;
  // Absent: nullopt; not an object: kCorruptData.
  std::optional<JsonFields> object(const std::string& key) const;

  // "what: key = value: " + reason, as an Error. The value is cut when long.
  [[noreturn]] void refuse(const std::string& key, const std::string& reason) const;
  [[noreturn]] void unsupported(const std::string& key, const std::string& reason) const;

 private:
  const nlohmann::ordered_json& require(const std::string& key) const;
  std::string describe(const std::string& key) const;
  double to_number(const std::string& key, const nlohmann::ordered_json& value, double min,
                   double max) const;
  int64_t to_integer(const std::string& key, const nlohmann::ordered_json& value, int64_t min,
                     int64_t max) const;

  const nlohmann::ordered_json* json_;
  std::string what_;
};

}  // namespace lathe
