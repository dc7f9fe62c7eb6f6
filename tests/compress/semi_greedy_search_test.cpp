#include "compress/semi_greedy_search.h"

#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"

namespace lathe {
namespace {

using Tokens = std::vector<int32_t>;

// Two deterministic models over texts of at most `max_tokens`, and a checker.
struct Automata {
  std::function<int32_t(const Tokens&)> target, draft;
  std::function<Outcome(const Tokens&)> outcome;
  int32_t end = 0;
  std::size_t max_tokens = 16;

  Tokens greedy(const std::function<int32_t(const Tokens&)>& model, Tokens text) const {
    while (text.size() < max_tokens && (text.empty() || text.back() != end)) {
      text.push_back(model(text));
    }
    return text;
  }
  bool is_cut(const Tokens& text) const { return text.empty() || text.back() != end; }
  Outcome outcome_of(const Tokens& text) const {
    return is_cut(text) ? std::nullopt : outcome(text);
  }
  Tokens choices(const Tokens& answer) const {
    Tokens list;
    for (std::size_t t = 0; t < answer.size(); ++t) {
      list.push_back(draft(Tokens(answer.begin(), answer.begin() + static_cast<int64_t>(t))));
    }
    return list;
  }
  SemiGreedySearch mine() const {
    const Tokens answer = greedy(target, {});
    SemiGreedySearch search(answer, outcome_of(answer).value());
    while (search.find_next(choices(search.current()))) {
      Tokens tried = search.tried_prefix();
      if (tried.back() != end) tried = greedy(target, std::move(tried));
      const Outcome result = outcome_of(tried);
      search.report(tried, result, is_cut(tried));
    }
    return search;
  }
};

// The golden case: tokens a A b B 7 8 E; the answer is the digit.
TEST(SemiGreedySearch, GoldenToy) {
  const std::string names = "aAbB78E";
  const auto model = [&](std::map<std::string, char> rules) {
    return [rules = std::move(rules), names](const Tokens& text) {
      std::string spelled;
      for (const int32_t token : text) spelled += names[static_cast<std::size_t>(token)];
      if (!spelled.empty() && (spelled.back() == '7' || spelled.back() == '8')) {
        return static_cast<int32_t>(names.find('E'));
      }
      return static_cast<int32_t>(names.find(rules.at(spelled)));
    };
  };
  Automata toy;
  toy.target = model({{"", 'a'}, {"a", 'b'}, {"ab", '7'}, {"A", 'B'}, {"AB", '7'}, {"Ab", '7'}});
  toy.draft = model({{"", 'A'}, {"a", 'b'}, {"ab", '7'}, {"A", 'b'}, {"Ab", '8'}, {"AB", '7'}});
  toy.end = 6;
  toy.outcome = [&](const Tokens& text) {
    return Outcome(std::string(1, names[static_cast<std::size_t>(text[text.size() - 2])]));
  };
  const SemiGreedySearch search = toy.mine();
  ASSERT_EQ(search.records().size(), 3u);
  const auto expect = [&](std::size_t i, bool important, char target, char draft) {
    const MinedToken& token = search.records()[i];
    EXPECT_EQ(token.position, static_cast<int64_t>(i));
    EXPECT_EQ(token.important, important);
    EXPECT_EQ(names[static_cast<std::size_t>(token.target_token)], target);
    EXPECT_EQ(names[static_cast<std::size_t>(token.draft_token)], draft);
  };
  expect(0, false, 'a', 'A');
  expect(1, false, 'B', 'b');  // on the changed answer only
  expect(2, true, '7', '8');
  EXPECT_EQ(search.current(), (Tokens{1, 2, 4, 6}));  // A b 7 E
}

// Random automata: the next token is a hash of the text; outcomes are few, so that many changes do
// not matter.
Automata random_automata(uint64_t seed, bool equal_models = false) {
  const auto hash = [](const Tokens& text, uint64_t salt) {
    uint64_t value = salt;
    for (const int32_t token : text)
      value = (value ^ static_cast<uint64_t>(token + 1)) * 0x9E3779B97F4A7C15u;
    return Rng(value).next_u64();
  };
  Automata toy;
  toy.end = 0;
  toy.max_tokens = 12;
  toy.target = [=](const Tokens& text) {
    const uint64_t h = hash(text, seed);
    return text.size() >= 3 && h % 5 == 0 ? 0 : static_cast<int32_t>(1 + h / 7 % 4);
  };
  toy.draft = [=, target = toy.target](const Tokens& text) {
    const uint64_t h = hash(text, seed + 1000000);
    if (equal_models || h % 3 != 0) return target(text);
    return static_cast<int32_t>(h / 11 % 5);  // the end token too
  };
  toy.outcome = [=](const Tokens& text) -> Outcome {
    const uint64_t h = hash(text, seed + 2000000);
    if (h % 16 == 0) return std::nullopt;
    return std::string(1, static_cast<char>('0' + h / 16 % 3 / 2));
  };
  return toy;
}

TEST(SemiGreedySearch, InvariantsHoldOnRandomAutomata) {
  int mined = 0, with_important = 0, with_end = 0;
  for (uint64_t seed = 0; seed < 1500; ++seed) {
    SCOPED_TRACE(seed);
    const Automata toy = random_automata(seed);
    const Outcome reference = toy.outcome_of(toy.greedy(toy.target, {}));
    if (!reference) continue;
    ++mined;
    const SemiGreedySearch search = toy.mine();
    EXPECT_EQ(toy.outcome_of(search.current()), reference);
    EXPECT_LE(search.current().size(), toy.max_tokens);
    std::map<int64_t, MinedToken> by_position;
    int64_t last = -1;
    bool any_important = false;
    for (const MinedToken& token : search.records()) {
      EXPECT_GT(token.position, last);
      last = token.position;
      by_position[token.position] = token;
      any_important = any_important || token.important;
      EXPECT_NE(token.target_token, token.draft_token);
      with_end += token.draft_token == toy.end;
    }
    const Tokens choices = toy.choices(search.current());
    for (std::size_t t = 0; t < search.current().size(); ++t) {
      const auto found = by_position.find(static_cast<int64_t>(t));
      if (found != by_position.end() && found->second.important) {
        EXPECT_EQ(search.current()[t], found->second.target_token);
      } else {
        EXPECT_EQ(search.current()[t], choices[t]);
      }
    }
    if (toy.outcome_of(toy.greedy(toy.draft, {})) != reference) {
      EXPECT_TRUE(any_important);
    }
    with_important += any_important;
  }
  EXPECT_GT(mined, 500);
  EXPECT_GT(with_important, 100);
  EXPECT_GT(with_end, 50);
}

TEST(SemiGreedySearch, EqualModelsHaveNothingToMine) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const Automata toy = random_automata(seed, true);
    if (!toy.outcome_of(toy.greedy(toy.target, {}))) continue;
    EXPECT_TRUE(toy.mine().records().empty());
  }
}

// The draft's token is the end token: the answer is cut there. The same outcome ends the walk,
// another lets it go on along the target's answer.
TEST(SemiGreedySearch, AnEndTokenCutsTheAnswer) {
  for (const bool same : {true, false}) {
    SemiGreedySearch search({5, 6, 7, 0}, "x");
    ASSERT_TRUE(search.find_next(Tokens{5, 0, 9, 0}));
    EXPECT_EQ(search.tried_prefix(), (Tokens{5, 0}));
    search.report({5, 0}, same ? Outcome("x") : Outcome("y"), false);
    EXPECT_EQ(search.find_next(Tokens{5, 0, 9, 0}), !same);
    EXPECT_EQ(search.records()[0].important, !same);
  }
}

TEST(SemiGreedySearch, ACutOffAnswerIsImportant) {
  SemiGreedySearch search({5, 6}, "x");
  ASSERT_TRUE(search.find_next(Tokens{4, 6}));
  search.report({4, 4}, Outcome("x"), true);
  EXPECT_TRUE(search.records()[0].important);
  EXPECT_TRUE(search.records()[0].truncated);
  EXPECT_EQ(search.current(), (Tokens{5, 6}));
}

}  // namespace
}  // namespace lathe
