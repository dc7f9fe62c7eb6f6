#include "grammar/json_schema.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "formats/expect_error.h"
#include "grammar/grammar_cases.h"

namespace lathe {
namespace {

struct Case {
  const char* schema;
  std::vector<const char*> yes, no;
};

TEST(JsonSchema, HasTheTextsThatValidate) {
  const std::vector<Case> cases = {
      {R"({"type":"object","properties":{"a":{"type":"string"},"b":{"type":"integer"}},"required":["b"],"additionalProperties":false})",
       {R"({"a":"x","b":1})", R"({"b":1})", R"({"a": "x", "b": 1})",
        "{\n  \"a\": \"x\",\n  \"b\": 1\n}", R"({ "b":1 })"},
       {R"({"a":"x"})", R"({"b":1,"a":"x"})", R"({"b":1,})", R"({,"b":1})", R"({"b":1,"c":2})",
        "{}", R"({"b":"1"})", R"( {"b":1})", R"({"b" :1})", R"({"a":"x""b":1})"}},
      {R"({"type":"object","properties":{"a":{"type":"null"}}})",
       {"{}", R"({"a":null})", R"({"a":null,"z":[1]})", R"({"z":{}})"},
       {R"({"a":1})", R"({"z":1,"a":1})", R"({"\u0061":1})"}},
      {R"({"type":"object","additionalProperties":{"type":"integer"},"minProperties":1,"maxProperties":2})",
       {R"({"a":1})", R"({"a":1,"b":2})"},
       {"{}", R"({"a":1,"b":2,"c":3})"}},
      {R"({"type":"object","properties":{"a":{},"b":{}},"maxProperties":2})",
       {R"({"a":1,"b":2})", R"({"a":1,"z":2})", R"({"y":1,"z":2})"},
       {R"({"a":1,"b":2,"z":3})", R"({"x":1,"y":1,"z":2})"}},
      {R"({"type":"object","maxProperties":0})", {"{}"}, {R"({"a":1})"}},
      {R"({"type":"object","patternProperties":{"^x":{"type":"integer"}},"additionalProperties":false,"required":["xa"]})",
       {R"({"xa":1})", R"({"xa":1,"xb":2})"},
       {"{}", R"({"xa":"s"})", R"({"xa":1,"y":2})"}},
      {R"({"type":"object","propertyNames":{"enum":["p","q"]},"properties":{"r":{}}})",
       {R"({"p":1})", "{}"},
       {R"({"r":1})", R"({"s":1})"}},
      {R"({"type":"array","items":{"type":"boolean"},"minItems":2,"maxItems":3})",
       {"[true,false]", "[true, false, true]"},
       {"[]", "[true]", "[true,true,true,true]", "[true,]"}},
      {R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":{"type":"null"},"maxItems":4})",
       {"[]", "[1]", R"([1,"a"])", R"([1,"a",null,null])"},
       {R"(["a"])", R"([1,2])", R"([1,"a",1])", R"([1,"a",null,null,null])"}},
      {R"({"type":"array","prefixItems":[{"type":"integer"}],"items":false,"minItems":1})",
       {"[1]"},
       {"[]", "[1,2]"}},
      {R"({"type":"array","items":false})", {"[]"}, {"[1]"}},
      {R"({"type":"string","minLength":2,"maxLength":3})",
       {R"("ab")", R"("日本語")", R"("\n\n")", R"("\ud83d\ude00a")", "\"😀é\""},
       {R"("a")", R"("abcd")", R"("\n")"}},
      {R"({"type":"string","pattern":"^a+$","minLength":2,"maxLength":3})",
       {R"("aa")", R"("aaa")"},
       {R"("a")", R"("aaaa")"}},
      {R"({"type":"string","format":"date"})",
       {R"("2024-02-29")", R"("1999-12-31")"},
       {R"("2023-02-29")", R"("1900-02-29")", R"("2024-13-01")", R"("2024-04-31")",
        R"("0000-01-01")"}},
      {R"({"type":"string","format":"int32"})", {R"("x")"}, {"1"}},
      {R"({"type":["integer","null"],"minimum":3})", {"3", "null"}, {"2", "3.5", "\"\""}},
      {R"({"type":"number"})", {"1", "1.5", "-2e3"}, {"\"1\"", "+1"}},
      {R"({"type":"integer","minimum":1,"exclusiveMinimum":true})", {"2"}, {"1"}},
      {R"({"type":"string","nullable":true})", {"null", R"("")"}, {"1"}},
      {R"({"enum":["a",1,null,{"k":[1,2]},"é\n"]})",
       {R"("a")", "1", "null", R"({"k":[1,2]})", R"("é\n")"},
       {R"("b")", "2"}},
      {R"({"type":"string","enum":["a",1]})", {R"("a")"}, {"1"}},
      {R"({"const":5,"minimum":6})", {}, {"5"}},
      {R"({"anyOf":[{"type":"integer"},{"type":"string"}],"maxLength":2})",
       {"1", R"("ab")"},
       {R"("abc")", "null"}},
      {R"({"oneOf":[{"type":"object","properties":{"k":{"const":"a"}},"required":["k"]},{"type":"object","properties":{"k":{"const":"b"},"v":{}},"required":["k","v"]}]})",
       {R"({"k":"a"})", R"({"k":"b","v":1})"},
       {R"({"k":"b"})", R"({"k":"c"})"}},
      {R"({"allOf":[{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"a":{"minimum":5}},"additionalProperties":false}]})",
       {R"({"a":5})"},
       {R"({"a":4})", R"({"a":5,"b":1})"}},
      {R"({"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"n":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["n"],"additionalProperties":false}}})",
       {R"({"n":null})", R"({"n":{"n":{"n":null}}})"},
       {"{}", R"({"n":{}})"}},
      {R"({"$defs":{"i":{"type":"integer"}},"type":"array","items":{"$ref":"#/$defs/i","minimum":3,"description":"x"}})",
       {"[3]"},
       {"[2]"}},
      {R"({"properties":{"a":{"type":"integer"}},"required":["a"]})", {R"({"a":1})"}, {"{}", "3"}},
      {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})", {"null"}, {"1"}},
      {"true", {"1", "[{}]", R"({"a":null})"}, {"", "tru"}},
      {"{}", {"1", R"("x")"}, {""}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.schema);
    std::shared_ptr<const Grammar> grammar;
    try {
      grammar = schema_grammar(c.schema);
    } catch (const Error& error) {
      EXPECT_TRUE(c.yes.empty()) << error.what();
      continue;
    }
    for (const char* text : c.yes) EXPECT_TRUE(has_text(grammar, text)) << text;
    for (const char* text : c.no) EXPECT_FALSE(has_text(grammar, text)) << text;
  }
}

