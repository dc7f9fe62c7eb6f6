#include "grammar/json_schema.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "grammar/json_rules.h"
#include "grammar/schema_keywords.h"

namespace lathe {
namespace {

constexpr int64_t kMaxProperties = 2000;  // of one object

class SchemaCompiler {
 public:
  SchemaCompiler(GrammarBuilder& builder, const Json& schema, Whitespace whitespace)
      : builder_(builder), reader_(schema), rules_(builder, whitespace) {}

  RuleId run(const Json& schema) {
    const RuleId root = rule_of({&schema});
    // Not by recursion: references may form a chain as long as the document.
    while (!pending_.empty()) {
      const auto [rule, conjunction] = std::move(pending_.back());
      pending_.pop_back();
      fill(rule, conjunction);
    }
    return root;
  }

 private:
  // The rule of the values that satisfy all the schemas; filled in later.
  RuleId rule_of(const Conjunction& conjunction) {
    Conjunction simple = reader_.simplified(conjunction);
    if (simple.empty()) return rules_.any_value();
    const auto [found, is_new] = rule_by_schemas_.emplace(simple, -1);
    if (is_new) {
      found->second = builder_.add_rule();
      pending_.emplace_back(found->second, std::move(simple));
    }
    return found->second;
  }

  void fill(RuleId rule, const Conjunction& conjunction) {
    const StateId start = builder_.start(rule);
    const StateId end = builder_.add_state();
    builder_.set_accepts(end);
    if (const auto plain = reader_.plain_alternatives(conjunction)) {
      for (const Conjunction& one : *plain) builder_.add_call(start, rule_of(one), end);
      return;
    }
    const auto alternatives = reader_.alternatives(conjunction);
    with_context("schema at " + reader_.place(conjunction), [&] {
      for (const SchemaAlternative& alternative : alternatives) {
        if (alternative.values) {
          add_values(start, alternative, end);
        } else {
          add_types(start, alternative, end);
        }
      }
    });
  }

  void add_values(StateId start, const SchemaAlternative& alternative, StateId end) {
    std::vector<std::string> texts;
    for (const Json* value : *alternative.values) {
      if (reader_.satisfies(*value, alternative)) texts.push_back(dump_json(*value));
    }
    if (!texts.empty()) builder_.add_call(start, rules_.words(texts), end);
  }

  void add_types(StateId start, const SchemaAlternative& alternative, StateId end) {
    const uint8_t types = alternative.possible_types();
    const auto add = [&](RuleId rule) { builder_.add_call(start, rule, end); };
    if ((types & kJsonNull) != 0) add(word("null"));
    if ((types & kJsonBoolean) != 0) {
      add(word("true"));
      add(word("false"));
    }
    if ((types & (kJsonNumber | kJsonInteger)) != 0) {
      const bool fractions = (types & kJsonNumber) != 0 && alternative.multiple_of == 1;
      if (const RuleId rule = number(alternative, fractions); rule >= 0) add(rule);
    }
    if ((types & kJsonString) != 0) {
      if (const RuleId rule = string(alternative); rule >= 0) add(rule);
    }
    if ((types & kJsonArray) != 0) add_array(start, alternative, end);
    if ((types & kJsonObject) != 0) add_object(start, alternative, end);
  }

  RuleId word(const std::string& text) {
    const auto [found, is_new] = words_.emplace(text, -1);
    if (is_new) found->second = rules_.words({text});
    return found->second;
  }

  // -1: there is none. Lexemes with the same parameters are shared, with their masks.
  RuleId number(const SchemaAlternative& a, bool fractions) {
    const NumberBounds& b = a.bounds;
    const std::string key =
        str(fractions, " ", a.multiple_of, " ", b.minimum.value_or("-"), " ", b.excludes_minimum,
            " ", b.maximum.value_or("-"), " ", b.excludes_maximum);
    return lexeme("number " + key,
                  [&] { return fractions ? json_numbers(b) : json_integers(b, a.multiple_of); });
  }

