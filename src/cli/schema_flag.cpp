#include "cli/schema_flag.h"

#include "base/error.h"
#include "base/json.h"
#include "engine/grammar_constraint.h"
#include "grammar/json_schema.h"

namespace lathe {

void add_schema_flag(CLI::App& command, std::string& path) {
  command
      .add_option("--schema", path,
                  "A JSON schema that the answer must satisfy (docs/structured-output.md)")
      ->type_name("FILE");
}

Json read_schema(const std::string& path) {
  return with_context("--schema " + path, [&] { return read_json_file(path, 1 << 20); });
}

std::shared_ptr<const Grammar> schema_grammar(const std::string& path) {
  if (path.empty()) return nullptr;
  const Json schema = read_schema(path);
  return with_context("--schema " + path, [&] { return json_schema_grammar(schema); });
}

std::shared_ptr<const TokenGrammar> token_grammar(std::shared_ptr<const Grammar> grammar,
                                                  const LoadedModel& loaded) {
  if (grammar == nullptr) return nullptr;
  return std::make_shared<TokenGrammar>(
      std::move(grammar),
      std::make_shared<TokenTrie>(loaded.tokenizer(), loaded.model().config().eos_token_ids));
}

std::unique_ptr<TokenConstraint> answer_constraint(std::shared_ptr<const TokenGrammar> grammar) {
  return grammar == nullptr ? nullptr : make_grammar_constraint(std::move(grammar));
}

}  // namespace lathe
