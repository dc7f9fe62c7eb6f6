#include "eval/sentences.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

using Sentences = std::vector<std::string_view>;

// Expected values are those of NLTK 3.10's sent_tokenize() and word_tokenize().
TEST(Sentences, EndWhereTheyShould) {
  const std::pair<std::string_view, Sentences> cases[] = {
      {"", {}},
      {" \n", {}},
      {"One. Two", {"One.", "Two"}},
      {"One.\nTwo.\n", {"One.", "Two."}},
      {"A title\n\nA text.", {"A title\n\nA text."}},
      {"Mr. Smith met Dr. Brown at 5 p.m. on Jan. 3.",
       {"Mr. Smith met Dr. Brown at 5 p.m. on Jan. 3."}},
      {"He left at 5 p.m. The end.", {"He left at 5 p.m.", "The end."}},
      {"Pay $3.50 at example.com now.", {"Pay $3.50 at example.com now."}},
      {"He said \"Go.\" She went.", {"He said \"Go.\"", "She went."}},
      {"(Not now.) Then.", {"(Not now.)", "Then."}},
      {"**Bold.** Next.", {"**Bold.", "** Next."}},
      {"What?! No way!!! ok", {"What?!", "No way!!!", "ok"}},
      {"J. Smith came. So did I. We ate.", {"J. Smith came.", "So did I.", "We ate."}},
      {"Well... he came... The end", {"Well... he came...", "The end"}},
      {"1. First 2. then", {"1.", "First 2. then"}},
      {"Fruit, e.g. apples", {"Fruit, e.g.", "apples"}},
  };
  for (const auto& [text, sentences] : cases) EXPECT_EQ(split_sentences(text), sentences) << text;
}

TEST(Sentences, CapitalWordsAreTreebankTokens) {
  const std::pair<std::string_view, int64_t> cases[] = {
      {"", 0},
      {"NASA and I", 2},
      {"CAN'T", 2},
      {"Can't", 0},
      {"IT\u2019S", 2},
      {"I'M. you", 2},
      {"CANNOT GONNA WANNA", 6},
      {"WANNA-BE RE-USE", 2},
      {"U.S.A. X,Y 1,A", 4},
      {"FOO...BAR HE--SHE", 4},
      {"O'CLOCK 'TWAS WHO'LL.", 4},
      {"3D \u2167 \u01C5", 2},
      {"ONE/TWO (YES) #TAG", 3},
  };
  for (const auto& [text, words] : cases) EXPECT_EQ(count_capital_words(text), words) << text;
}

}  // namespace
}  // namespace lathe