  RuleId string(const SchemaAlternative& a) {
    if (a.max_length >= 0 && a.max_length < a.min_length) return -1;
    if (a.patterns.empty() && a.formats.empty()) return rules_.string(a.min_length, a.max_length);
    std::string key = str("string ", a.min_length, " ", a.max_length);
    for (const std::string& pattern : a.patterns) key += "\np" + pattern;
    for (const std::string& format : a.formats) key += "\nf" + format;
    return lexeme(key, [&] { return json_strings_of(reader_.strings(a)); });
  }

  template <typename Make>
  RuleId lexeme(const std::string& key, Make&& make) {
    const auto [found, is_new] = lexemes_.emplace(key, -1);
    if (is_new) {
      const Dfa dfa = reader_.paid(make());
      if (!dfa.is_empty()) found->second = builder_.add_lexeme(dfa);
    }
    return found->second;
  }

  void add_array(StateId start, const SchemaAlternative& a, StateId end) {
    if (a.max_items >= 0 && a.max_items < a.min_items) return;
    const auto num_prefix = std::ssize(a.prefix_items);
    const int64_t max = a.max_items;
    const RuleId rule = builder_.add_rule();
    builder_.set_bounds(rule, a.min_items, max);
    builder_.add_call(start, rule, end);
    const StateId close = builder_.add_state();  // behind the last item and blanks
    const StateId accept = builder_.add_state();
    builder_.add_byte(close, ']', accept);
    builder_.set_accepts(accept);

    StateId at = rules_.after_blanks(rules_.after_text(builder_.start(rule), "["));
    if (a.min_items == 0) builder_.add_byte(at, ']', accept);
    // The items of prefixItems one by one, then a loop that counts. Whether the list may end or go
    // on is known for the former, and asked of the count in the latter.
    for (int64_t i = 0; i < num_prefix && (max < 0 || i < max); ++i) {
      const StateId behind = rules_.after_call(
          at, rule_of(a.prefix_items[static_cast<std::size_t>(i)]), /*counts=*/true);
      if (i + 1 >= a.min_items) builder_.add_epsilon(rules_.after_blanks(behind), close);
      if (max >= 0 && i + 1 >= max) return;
      at = rules_.after_blanks(rules_.after_text(behind, ","));
    }
    if (max == 0) return;
    const StateId item = builder_.add_state();
    builder_.add_epsilon(at, item);
    const StateId behind = rules_.after_call(item, rule_of(a.items), /*counts=*/true);
    builder_.add_byte(behind, ']', accept, Guard::kAtLeastMin);
    if (const StateId blank = rules_.after_some_blanks(behind, Guard::kAtLeastMin); blank >= 0) {
      builder_.add_epsilon(blank, close);
    }
    const StateId comma = builder_.add_state();
    builder_.add_byte(behind, ',', comma, Guard::kBelowMax);
    builder_.add_epsilon(rules_.after_blanks(comma), item);
  }

  // Keys that are not in "properties": which, and what their values must be.
  struct OpenKeys {
    RuleId keys;
    RuleId values;
  };

