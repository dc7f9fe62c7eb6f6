// Rules of plain JSON, each made once for a grammar: values of any kind, blanks.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "grammar/grammar.h"
#include "grammar/json_schema.h"

namespace lathe {

class JsonRules {
 public:
  JsonRules(GrammarBuilder& builder, Whitespace whitespace)
      : builder_(builder), whitespace_(whitespace) {}

  RuleId any_value();
  RuleId any_object();
  RuleId any_array();
  RuleId string(int64_t min_length, int64_t max_length);
  // One of the texts, which are not empty.
  RuleId words(const std::vector<std::string>& texts);

  // The state behind `from` and perhaps blanks.
  StateId after_blanks(StateId from);
  // At least one blank; -1 where there are none.
  StateId after_some_blanks(StateId from, Guard guard);
  StateId after_text(StateId from, std::string_view text);
  StateId after_call(StateId from, RuleId rule, bool counts = false);

 private:
  GrammarBuilder& builder_;
  Whitespace whitespace_;
  RuleId any_value_ = -1, any_object_ = -1, any_array_ = -1, blanks_ = -1;
  std::map<std::pair<int64_t, int64_t>, RuleId> strings_;
};

}  // namespace lathe
