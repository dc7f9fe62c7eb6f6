#include "grammar/schema_keywords.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

#include "base/error.h"
#include "base/json.h"
#include "grammar/pattern.h"
#include "text/unicode.h"

namespace lathe {
namespace {

constexpr int kMaxDepth = 64;  // of references and combinations inside one another
constexpr int64_t kMaxCount = 1'000'000'000;

constexpr const char* kAnnotations[] = {
    "title",      "description", "default",         "examples",         "example",
    "deprecated", "readOnly",    "writeOnly",       "$comment",         "$schema",
    "$id",        "$defs",       "definitions",     "discriminator",    "externalDocs",
    "xml",        "$anchor",     "contentEncoding", "contentMediaType", "contentSchema"};

bool is_annotation(const std::string& key) {
  return key.starts_with("x-") ||
         std::find(std::begin(kAnnotations), std::end(kAnnotations), key) != std::end(kAnnotations);
}

void insert(Conjunction& conjunction, const Json* schema) {
  const auto place = std::lower_bound(conjunction.begin(), conjunction.end(), schema);
  if (place == conjunction.end() || *place != schema) conjunction.insert(place, schema);
}

Conjunction both_of(const Conjunction& a, const Conjunction& b) {
  Conjunction out = a;
  for (const Json* schema : b) insert(out, schema);
  return out;
}

uint8_t type_of_name(const std::string& name) {
  if (name == "null") return kJsonNull;
  if (name == "boolean") return kJsonBoolean;
  if (name == "integer") return kJsonInteger;
  if (name == "number") return kJsonInteger | kJsonNumber;
  if (name == "string") return kJsonString;
  if (name == "array") return kJsonArray;
  if (name == "object") return kJsonObject;
  fail(ErrorCode::kInvalidArgument, "type '", name.substr(0, 40),
       "' is none of null, boolean, integer, number, string, array, object");
}

uint8_t type_of_value(const Json& value) {
  if (value.is_null()) return kJsonNull;
  if (value.is_boolean()) return kJsonBoolean;
  if (value.is_number_integer()) return kJsonInteger;
  if (value.is_number()) {
    const double x = value.get<double>();
    return std::floor(x) == x ? kJsonInteger : kJsonNumber;
  }
  if (value.is_string()) return kJsonString;
  return value.is_array() ? kJsonArray : kJsonObject;
}

int64_t count_of(const std::string& key, const Json& value) {
  const bool integral = value.is_number() && std::floor(value.get<double>()) == value.get<double>();
  if (!integral || value.get<double>() < 0) {
    fail(ErrorCode::kInvalidArgument, key, " is ", dump_json(value).substr(0, 40),
         "; it must be a number of things, 0 or more");
  }
  return static_cast<int64_t>(std::min<double>(value.get<double>(), kMaxCount));
}

const std::string& text_of(const std::string& key, const Json& value) {
  if (!value.is_string()) fail(ErrorCode::kInvalidArgument, key, " must be a string");
  return value.get_ref<const std::string&>();
}

void expect_object(const std::string& key, const Json& value) {
  if (!value.is_object()) fail(ErrorCode::kInvalidArgument, key, " must be an object of schemas");
}

const std::vector<Json>& list_of(const std::string& key, const Json& value) {
  if (!value.is_array() || value.empty()) {
    fail(ErrorCode::kInvalidArgument, key, " must be a list that is not empty");
  }
  return value.get_ref<const Json::array_t&>();
}

std::string number_text(const std::string& key, const Json& value) {
  if (!value.is_number()) fail(ErrorCode::kInvalidArgument, key, " must be a number");
  return dump_json(value);
}

void tighten_minimum(NumberBounds& bounds, const std::string& value, bool exclusive) {
  const int order = bounds.minimum ? compare_decimals(value, *bounds.minimum) : 1;
  if (order > 0) bounds.excludes_minimum = exclusive;
  if (order == 0) bounds.excludes_minimum = bounds.excludes_minimum || exclusive;
  if (order > 0) bounds.minimum = value;
}

void tighten_maximum(NumberBounds& bounds, const std::string& value, bool exclusive) {
  const int order = bounds.maximum ? compare_decimals(value, *bounds.maximum) : -1;
  if (order < 0) bounds.excludes_maximum = exclusive;
  if (order == 0) bounds.excludes_maximum = bounds.excludes_maximum || exclusive;
  if (order < 0) bounds.maximum = value;
}

int64_t smaller_limit(int64_t a, int64_t b) { return a < 0 ? b : b < 0 ? a : std::min(a, b); }

int64_t num_code_points(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

bool accepts(const Dfa& dfa, std::string_view text) {
  if (dfa.is_empty()) return false;
  int32_t state = 0;
  for (std::size_t pos = 0; pos < text.size() && state >= 0;) {
    state = dfa.step(state, next_codepoint(text, pos));
  }
  return state >= 0 && dfa.accepts[static_cast<std::size_t>(state)];
}

// In merges of two plain schemas: what takes time is comparing names with names, values with
// values.
int64_t cost_of_pair(const SchemaAlternative& a, const SchemaAlternative& b) {
  const auto num_values = [](const SchemaAlternative& x) {
    return x.values ? std::ssize(*x.values) : 0;
  };
  const int64_t names_a = std::ssize(a.properties), names_b = std::ssize(b.properties);
  return 1 + (names_a + names_b) / 16 + names_a * names_b / 1024 +
         num_values(a) * num_values(b) / 1024;
}

std::string escaped_pointer(const std::string& key) {
  std::string out;
  for (const char c : key.substr(0, 60))
    out += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  return out;
}

}  // namespace

bool says_nothing(const Json& schema) {
  if (schema.is_boolean()) return schema.get<bool>();
  if (!schema.is_object()) return false;
  return std::all_of(schema.items().begin(), schema.items().end(),
                     [](const auto& item) { return is_annotation(item.key()); });
}

const Conjunction* SchemaAlternative::find_property(std::string_view name) const {
  for (const auto& [key, schema] : properties) {
    if (key == name) return &schema;
  }
  return nullptr;
}

bool SchemaAlternative::requires_property(std::string_view name) const {
  return std::find(required.begin(), required.end(), name) != required.end();
}

SchemaReader::SchemaReader(const Json& document) : document_(document) { places_[&document] = "#"; }

const std::string& SchemaReader::place_of(const Json& schema) const {
  static const std::string unknown = "#";
  const auto found = places_.find(&schema);
  return found == places_.end() ? unknown : found->second;
}

std::string SchemaReader::place(const Conjunction& conjunction) const {
  return conjunction.empty() ? "#" : place_of(*conjunction.front());
}

Conjunction SchemaReader::at(const Json& schema, const std::string& parent,
                             const std::string& key) {
  places_.emplace(&schema, parent + "/" + escaped_pointer(key));
  if (says_nothing(schema)) return {};
  return {&schema};
}

// "#", "#/$defs/name": a JSON pointer into the document (RFC 6901).
const Json& SchemaReader::resolve(const Json& reference) {
  const std::string& text = text_of("$ref", reference);
  const Json* at = &document_;
  const auto lost = [&](std::string_view why) {
    fail(ErrorCode::kInvalidArgument, "$ref '", text.substr(0, 80), "' ", why);
  };
  if (!text.starts_with("#")) lost("leaves the document; only references like #/$defs/name work");
  if (text.size() > 1 && text[1] != '/') lost("is not a JSON pointer like #/$defs/name");
  for (std::size_t pos = 1; pos < text.size();) {
    const std::size_t end = std::min(text.find('/', pos + 1), text.size());
    std::string key;
    for (std::size_t i = pos + 1; i < end; ++i) {
      if (text[i] == '~' && i + 1 < end && (text[i + 1] == '0' || text[i + 1] == '1')) {
        key += text[++i] == '0' ? '~' : '/';
      } else if (text[i] == '%' && i + 2 < end && std::isxdigit(text[i + 1]) != 0 &&
                 std::isxdigit(text[i + 2]) != 0) {
        key += static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16));
        i += 2;
      } else {
        key += text[i];
      }
    }
    if (at->is_object() && at->contains(key)) {
      at = &at->find(key).value();
    } else if (at->is_array() && !key.empty() && key.size() < 7 &&
               key.find_first_not_of("0123456789") == std::string::npos &&
               std::stoul(key) < at->size()) {
      at = &(*at)[std::stoul(key)];
    } else {
      lost("names nothing in the document");
    }
    pos = end;
  }
  places_.emplace(at, text);
  return *at;
}