  // Empty when there are none. Also adds what patternProperties and propertyNames say about the
  // declared properties.
  std::vector<OpenKeys> open_keys(const SchemaAlternative& a,
                                  std::vector<std::pair<std::string, Conjunction>>& properties) {
    std::vector<OpenKeys> out;
    const bool any_key =
        properties.empty() && a.pattern_properties.empty() && a.property_names.empty();
    if (any_key) {
      out.push_back({rules_.string(0, -1), rule_of(a.additional)});
      return out;
    }
    Dfa rest = words_of_length(0, -1, kCodePointEnd);
    if (!a.property_names.empty()) {
      rest = names(a.property_names);
      for (auto& [name, schema] : properties) {
        if (reader_.paid(intersect(rest, words_of({name}, kCodePointEnd))).is_empty())
          schema = {&nothing()};
      }
    }
    std::vector<std::string> declared;
    for (const auto& property : properties) declared.push_back(property.first);
    const Dfa declared_names = reader_.paid(words_of(declared, kCodePointEnd));
    if (!declared.empty()) rest = reader_.paid(subtract(rest, declared_names));
    std::vector<Dfa> patterns;
    std::vector<bool> fits(properties.size(), false);
    for (const auto& [pattern, schema] : a.pattern_properties) {
      SchemaAlternative strings;
      strings.patterns = {pattern};
      patterns.push_back(reader_.strings(strings));
      for (std::size_t i = 0; i < properties.size(); ++i) {
        auto& [name, own] = properties[i];
        const Dfa both = intersect(patterns.back(), words_of({name}, kCodePointEnd));
        if (reader_.paid(both).is_empty()) continue;
        fits[i] = true;
        own.insert(own.end(), schema.begin(), schema.end());
        std::sort(own.begin(), own.end());
        own.erase(std::unique(own.begin(), own.end()), own.end());
      }
    }
    for (std::size_t i = 0; i < properties.size() && !patterns.empty(); ++i) {
      if (!fits[i] && a.find_property(properties[i].first) == nullptr) {
        properties[i].second = a.additional;
      }
    }
    for (std::size_t i = 0; i < patterns.size(); ++i) {
      const Dfa keys = reader_.paid(intersect(rest, patterns[i]));
      for (std::size_t j = 0; j < i; ++j) {
        if (!reader_.paid(intersect(keys, patterns[j])).is_empty()) {
          fail(ErrorCode::kUnsupported, "patternProperties '", a.pattern_properties[j].first,
               "' and '", a.pattern_properties[i].first,
               "' fit the same names; make them exclude "
               "each other");
        }
      }
      add_open(keys, a.pattern_properties[i].second, out);
    }
    for (const Dfa& pattern : patterns) rest = reader_.paid(subtract(rest, pattern));
    add_open(rest, a.additional, out);
    return out;
  }

  void add_open(const Dfa& keys, const Conjunction& values, std::vector<OpenKeys>& out) {
    const Dfa strings = reader_.paid(json_strings_of(keys));
    if (strings.is_empty() || (values.size() == 1 && values[0]->is_boolean())) return;  // false
    out.push_back({builder_.add_lexeme(strings), rule_of(values)});
  }

  static const Json& nothing() {
    static const Json schema(false);
    return schema;
  }

  // The names that propertyNames allows.
  Dfa names(const Conjunction& conjunction) {
    const auto alternatives = reader_.alternatives(conjunction);
    if (alternatives.size() != 1) {
      fail(ErrorCode::kUnsupported, "propertyNames with anyOf or oneOf; use pattern or enum");
    }
    return reader_.strings(alternatives[0]);
  }

