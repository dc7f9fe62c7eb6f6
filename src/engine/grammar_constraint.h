// A grammar (grammar/grammar.h) as the constraint of a request.
#pragma once
#include <memory>

#include "engine/token_constraint.h"
#include "grammar/token_grammar.h"

namespace lathe {

// One request's own; any number may share the grammar, in any threads.
std::unique_ptr<TokenConstraint> make_grammar_constraint(
    std::shared_ptr<const TokenGrammar> grammar);

}  // namespace lathe