Conjunction SchemaReader::simplified(Conjunction conjunction) {
  Conjunction done;
  std::vector<const Json*> seen;
  while (!conjunction.empty()) {
    const Json* schema = conjunction.back();
    conjunction.pop_back();
    if (says_nothing(*schema)) continue;
    const std::string *only = nullptr, *other = nullptr;
    const Json* value = nullptr;
    if (schema->is_object()) {
      for (const auto& [key, member] : schema->get_ref<const Json::object_t&>()) {
        if (is_annotation(key)) continue;
        if (only != nullptr) other = &key;
        only = &key;
        value = &member;
      }
    }
    const bool is_reference = only != nullptr && other == nullptr && *only == "$ref";
    const bool is_list =
        only != nullptr && other == nullptr && *only == "allOf" && value->is_array();
    if (!is_reference && !is_list) {
      insert(done, schema);
      continue;
    }
    // A schema that comes again says nothing new; a reference that leads to itself says nothing.
    if (std::find(seen.begin(), seen.end(), schema) != seen.end()) continue;
    if (seen.size() > 1000) {
      fail(ErrorCode::kUnsupported, "more than 1000 references in a row");
    }
    seen.push_back(schema);
    with_context("schema at " + place_of(*schema), [&] {
      if (is_reference) {
        conjunction.push_back(&resolve(*value));
      } else {
        for (std::size_t i = 0; i < value->size(); ++i) {
          places_.emplace(&(*value)[i], place_of(*schema) + "/allOf/" + std::to_string(i));
          conjunction.push_back(&(*value)[i]);
        }
      }
    });
  }
  if (done.empty()) {
    // Only references: if none of them reached a schema that allows everything, they go in circles.
    for (const Json* schema : seen) {
      if (schema->contains("$ref") &&
          std::find(seen.begin(), seen.end(), &resolve((*schema)["$ref"])) != seen.end()) {
        fail(ErrorCode::kInvalidArgument, "schema at ", place_of(*schema),
             ": a reference that leads to itself");
      }
    }
  }
  return done;
}

