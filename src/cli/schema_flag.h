// --schema FILE: a JSON schema that answers must satisfy (docs/structured-output.md).
#pragma once
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/loaded_model.h"
#include "engine/token_constraint.h"
#include "grammar/grammar.h"
#include "grammar/token_grammar.h"

namespace lathe {

void add_schema_flag(CLI::App& command, std::string& path);

// The file's JSON. Throws what read_json_file() throws.
nlohmann::ordered_json read_schema(const std::string& path);
// Null for an empty path. Throws for a file that is no schema, or one that cannot be followed.
std::shared_ptr<const Grammar> schema_grammar(const std::string& path);
// Of the model's tokens; null for a null grammar.
std::shared_ptr<const TokenGrammar> token_grammar(std::shared_ptr<const Grammar> grammar,
                                                  const LoadedModel& loaded);
// Of one answer; null for a null grammar.
std::unique_ptr<TokenConstraint> answer_constraint(std::shared_ptr<const TokenGrammar> grammar);

}  // namespace lathe
