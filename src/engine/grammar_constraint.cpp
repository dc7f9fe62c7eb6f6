#include "engine/grammar_constraint.h"

#include <utility>

#include "grammar/matcher.h"

namespace lathe {
namespace {

static_assert(Matcher::kMaxRollback >= TokenConstraint::kMaxRollback);

class GrammarConstraint : public TokenConstraint {
 public:
  explicit GrammarConstraint(std::shared_ptr<const TokenGrammar> grammar)
      : matcher_(std::move(grammar)) {}
  void allowed_tokens(std::span<uint64_t> words) override { matcher_.allowed_tokens(words); }
  void accept(int32_t token) override { matcher_.accept(token); }
  void rollback(int64_t n) override { matcher_.rollback(n); }

 private:
  Matcher matcher_;
};

}  // namespace

std::unique_ptr<TokenConstraint> make_grammar_constraint(
    std::shared_ptr<const TokenGrammar> grammar) {
  return std::make_unique<GrammarConstraint>(std::move(grammar));
}

}  // namespace lathe