std::optional<std::vector<Conjunction>> SchemaReader::plain_alternatives(
    const Conjunction& conjunction) {
  if (conjunction.size() != 1 || !conjunction[0]->is_object()) return std::nullopt;
  const Json& schema = *conjunction[0];
  const std::string* only = nullptr;
  for (const auto& [key, value] : schema.get_ref<const Json::object_t&>()) {
    if (is_annotation(key)) continue;
    if (only != nullptr) return std::nullopt;
    only = &key;
  }
  if (only == nullptr || (*only != "anyOf" && *only != "oneOf")) return std::nullopt;
  if (*only == "oneOf") alternatives(conjunction);  // checks that they exclude each other
  return with_context("schema at " + place_of(schema), [&] {
    std::vector<Conjunction> out;
    const std::vector<Json>& list = list_of(*only, schema.find(*only).value());
    if (std::ssize(list) > kMaxAlternatives) {
      fail(ErrorCode::kUnsupported, *only, " has more than ", kMaxAlternatives, " alternatives");
    }
    for (std::size_t i = 0; i < list.size(); ++i) {
      out.push_back(at(list[i], place_of(schema) + "/" + *only, std::to_string(i)));
    }
    return std::optional(std::move(out));
  });
}

std::vector<SchemaAlternative> SchemaReader::alternatives(const Conjunction& conjunction) {
  std::vector<SchemaAlternative> out = {SchemaAlternative{}};
  for (const Json* schema : conjunction) out = both(out, alternatives_of(*schema, 0));
  return out;
}

