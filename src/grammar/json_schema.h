// JSON schemas (draft 2020-12, as OpenAI's and vLLM's users write them) as grammars.
//
// What is generated always validates; not everything that validates can be generated:
//   - properties come in the order of "properties", additional ones behind them
//   - strings with a pattern, format or name have one spelling, without superfluous \u escapes
//   - numbers have at most 18 digits in front of the point and 15 behind it
//   - blanks: none, or (kFlexible) one space, or a line break and up to 40 spaces or tabs
//   - a schema without "type" means the types that its keywords are about
// docs/structured-output.md lists the keywords. A keyword that cannot be kept is refused.
#pragma once
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "grammar/grammar.h"

namespace lathe {

enum class Whitespace { kNone, kFlexible };

// Adds the rules of a schema to a grammar under construction.
// Throws kUnsupported (a keyword, a limit) and kInvalidArgument (not a schema), naming the place in
// the schema.
RuleId add_json_schema(GrammarBuilder& builder, const nlohmann::ordered_json& schema,
                       Whitespace whitespace = Whitespace::kFlexible);
// Any JSON object.
RuleId add_json_object(GrammarBuilder& builder, Whitespace whitespace = Whitespace::kFlexible);

// Whole grammars of these.
std::shared_ptr<const Grammar> json_schema_grammar(const nlohmann::ordered_json& schema,
                                                   Whitespace whitespace = Whitespace::kFlexible);
std::shared_ptr<const Grammar> json_object_grammar(Whitespace whitespace = Whitespace::kFlexible);

}  // namespace lathe
