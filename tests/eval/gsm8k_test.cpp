#include "eval/gsm8k.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

using Found = std::optional<std::string>;

// Expected values are those of Python's re.findall(...)[-1] with the two published patterns.
TEST(Gsm8k, ExtractsWhatThePublishedPatternsDo) {
  struct Case {
    const char* text;
    Found strict, flexible;
  };
  const Case cases[] = {
      {"The final answer is 72", "72", "72"},
      {"The final answer is 72.", "72.", "72."},
      {"The final answer is $1,234.50", "$1,234.50", "$1,234.50"},
      {"The final answer is -5", "-5", "-5"},
      {"The final answer is 7", "7", "7"},
      {"The final answer is $", std::nullopt, std::nullopt},
      {"The final answer is $7", "$7", "$7"},
      {"The final answer is -$7", "-$7", "-$7"},
      {"The final answer is - 7", std::nullopt, "7"},
      {"The final answer is --7", std::nullopt, "-7"},
      {"The final answer is [72]", std::nullopt, "72"},
      {"the final answer is 72", std::nullopt, "72"},
      {"The final answer is 1. The final answer is 2 or 3", "2", "3"},
      {"The final answer is The final answer is 4", "4", "4"},
      {"He paid 5 dollars... and left", std::nullopt, "..."},
      {"It is 5,", std::nullopt, "5,"},
      {"x-5-6", std::nullopt, "-6"},
      {"no number", std::nullopt, std::nullopt},
      {"", std::nullopt, std::nullopt},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(extract_strict(c.text), c.strict) << c.text;
    EXPECT_EQ(extract_flexible(c.text), c.flexible) << c.text;
  }
}

TEST(Gsm8k, NormalizesLikeThePublishedEvaluation) {
  EXPECT_EQ(normalize_answer("$1,234."), "1234");
  EXPECT_EQ(normalize_answer("72.."), "72.");
  EXPECT_EQ(normalize_answer("So #### 5\n#### 72"), "72");
  EXPECT_EQ(normalize_answer("ABC"), "abc");
  EXPECT_EQ(normalize_answer(""), "");
}

TEST(Gsm8k, CanonicalDecimals) {
  const std::pair<const char*, Found> cases[] = {
      {"72", "72"},          {"72.00", "72"},     {"072", "72"},
      {"-0", "0"},           {"-0.0", "0"},       {".50", "0.5"},
      {"-7.250", "-7.25"},   {"5.", "5"},         {"1.2.3", std::nullopt},
      {"", std::nullopt},    {".", std::nullopt}, {"-", std::nullopt},
      {"1e3", std::nullopt}, {"100", "100"},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(canonical_decimal(text), expected) << text;
}

TEST(Gsm8k, CheckersDisagreeWhereTheyShould) {
  using C = Gsm8kChecker;
  const char* gold = "18 - 3 = <<18-3=15>>15\n#### 1,500";
  EXPECT_EQ(gsm8k_gold(C::kStrict, gold), Found("1500"));
  struct Case {
    const char* response;
    bool strict, flexible, numeric;
  };
  const Case cases[] = {
      {"The final answer is 1500", true, true, true},
      {"The final answer is $1,500.", true, true, true},
      {"The final answer is 1500.00", false, false, true},
      {"So he has 1500 left", false, true, true},
      {"The final answer is 15", false, false, false},
      {"I give up", false, false, false},
      {"The final answer is 7. Check: 1500", false, false, false},
  };
  for (const Case& c : cases) {
    const auto right = [&](C checker) {
      return equivalent(gsm8k_outcome(checker, c.response), gsm8k_gold(checker, gold));
    };
    EXPECT_EQ(right(C::kStrict), c.strict) << c.response;
    EXPECT_EQ(right(C::kStrictThenFlexible), c.flexible) << c.response;
    EXPECT_EQ(right(C::kNumeric), c.numeric) << c.response;
  }
}

TEST(Gsm8k, InvalidIsEquivalentToNothing) {
  EXPECT_FALSE(equivalent(std::nullopt, std::nullopt));
  EXPECT_FALSE(equivalent(std::nullopt, Found("1")));
  EXPECT_TRUE(equivalent(Found("1"), Found("1")));
}

TEST(Gsm8k, UnknownCheckerIsAnError) {
  EXPECT_EQ(gsm8k_checker_from_name("numeric"), Gsm8kChecker::kNumeric);
  try {
    gsm8k_checker_from_name("exact");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
  }
}

TEST(Gsm8k, EveryShotIsAnsweredAsAsked) {
  const char* answers[] = {"6", "5", "39", "8", "9", "29", "33", "8"};
  ASSERT_EQ(gsm8k_shots().size(), 8u);
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(gsm8k_outcome(Gsm8kChecker::kStrict, gsm8k_shots()[i].answer), Found(answers[i]));
  }
}

TEST(Gsm8k, EveryPublishedAnswerHasANumber) {
  const auto path = shared_path("data/gsm8k/test.jsonl");
  LATHE_SKIP_WITHOUT(path, "gsm8k");
  const auto items = load_gsm8k(*path);
  EXPECT_EQ(items.size(), 1019u);
  for (const Gsm8kItem& item : items) {
    EXPECT_TRUE(gsm8k_gold(Gsm8kChecker::kNumeric, item.answer)) << item.answer;
  }
}

}  // namespace
}  // namespace lathe