std::vector<SchemaAlternative> SchemaReader::alternatives_of(const Json& schema, int depth) {
  const std::string place = place_of(schema);
  return with_context(depth == 0 ? "schema at " + place : place, [&] {
    if (depth > kMaxDepth) {
      fail(ErrorCode::kInvalidArgument,
           "more than 64 references or combinations inside one another; does it refer to itself?");
    }
    if (schema.is_boolean()) {
      return schema.get<bool>() ? std::vector{SchemaAlternative{}}
                                : std::vector<SchemaAlternative>{};
    }
    if (!schema.is_object()) {
      fail(ErrorCode::kInvalidArgument, "a schema must be an object, true or false; this is ",
           dump_json(schema).substr(0, 40));
    }
    std::vector<SchemaAlternative> out = {read_keywords(schema)};
    for (const auto& [key, value] : schema.get_ref<const Json::object_t&>()) {
      if (key == "$ref") out = both(out, alternatives_of(resolve(value), depth + 1));
      if (key != "allOf" && key != "anyOf" && key != "oneOf") continue;
      std::vector<std::vector<SchemaAlternative>> parts;
      const std::vector<Json>& list = list_of(key, value);
      for (std::size_t i = 0; i < list.size(); ++i) {
        places_.emplace(&list[i], place + "/" + key + "/" + std::to_string(i));
        parts.push_back(alternatives_of(list[i], depth + 1));
      }
      if (key == "allOf") {
        for (const auto& part : parts) out = both(out, part);
        continue;
      }
      if (key == "oneOf") check_one_of(parts);
      std::vector<SchemaAlternative> any;
      for (auto& part : parts) std::move(part.begin(), part.end(), std::back_inserter(any));
      if (std::ssize(any) > kMaxAlternatives) {
        fail(ErrorCode::kUnsupported, key, " has more than ", kMaxAlternatives, " alternatives");
      }
      out = both(out, any);
    }
    return out;
  });
}

std::vector<SchemaAlternative> SchemaReader::both(const std::vector<SchemaAlternative>& a,
                                                  const std::vector<SchemaAlternative>& b) {
  std::vector<SchemaAlternative> out;
  for (const SchemaAlternative& x : a) {
    for (const SchemaAlternative& y : b) {
      merges_ += cost_of_pair(x, y);
      if (merges_ > kMaxMerges) {
        fail(ErrorCode::kUnsupported, "allOf, anyOf and oneOf multiply to too many combinations");
      }
      if (auto z = merged(x, y)) out.push_back(std::move(*z));
      if (std::ssize(out) > kMaxAlternatives) {
        fail(ErrorCode::kUnsupported, "more than ", kMaxAlternatives,
             " combinations of allOf, anyOf and oneOf");
      }
    }
  }
  return out;
}