  void add_object(StateId start, const SchemaAlternative& a, StateId end) {
    auto properties = a.properties;
    for (const std::string& name : a.required) {
      // Where patternProperties may fit the name, open_keys() decides.
      if (a.find_property(name) != nullptr) continue;
      properties.emplace_back(name, a.pattern_properties.empty() ? a.additional : Conjunction{});
    }
    if (std::ssize(properties) > kMaxProperties) {
      fail(ErrorCode::kUnsupported, "more than ", kMaxProperties, " properties in one object");
    }
    const std::vector<OpenKeys> open = open_keys(a, properties);
    const auto num_required = std::ssize(a.required);
    const auto num_properties = std::ssize(properties);
    // A key may come twice in a text and counts once, so only what "required" promises is sure.
    if (a.min_properties > std::max<int64_t>(num_required, 1)) {
      fail(ErrorCode::kUnsupported, "minProperties ", a.min_properties,
           " is more than the number of required properties; add names to required");
    }
    if (a.max_properties >= 0 && a.max_properties < num_required) return;
    if (a.max_properties >= 0 && a.max_properties < num_properties) {
      fail(ErrorCode::kUnsupported, "maxProperties ", a.max_properties,
           " is less than the number of properties; leave it out, or some of them");
    }

    const RuleId rule = builder_.add_rule();
    builder_.set_bounds(rule, 0, a.max_properties);
    builder_.add_call(start, rule, end);
    const StateId accept = builder_.add_state();
    builder_.set_accepts(accept);
    const StateId close = builder_.add_state();
    builder_.add_byte(close, '}', accept);
    // first: nothing written yet; next: behind a comma. Property i may come next in both.
    StateId first = rules_.after_blanks(rules_.after_text(builder_.start(rule), "{"));
    StateId next = builder_.add_state();
    std::vector<bool> may_end(properties.size() + 1, true);
    for (int64_t i = num_properties - 1; i >= 0; --i) {
      const auto idx = static_cast<std::size_t>(i);
      may_end[idx] = may_end[idx + 1] && !a.requires_property(properties[idx].first);
    }
    if (may_end[0] && a.min_properties == 0) builder_.add_byte(first, '}', accept);
    for (std::size_t i = 0; i < properties.size(); ++i) {
      const auto& [name, schema] = properties[i];
      const StateId key = builder_.add_state();
      builder_.add_epsilon(first, key);
      builder_.add_epsilon(next, key);
      const StateId value =
          rules_.after_blanks(rules_.after_text(key, dump_json(Json(name)) + ":"));
      const StateId behind = rules_.after_call(value, rule_of(schema), /*counts=*/true);
      if (may_end[i + 1]) builder_.add_epsilon(rules_.after_blanks(behind), close);
      // Skipping an optional property leads on without it.
      const StateId next_first = builder_.add_state(), next_next = builder_.add_state();
      if (!a.requires_property(name)) {
        builder_.add_epsilon(first, next_first);
        builder_.add_epsilon(next, next_next);
      }
      const StateId comma = builder_.add_state();
      builder_.add_byte(behind, ',', comma, Guard::kBelowMax);
      builder_.add_epsilon(rules_.after_blanks(comma), next_next);
      first = next_first;
      next = next_next;
    }
    for (const OpenKeys& keys : open) {
      if (a.max_properties == 0) break;
      const StateId key = builder_.add_state();
      builder_.add_epsilon(first, key);
      builder_.add_epsilon(next, key);
      const StateId value =
          rules_.after_blanks(rules_.after_text(rules_.after_call(key, keys.keys), ":"));
      const StateId behind = rules_.after_call(value, keys.values, /*counts=*/true);
      builder_.add_epsilon(rules_.after_blanks(behind), close);
      const StateId comma = builder_.add_state();
      builder_.add_byte(behind, ',', comma, Guard::kBelowMax);
      builder_.add_epsilon(rules_.after_blanks(comma), next);
    }
  }

  GrammarBuilder& builder_;
  SchemaReader reader_;
  JsonRules rules_;
  std::map<Conjunction, RuleId> rule_by_schemas_;
  std::vector<std::pair<RuleId, Conjunction>> pending_;
  std::map<std::string, RuleId> lexemes_, words_;
};

}  // namespace

RuleId add_json_schema(GrammarBuilder& builder, const Json& schema, Whitespace whitespace) {
  return SchemaCompiler(builder, schema, whitespace).run(schema);
}

RuleId add_json_object(GrammarBuilder& builder, Whitespace whitespace) {
  return JsonRules(builder, whitespace).any_object();
}

std::shared_ptr<const Grammar> json_schema_grammar(const Json& schema, Whitespace whitespace) {
  GrammarBuilder builder;
  const RuleId root = add_json_schema(builder, schema, whitespace);
  return with_context("the schema", [&] { return builder.build(root); });
}

std::shared_ptr<const Grammar> json_object_grammar(Whitespace whitespace) {
  GrammarBuilder builder;
  const RuleId root = add_json_object(builder, whitespace);
  return builder.build(root);
}

}  // namespace lathe