TEST(JsonSchema, WithoutBlanks) {
  const auto grammar =
      schema_grammar(R"({"type":"object","properties":{"a":{"type":"array"}}})", Whitespace::kNone);
  EXPECT_TRUE(has_text(grammar, R"({"a":[1,2]})"));
  EXPECT_FALSE(has_text(grammar, R"({"a": [1,2]})"));
  EXPECT_FALSE(has_text(grammar, R"({"a":[1, 2]})"));
  // Bounded, so that a model cannot write blanks forever.
  const auto flexible = json_object_grammar();
  EXPECT_TRUE(has_text(flexible, "{\n" + std::string(40, ' ') + "}"));
  EXPECT_FALSE(has_text(flexible, "{\n" + std::string(41, ' ') + "}"));
  EXPECT_FALSE(has_text(flexible, "{  }"));
}

TEST(JsonSchema, OneClearErrorForWhatCannotBeKept) {
  const std::vector<std::tuple<const char*, ErrorCode, const char*>> cases = {
      {"5", ErrorCode::kInvalidArgument, "must be an object"},
      {R"({"type":"strnig"})", ErrorCode::kInvalidArgument, "'strnig'"},
      {R"({"type":[]})", ErrorCode::kInvalidArgument, "type"},
      {R"({"properties":{"a":{"b":{"type":"x"},"not":{}}}})", ErrorCode::kUnsupported,
       "#/properties/a"},
      {R"({"not":{}})", ErrorCode::kUnsupported, "'not'"},
      {R"({"if":{},"then":{}})", ErrorCode::kUnsupported, "'if'"},
      {R"({"type":"array","contains":{}})", ErrorCode::kUnsupported, "'contains'"},
      {R"({"type":"array","uniqueItems":true})", ErrorCode::kUnsupported, "uniqueItems"},
      {R"({"type":"array","items":[{}]})", ErrorCode::kUnsupported, "prefixItems"},
      {R"({"dependentRequired":{}})", ErrorCode::kUnsupported, "'dependentRequired'"},
      {R"({"unevaluatedProperties":false})", ErrorCode::kUnsupported, "'unevaluatedProperties'"},
      {R"({"requierd":["a"]})", ErrorCode::kUnsupported, "'requierd'"},
      {R"({"type":"object","minProperties":3})", ErrorCode::kUnsupported, "minProperties 3"},
      {R"({"type":"object","properties":{"a":{},"b":{}},"maxProperties":1})",
       ErrorCode::kUnsupported, "maxProperties 1"},
      {R"({"type":"object","patternProperties":{"a":{},"b":{}}})", ErrorCode::kUnsupported,
       "fit the same names"},
      {R"({"type":"number","multipleOf":0.1})", ErrorCode::kUnsupported, "multipleOf 0.1"},
      {R"({"type":"number","multipleOf":0})", ErrorCode::kInvalidArgument, "multipleOf"},
      {R"({"type":"string","format":"iri-reference"})", ErrorCode::kUnsupported, "iri-reference"},
      {R"J({"type":"string","pattern":"(?=a)"})J", ErrorCode::kUnsupported, "look-ahead"},
      {R"({"type":"string","pattern":"["})", ErrorCode::kInvalidArgument, "pattern '['"},
      {R"({"type":"string","minLength":-1})", ErrorCode::kInvalidArgument, "minLength"},
      {R"({"type":"string","minLength":1.5})", ErrorCode::kInvalidArgument, "minLength"},
      {R"({"type":"integer","minimum":"1"})", ErrorCode::kInvalidArgument, "minimum"},
      {R"({"required":"a"})", ErrorCode::kInvalidArgument, "required"},
      {R"({"properties":[]})", ErrorCode::kInvalidArgument, "properties"},
      {R"({"enum":[]})", ErrorCode::kInvalidArgument, "enum"},
      {R"({"anyOf":{}})", ErrorCode::kInvalidArgument, "anyOf"},
      {R"({"$ref":"http://example.com/a"})", ErrorCode::kInvalidArgument, "leaves the document"},
      {R"({"$ref":"#/$defs/nowhere"})", ErrorCode::kInvalidArgument, "names nothing"},
      {R"({"$ref":"#anchor"})", ErrorCode::kInvalidArgument, "JSON pointer"},
      {R"({"$ref":5})", ErrorCode::kInvalidArgument, "$ref"},
      {R"({"$ref":"#"})", ErrorCode::kInvalidArgument, "leads to itself"},
      {R"({"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}})",
       ErrorCode::kInvalidArgument, "leads to itself"},
      {R"({"allOf":[{"$ref":"#"},{"type":"integer"}],"minimum":1})", ErrorCode::kInvalidArgument,
       "refer to itself"},
      {R"({"anyOf":[{"$ref":"#"}]})", ErrorCode::kInvalidArgument, "no finite text"},
      {R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})",
       ErrorCode::kInvalidArgument, "no finite text"},
      {R"({"type":"string","enum":[1]})", ErrorCode::kInvalidArgument, "no finite text"},
      {R"({"type":"string","pattern":"^a$","minLength":2})", ErrorCode::kInvalidArgument,
       "no finite text"},
      {R"({"type":"integer","minimum":5,"maximum":4})", ErrorCode::kInvalidArgument,
       "no finite text"},
      {"false", ErrorCode::kInvalidArgument, "no finite text"},
      {R"({"oneOf":[{"type":"string"},{"type":"string","maxLength":3}]})", ErrorCode::kUnsupported,
       "may both hold"},
      {R"({"oneOf":[{"type":"integer"},{"type":"number"}]})", ErrorCode::kUnsupported,
       "may both hold"},
      {R"({"oneOf":[{"type":"object","properties":{"k":{"const":1}}},{"type":"object","properties":{"k":{"const":2}}}]})",
       ErrorCode::kUnsupported, "may both hold"},
  };
  for (const auto& [schema, code, text] : cases) {
    SCOPED_TRACE(schema);
    expect_error(code, text, [s = schema] { schema_grammar(s); });
  }
}

// Documents that are made to explode: refused, or compiled, in bounded time.
TEST(JsonSchema, HostileDocuments) {
  const auto repeat = [](const std::string& text, int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += text;
    return out;
  };
  std::vector<std::string> documents;
  documents.push_back(repeat(R"({"type":"array","items":)", 180) + "{}" + repeat("}", 180));
  documents.push_back(repeat(R"({"anyOf":[)", 90) + "{}" + repeat("]}", 90));
  {
    std::string anys = R"({"allOf":[)";  // 3^20 combinations
    for (int i = 0; i < 20; ++i) {
      anys += std::string(i > 0 ? "," : "") +
              R"({"anyOf":[{"minimum":1},{"minimum":2},{"minimum":3}]})";
    }
    documents.push_back(anys + "]}");
  }
  {
    std::string chain = R"({"$ref":"#/$defs/d0","$defs":{)";  // a chain of references
    for (int i = 0; i < 3000; ++i) {
      chain += "\"d" + std::to_string(i) +
               "\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/d" + std::to_string(i + 1) +
               "\"}},";
    }
    documents.push_back(chain + R"("d3000":{}}})");
  }
  {
    std::string doubling = R"({"$ref":"#/$defs/d0","$defs":{)";  // 2^40 when written out
    for (int i = 0; i < 40; ++i) {
      const std::string next = "{\"$ref\":\"#/$defs/d" + std::to_string(i + 1) + "\"}";
      doubling += "\"d" + std::to_string(i) + "\":{\"allOf\":[" + next + "," + next +
                  "],\"x-a\":1,\"minimum\":0},";
    }
    documents.push_back(doubling + R"("d40":{}}})");
  }
  {
    std::string wide = R"({"type":"object","properties":{)";
    for (int i = 0; i < 1900; ++i) wide += (i > 0 ? ",\"p" : "\"p") + std::to_string(i) + "\":{}";
    documents.push_back(wide + "}}");
  }
  documents.push_back(
      R"({"type":"array","minItems":999999999,"maxItems":1000000000,"items":{"type":"integer"}})");
  documents.push_back(R"({"type":"string","minLength":999999999})");
  documents.push_back(R"({"type":"string","pattern":"x","minLength":100000})");
  documents.push_back(R"({"type":"string","pattern":"(a|b)*a(a|b){25}"})");
  {
    std::string values = R"({"enum":[)";
    for (int i = 0; i < 5000; ++i)
      values += (i > 0 ? ",\"" : "\"") + std::string(20, static_cast<char>('a' + i % 26)) +
                std::to_string(i * 7919) + "\"";
    documents.push_back(values + "]}");
  }
  {
    std::string one_of = R"({"oneOf":[)";
    for (int i = 0; i < 400; ++i)
      one_of += std::string(i > 0 ? "," : "") + R"({"type":"string","pattern":"^a{9}(b|c)*$"})";
    documents.push_back(one_of + "]}");
  }
  for (const std::string& document : documents) {
    SCOPED_TRACE(document.substr(0, 80));
    const auto start = std::chrono::steady_clock::now();
    try {
      json_schema_grammar(parse_json(document, "schema", 1000));
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == ErrorCode::kUnsupported ||
                  error.code() == ErrorCode::kInvalidArgument)
          << error.what();
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    EXPECT_LT(seconds.count(), 10);  // 1 s on an idle core; sanitizers are ten times slower
  }
}

}  // namespace
}  // namespace lathe