std::optional<SchemaAlternative> SchemaReader::merged(const SchemaAlternative& a,
                                                      const SchemaAlternative& b) {
  SchemaAlternative out = a;
  out.types = a.types & b.types;
  out.keyword_types = a.keyword_types | b.keyword_types;
  if (out.types == 0) return std::nullopt;
  if (b.values) {
    if (!a.values) {
      out.values = b.values;
    } else {
      std::erase_if(*out.values, [&](const Json* value) {
        return std::none_of(b.values->begin(), b.values->end(),
                            [&](const Json* other) { return *other == *value; });
      });
    }
  }
  if (b.bounds.minimum) tighten_minimum(out.bounds, *b.bounds.minimum, b.bounds.excludes_minimum);
  if (b.bounds.maximum) tighten_maximum(out.bounds, *b.bounds.maximum, b.bounds.excludes_maximum);
  out.multiple_of = std::lcm(a.multiple_of, b.multiple_of);
  out.min_length = std::max(a.min_length, b.min_length);
  out.max_length = smaller_limit(a.max_length, b.max_length);
  const auto append_new = [](auto& to, const auto& from) {
    for (const auto& x : from) {
      if (std::find(to.begin(), to.end(), x) == to.end()) to.push_back(x);
    }
  };
  append_new(out.patterns, b.patterns);
  append_new(out.formats, b.formats);
  out.min_items = std::max(a.min_items, b.min_items);
  out.max_items = smaller_limit(a.max_items, b.max_items);
  const std::size_t num_prefix = std::max(a.prefix_items.size(), b.prefix_items.size());
  out.prefix_items.resize(num_prefix);
  for (std::size_t i = 0; i < num_prefix; ++i) {
    out.prefix_items[i] = both_of(i < a.prefix_items.size() ? a.prefix_items[i] : a.items,
                                  i < b.prefix_items.size() ? b.prefix_items[i] : b.items);
  }
  out.items = both_of(a.items, b.items);
  // A property of one side falls under the other's additionalProperties.
  if ((!a.pattern_properties.empty() &&
       (!b.properties.empty() || !b.additional.empty() || !b.pattern_properties.empty())) ||
      (!b.pattern_properties.empty() && (!a.properties.empty() || !a.additional.empty()))) {
    fail(ErrorCode::kUnsupported,
         "patternProperties cannot be combined with properties of another schema (allOf, $ref)");
  }
  append_new(out.pattern_properties, b.pattern_properties);
  for (auto& [name, schema] : out.properties) {
    const Conjunction* other = b.find_property(name);
    schema = both_of(schema, other != nullptr ? *other : b.additional);
  }
  for (const auto& [name, schema] : b.properties) {
    if (a.find_property(name) == nullptr) {
      out.properties.emplace_back(name, both_of(schema, a.additional));
    }
  }
  append_new(out.required, b.required);
  out.additional = both_of(a.additional, b.additional);
  out.property_names = both_of(a.property_names, b.property_names);
  out.min_properties = std::max(a.min_properties, b.min_properties);
  out.max_properties = smaller_limit(a.max_properties, b.max_properties);
  return out;
}

SchemaAlternative SchemaReader::read_keywords(const Json& schema) {
  SchemaAlternative out;
  bool nullable = false;
  for (const auto& [key, value] : schema.get_ref<const Json::object_t&>()) {
    if (is_annotation(key) || key == "$ref" || key == "allOf" || key == "anyOf" || key == "oneOf") {
      continue;
    }
    if (key == "nullable") {
      if (!value.is_boolean()) fail(ErrorCode::kInvalidArgument, "nullable must be true or false");
      nullable = value.get<bool>();
      continue;
    }
    read_keyword(key, value, schema, out);
  }
  // prefixItems may stand behind items; "items": false ends the list.
  if (nullable && out.types != kJsonAny) out.types |= kJsonNull;
  return out;
}

