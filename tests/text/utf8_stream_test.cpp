#include "text/utf8_stream.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "text/unicode.h"

namespace lathe {
namespace {

TEST(Utf8Stream, NeverShowsHalfACharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("Hel"), "Hel");
  EXPECT_EQ(stream.push("lo \xE2"), "lo ");
  EXPECT_EQ(stream.push("\x82"), "");
  EXPECT_EQ(stream.push("\xAC!"), "\xE2\x82\xAC!");
  EXPECT_EQ(stream.push("\xF0\x9F"), "");
  EXPECT_EQ(stream.finish(), kReplacementCharacter);
  EXPECT_FALSE(stream.stopped());
}

TEST(Utf8Stream, ReplacesBytesThatCannotBecomeACharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xFF"), "a\xEF\xBF\xBD");
  EXPECT_EQ(stream.push("\xE2"), "");
  EXPECT_EQ(stream.push("x"), "\xEF\xBF\xBDx");
}

TEST(Utf8Stream, HoldsBackWhatMayBecomeAStop) {
  Utf8Stream stream({"END", "\n\n"});
  EXPECT_EQ(stream.push("a E"), "a ");
  EXPECT_EQ(stream.push("N"), "");
  EXPECT_EQ(stream.push("T\n"), "ENT");
  EXPECT_EQ(stream.push("b EN"), "\nb ");
  EXPECT_EQ(stream.push("D more"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.stop(), "END");
  EXPECT_EQ(stream.push("ignored"), "");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, FinishShowsWhatNeverBecameAStop) {
  Utf8Stream stream({"END"});
  EXPECT_EQ(stream.push("EN"), "");
  EXPECT_EQ(stream.finish(), "EN");
}

TEST(Utf8Stream, AStopMayBeginInsideACharacterOrBeEmpty) {
  Utf8Stream stream({"", "\xE2\x82\xAC"});
  EXPECT_EQ(stream.push("x\xE2\x82"), "x");
  EXPECT_EQ(stream.push("\xAC"), "");
  EXPECT_TRUE(stream.stopped());
}

// Found by fuzzing: the second byte of an e with an accent was held back, and the first shown
// alone.
TEST(Utf8Stream, AStopOfHalfCharactersNeverMatches) {
  Utf8Stream stream({"\xA9 x"});
  EXPECT_EQ(stream.push("caf\xC3\xA9"), "caf\xC3\xA9");
  EXPECT_EQ(stream.push(" x"), " x");
  EXPECT_FALSE(stream.stopped());
}

// However the bytes are cut, the same text is shown.
TEST(Utf8Stream, DoesNotDependOnTokenBoundaries) {
  const std::vector<std::vector<std::string>> stop_lists = {{},
                                                            {"ab"},
                                                            {"abab", "ba"},
                                                            {"aab", "b"},
                                                            {"\xC3\xA9"
                                                             "a",
                                                             "bb"},
                                                            {"abcd", "bc"}};
  Rng rng(7);
  for (int round = 0; round < 500; ++round) {
    std::string bytes;
    static constexpr char kBytes[] = {'a', 'b', 'c', 'd', '\xC3', '\xA9', '\xE2', '\xFF'};
    for (int i = 0; i < 20; ++i) bytes.push_back(kBytes[rng.next_u64() % sizeof kBytes]);
    for (const auto& stops : stop_lists) {
      Utf8Stream one_by_one(stops), at_once(stops), in_pieces(stops);
      std::string expected, shown, pieces;
      for (const char c : bytes) expected += one_by_one.push({&c, 1});
      expected += one_by_one.finish();
      shown = at_once.push(bytes);
      shown += at_once.finish();
      for (size_t pos = 0; pos < bytes.size();) {
        const size_t length = 1 + rng.next_u64() % 5;
        pieces += in_pieces.push(std::string_view(bytes).substr(pos, length));
        pos += length;
      }
      pieces += in_pieces.finish();
      ASSERT_EQ(shown, expected) << testing::PrintToString(bytes);
      ASSERT_EQ(pieces, expected) << testing::PrintToString(bytes);
      ASSERT_EQ(at_once.stop(), one_by_one.stop());
      if (!one_by_one.stopped()) {
        ASSERT_EQ(shown, to_valid_utf8(bytes));
      }
    }
  }
}

}  // namespace
}  // namespace lathe
