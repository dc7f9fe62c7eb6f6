// What a JSON schema says, keyword by keyword, and two of them at once (allOf).
//
// A schema becomes a list of alternatives without $ref, allOf, anyOf and oneOf; a text satisfies
// the schema when it satisfies one of them.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "grammar/automaton.h"
#include "grammar/json_text.h"

namespace lathe {

// Schemas of one document that must all hold; empty: anything. Sorted, each once.
using Conjunction = std::vector<const nlohmann::ordered_json*>;

enum JsonType : uint8_t {
  kJsonNull = 1,
  kJsonBoolean = 2,
  kJsonInteger = 4,
  kJsonNumber = 8,  // with fraction or exponent; "number" is kJsonInteger | kJsonNumber
  kJsonString = 16,
  kJsonArray = 32,
  kJsonObject = 64,
  kJsonAny = 127,
};

struct SchemaAlternative {
  uint8_t types = kJsonAny;                                          // what "type" allows
  uint8_t keyword_types = 0;                                         // that some keyword is about
  std::optional<std::vector<const nlohmann::ordered_json*>> values;  // enum, const

  NumberBounds bounds;
  int64_t multiple_of = 1;

  int64_t min_length = 0, max_length = -1;  // in code points; -1: none, here and below
  std::vector<std::string> patterns;        // all must be found
  std::vector<std::string> formats;

  int64_t min_items = 0, max_items = -1;
  std::vector<Conjunction> prefix_items;
  Conjunction items;  // those behind

  std::vector<std::pair<std::string, Conjunction>> properties;
  std::vector<std::string> required;
  Conjunction additional;
  std::vector<std::pair<std::string, Conjunction>> pattern_properties;
  Conjunction property_names;
  int64_t min_properties = 0, max_properties = -1;

  // Types that are left: without "type", those that the keywords are about, if they are about any.
  uint8_t possible_types() const {
    return types == kJsonAny && !values && keyword_types != 0 ? keyword_types : types;
  }
  const Conjunction* find_property(std::string_view name) const;
  bool requires_property(std::string_view name) const;
};

// Reads the schemas of one document.
class SchemaReader {
 public:
  // Limits against hostile documents; beyond them kUnsupported.
  static constexpr int64_t kMaxAlternatives = 512;  // of one schema
  static constexpr int64_t kMaxMerges = 50000;      // of the whole document
  static constexpr int64_t kMaxWork = 60'000'000;   // steps of all its automata: about a second

  // Borrows the document.
  explicit SchemaReader(const nlohmann::ordered_json& document);

  // Follows references that stand alone and takes allOf apart. Throws kInvalidArgument for a
  // reference that leads to itself or nowhere.
  Conjunction simplified(Conjunction conjunction);
  // The schemas under anyOf or oneOf, when the conjunction is one schema that says nothing else.
  std::optional<std::vector<Conjunction>> plain_alternatives(const Conjunction& conjunction);
  // Never more than kMaxAlternatives; empty: nothing satisfies it. Throws kUnsupported for a
  // keyword that a grammar cannot hold to, kInvalidArgument for a schema that is none.
  std::vector<SchemaAlternative> alternatives(const Conjunction& conjunction);

  // Where the schema stands: "#/properties/a".
  std::string place(const Conjunction& conjunction) const;

  // The strings that the alternative allows, over code points. With `values`: those.
  Dfa strings(const SchemaAlternative& alternative);
  // Counts the work of making an automaton. Throws kUnsupported when it was too much in all.
  Dfa paid(Dfa automaton);
  // Whether a value of an enum satisfies the other keywords.
  bool satisfies(const nlohmann::ordered_json& value, const SchemaAlternative& alternative);

 private:
  using Json = nlohmann::ordered_json;
  std::vector<SchemaAlternative> alternatives_of(const Json& schema, int depth);
  std::vector<SchemaAlternative> both(const std::vector<SchemaAlternative>& a,
                                      const std::vector<SchemaAlternative>& b);
  std::optional<SchemaAlternative> merged(const SchemaAlternative& a, const SchemaAlternative& b);
  SchemaAlternative read_keywords(const Json& schema);
  void read_keyword(const std::string& key, const Json& value, const Json& schema,
                    SchemaAlternative& out);
  void read_numbers(const std::string& key, const Json& value, const Json& schema,
                    SchemaAlternative& out);
  bool read_object_keyword(const std::string& key, const Json& value, SchemaAlternative& out);
  const Dfa& pattern(const std::string& text);
  const Dfa& format(const std::string& name);
  const Json& resolve(const Json& reference);
  Conjunction at(const Json& schema, const std::string& parent, const std::string& key);
  const std::string& place_of(const Json& schema) const;
  void check_one_of(const std::vector<std::vector<SchemaAlternative>>& parts);
  bool are_disjoint(const SchemaAlternative& a, const SchemaAlternative& b, int depth);
  bool objects_are_disjoint(const SchemaAlternative& a, const SchemaAlternative& b, int depth);

  const Json& document_;
  std::unordered_map<const Json*, std::string> places_;
  int64_t merges_ = 0;
  int64_t work_ = 0;
  std::unordered_map<std::string, Dfa> patterns_, formats_;
};

// True and empty say nothing.
bool says_nothing(const nlohmann::ordered_json& schema);

// The strings of a "format" (RFC 3339 dates, UUIDs, ...), over code points. nullopt: a format that
// says nothing about the text (int32, password). Throws kUnsupported for an unknown one.
std::optional<Dfa> strings_of_format(std::string_view format);

}  // namespace lathe