void SchemaReader::read_keyword(const std::string& key, const Json& value, const Json& schema,
                                SchemaAlternative& out) {
  const auto about = [&](int type) { out.keyword_types |= static_cast<uint8_t>(type); };
  const std::string& place = place_of(schema);
  if (key == "type") {
    out.types = 0;
    if (value.is_array()) {
      for (const Json& name : list_of(key, value)) out.types |= type_of_name(text_of(key, name));
    } else {
      out.types = type_of_name(text_of(key, value));
    }
  } else if (key == "enum" || key == "const") {
    std::vector<const Json*> values;
    if (key == "const") {
      values.push_back(&value);
    } else {
      for (const Json& one : list_of(key, value)) values.push_back(&one);
    }
    if (out.values) {
      std::erase_if(values, [&](const Json* v) {
        return std::none_of(out.values->begin(), out.values->end(),
                            [&](const Json* other) { return *other == *v; });
      });
    }
    out.values = std::move(values);
  } else if (key == "minimum" || key == "maximum" || key == "exclusiveMinimum" ||
             key == "exclusiveMaximum" || key == "multipleOf") {
    about(kJsonInteger | kJsonNumber);
    read_numbers(key, value, schema, out);
  } else if (key == "minLength") {
    about(kJsonString);
    out.min_length = count_of(key, value);
  } else if (key == "maxLength") {
    about(kJsonString);
    out.max_length = count_of(key, value);
  } else if (key == "pattern") {
    about(kJsonString);
    out.patterns.push_back(text_of(key, value));
  } else if (key == "format") {
    const std::string& format = text_of(key, value);
    if (strings_of_format(format)) {
      about(kJsonString);
      out.formats.push_back(format);
    }
  } else if (key == "minItems") {
    about(kJsonArray);
    out.min_items = count_of(key, value);
  } else if (key == "maxItems") {
    about(kJsonArray);
    out.max_items = count_of(key, value);
  } else if (key == "items") {
    about(kJsonArray);
    if (value.is_array()) {
      fail(ErrorCode::kUnsupported, "items as a list is of an old draft; use prefixItems");
    }
    out.items = at(value, place, key);
  } else if (key == "prefixItems") {
    about(kJsonArray);
    const std::vector<Json>& list = list_of(key, value);
    for (std::size_t i = 0; i < list.size(); ++i) {
      out.prefix_items.push_back(at(list[i], place + "/" + key, std::to_string(i)));
    }
  } else if (key == "uniqueItems" && value.is_boolean()) {
    if (value.get<bool>()) {
      fail(ErrorCode::kUnsupported,
           "uniqueItems cannot be promised while a list is written; leave it out, or use enum");
    }
  } else if (read_object_keyword(key, value, out)) {
    about(kJsonObject);
    if (key == "properties" || key == "patternProperties") {
      auto& list = key == "properties" ? out.properties : out.pattern_properties;
      for (const auto& [name, member] : value.get_ref<const Json::object_t&>()) {
        list.emplace_back(name, at(member, place + "/" + key, name));
      }
    } else if (key == "additionalProperties") {
      out.additional = at(value, place, key);
    } else if (key == "propertyNames") {
      out.property_names = at(value, place, key);
    }
  } else {
    fail(ErrorCode::kUnsupported, "the keyword '", key.substr(0, 40),
         "' is not supported; leave it out (a note of your own may be called x-...)");
  }
}

bool SchemaReader::read_object_keyword(const std::string& key, const Json& value,
                                       SchemaAlternative& out) {
  if (key == "properties" || key == "patternProperties") {
    expect_object(key, value);
  } else if (key == "required") {
    if (!value.is_array()) fail(ErrorCode::kInvalidArgument, "required must be a list of names");
    for (const Json& name : value) out.required.push_back(text_of(key, name));
    std::sort(out.required.begin(), out.required.end());
    out.required.erase(std::unique(out.required.begin(), out.required.end()), out.required.end());
  } else if (key == "minProperties") {
    out.min_properties = count_of(key, value);
  } else if (key == "maxProperties") {
    out.max_properties = count_of(key, value);
  } else {
    return key == "additionalProperties" || key == "propertyNames";
  }
  return true;
}

