#include "formats/module_pattern.h"

#include <gtest/gtest.h>

#include "formats/expect_error.h"

namespace lathe {
namespace {

bool matches(const std::string& pattern, const std::string& name) {
  ModulePatterns patterns;
  patterns.add(pattern, "config.json: ignore");
  return patterns.matches({name});
}

TEST(ModulePatterns, MatchesAsTheLibraryDoes) {
  const struct {
    const char* pattern;
    const char* name;
    bool expected;
  } cases[] = {
      {"lm_head", "lm_head", true},
      {"lm_head", "model.lm_head", false},  // a name is whole
      {"Linear", "model.layers.0.mlp.up_proj", true},
      {"re:.*lm_head", "lm_head", true},
      {"re:.*lm_head", "model.lm_head.x", true},  // from the beginning, not to the end
      {"re:lm_head", "model.lm_head", false},
      {"re:.*mlp.gate$", "model.layers.3.mlp.gate", true},
      {"re:.*mlp.gate$", "model.layers.3.mlp.gate_proj", false},
      {"re:.*self_attn.(q|k|v)_proj$", "model.layers.0.self_attn.k_proj", true},
      {"re:(?!.*lm_head).*", "lm_head", false},
      {"re:(?!.*lm_head).*", "model.layers.0.mlp.up_proj", true},
      {"re:model\\.layers\\.[0-3]\\..*", "model.layers.4.mlp.up_proj", false},
      {"re:", "anything", true},
  };
  for (const auto& c : cases) EXPECT_EQ(matches(c.pattern, c.name), c.expected) << c.pattern;
  EXPECT_FALSE(ModulePatterns().matches({"lm_head"}));
}

TEST(ModulePatterns, RefusesBadAndEndlessExpressions) {
  expect_error(ErrorCode::kCorruptData, "config.json: ignore: module pattern 're:(a'",
               [] { matches("re:(a", "a"); });
  expect_error(ErrorCode::kCorruptData, "5000 bytes", [] { matches(std::string(5000, 'a'), "a"); });
  expect_error(ErrorCode::kCorruptData, "takes too many steps",
               [] { matches("re:(a+)+$", std::string(60, 'a') + "b"); });
}

}  // namespace
}  // namespace lathe