void SchemaReader::read_numbers(const std::string& key, const Json& value, const Json& schema,
                                SchemaAlternative& out) {
  if (key == "multipleOf") {
    number_text(key, value);
    const double multiple = value.get<double>();
    if (!(multiple > 0)) fail(ErrorCode::kInvalidArgument, "multipleOf must be above 0");
    if (std::floor(multiple) != multiple || multiple > 1000) {
      fail(ErrorCode::kUnsupported, "multipleOf ", dump_json(value).substr(0, 40),
           " is not supported; a whole number up to 1000 is");
    }
    out.multiple_of = static_cast<int64_t>(multiple);
    return;
  }
  // Draft 4 and OpenAPI 3.0: exclusiveMinimum is a flag beside minimum.
  if (value.is_boolean() && key.starts_with("exclusive")) return;
  const std::string number = number_text(key, value);
  const auto flag = [&](const char* name) {
    const auto found = schema.find(name);
    return found != schema.end() && found->is_boolean() && found->get<bool>();
  };
  if (key == "minimum") tighten_minimum(out.bounds, number, flag("exclusiveMinimum"));
  if (key == "exclusiveMinimum") tighten_minimum(out.bounds, number, true);
  if (key == "maximum") tighten_maximum(out.bounds, number, flag("exclusiveMaximum"));
  if (key == "exclusiveMaximum") tighten_maximum(out.bounds, number, true);
}

Dfa SchemaReader::strings(const SchemaAlternative& alternative) {
  if (alternative.values) {
    std::vector<std::string> words;
    for (const Json* value : *alternative.values) {
      if (value->is_string() && satisfies(*value, alternative)) words.push_back(*value);
    }
    return paid(words_of(words, kCodePointEnd));
  }
  Dfa out = words_of_length(0, -1, kCodePointEnd);
  for (const std::string& text : alternative.patterns) out = paid(intersect(out, pattern(text)));
  for (const std::string& name : alternative.formats) out = paid(intersect(out, format(name)));
  if (alternative.min_length > 0 || alternative.max_length >= 0) {
    out = with_context("minLength, maxLength", [&] {
      return paid(intersect(
          out, words_of_length(alternative.min_length, alternative.max_length, kCodePointEnd)));
    });
  }
  return out;
}

Dfa SchemaReader::paid(Dfa automaton) {
  constexpr int64_t kLeastWork = 100;
  work_ += automaton.work + kLeastWork;
  if (work_ > kMaxWork) {
    fail(ErrorCode::kUnsupported,
         "the patterns, bounds and constants of the schema are too much work in all; use fewer or "
         "simpler ones");
  }
  return automaton;
}

const Dfa& SchemaReader::pattern(const std::string& text) {
  const auto found = patterns_.find(text);
  if (found != patterns_.end()) return found->second;
  Dfa dfa = with_context("pattern '" + text.substr(0, 60) + "'",
                         [&] { return paid(compile_pattern(text)); });
  return patterns_.emplace(text, std::move(dfa)).first->second;
}

const Dfa& SchemaReader::format(const std::string& name) {
  const auto found = formats_.find(name);
  if (found != formats_.end()) return found->second;
  return formats_.emplace(name, paid(*strings_of_format(name))).first->second;
}

bool SchemaReader::satisfies(const Json& value, const SchemaAlternative& alternative) {
  const uint8_t type = type_of_value(value);
  if ((alternative.types & type) == 0) return false;
  if ((alternative.keyword_types & type) == 0) return true;
  if (value.is_number()) {
    const std::string text = dump_json(value);
    const NumberBounds& bounds = alternative.bounds;
    if (bounds.minimum) {
      const int order = compare_decimals(text, *bounds.minimum);
      if (order < 0 || (order == 0 && bounds.excludes_minimum)) return false;
    }
    if (bounds.maximum) {
      const int order = compare_decimals(text, *bounds.maximum);
      if (order > 0 || (order == 0 && bounds.excludes_maximum)) return false;
    }
    return alternative.multiple_of == 1 ||
           std::fmod(value.get<double>(), static_cast<double>(alternative.multiple_of)) == 0;
  }
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    const int64_t length = num_code_points(text);
    if (length < alternative.min_length) return false;
    if (alternative.max_length >= 0 && length > alternative.max_length) return false;
    SchemaAlternative rest;
    rest.patterns = alternative.patterns;
    rest.formats = alternative.formats;
    return accepts(strings(rest), text);
  }
  fail(ErrorCode::kUnsupported,
       "enum or const with lists or objects beside keywords about them; leave those out");
}

void SchemaReader::check_one_of(const std::vector<std::vector<SchemaAlternative>>& parts) {
  for (std::size_t i = 0; i < parts.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      for (const SchemaAlternative& a : parts[i]) {
        for (const SchemaAlternative& b : parts[j]) {
          merges_ += cost_of_pair(a, b);
          if (merges_ > kMaxMerges) {
            fail(ErrorCode::kUnsupported, "oneOf has too many combinations to compare");
          }
          if (!are_disjoint(a, b, 0)) {
            fail(
                ErrorCode::kUnsupported, "oneOf: alternatives ", j, " and ", i,
                " may both hold, which a grammar cannot prevent; use anyOf, or a required property "
                "with a const in each");
          }
        }
      }
    }
  }
}

bool SchemaReader::are_disjoint(const SchemaAlternative& a, const SchemaAlternative& b, int depth) {
  // "number" and "integer" share the integers.
  const auto widened = [](uint8_t types) {
    return (types & kJsonNumber) != 0 ? types | kJsonInteger : types;
  };
  const int common = widened(a.possible_types()) & widened(b.possible_types());
  if (common == 0) return true;
  if (a.values || b.values) {
    const SchemaAlternative& listed = a.values ? a : b;
    const SchemaAlternative& other = a.values ? b : a;
    return std::none_of(listed.values->begin(), listed.values->end(), [&](const Json* value) {
      if (!satisfies(*value, listed)) return false;
      if (!other.values) return satisfies(*value, other);
      return std::any_of(other.values->begin(), other.values->end(),
                         [&](const Json* v) { return *v == *value; });
    });
  }
  if ((common & (kJsonNull | kJsonBoolean)) != 0) return false;
  if ((common & (kJsonInteger | kJsonNumber)) != 0) {
    const auto below = [](const NumberBounds& x, const NumberBounds& y) {
      if (!x.maximum || !y.minimum) return false;
      const int order = compare_decimals(*x.maximum, *y.minimum);
      return order < 0 || (order == 0 && (x.excludes_maximum || y.excludes_minimum));
    };
    if (!below(a.bounds, b.bounds) && !below(b.bounds, a.bounds)) return false;
  }
  if ((common & kJsonString) != 0 && !paid(intersect(strings(a), strings(b))).is_empty()) {
    return false;
  }
  if ((common & kJsonArray) != 0) {
    const bool apart = (a.max_items >= 0 && a.max_items < b.min_items) ||
                       (b.max_items >= 0 && b.max_items < a.min_items);
    if (!apart) return false;
  }
  return (common & kJsonObject) == 0 || objects_are_disjoint(a, b, depth);
}

// Some property must be there and cannot be right for both.
bool SchemaReader::objects_are_disjoint(const SchemaAlternative& a, const SchemaAlternative& b,
                                        int depth) {
  if (depth > 4) return false;
  std::vector<std::string> names = a.required;
  names.insert(names.end(), b.required.begin(), b.required.end());
  for (const std::string& name : names) {
    const Conjunction* in_a = a.find_property(name);
    const Conjunction* in_b = b.find_property(name);
    if (in_a == nullptr && a.pattern_properties.empty()) in_a = &a.additional;
    if (in_b == nullptr && b.pattern_properties.empty()) in_b = &b.additional;
    if (in_a == nullptr || in_b == nullptr) continue;
    bool apart = true;
    for (const SchemaAlternative& x : alternatives(*in_a)) {
      for (const SchemaAlternative& y : alternatives(*in_b)) {
        if (++merges_ > kMaxMerges) {
          fail(ErrorCode::kUnsupported, "oneOf has too many combinations to compare");
        }
        apart = apart && are_disjoint(x, y, depth + 1);
      }
    }
    if (apart) return true;
  }
  return false;
}

}  // namespace lathe
