#include "engine/stop_strings.h"

#include <gtest/gtest.h>

#include <vector>

namespace lathe {
namespace {

// Feeds the text in pieces that end where a bit of `cuts` is set.
std::string feed(const std::vector<std::string>& stops, const std::string& text, unsigned cuts) {
  StopStrings stop(stops);
  std::string shown;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if ((cuts >> i & 1u) == 0) continue;
    shown += stop.append(text.substr(begin, i + 1 - begin), false);
    begin = i + 1;
  }
  shown += stop.append(text.substr(begin), true);
  return shown;
}

TEST(StopStrings, EveryWayToCutTheStreamGivesTheSameText) {
  struct Case {
    std::vector<std::string> stops;
    std::string text;
    std::string shown;
  };
  const std::vector<Case> cases = {
      {{}, "plain text", "plain text"},
      {{"x"}, "plain tex", "plain te"},
      {{"abab"}, "xabaabab", "xaba"},
      {{"abab"}, "xababab", "x"},
      {{"aab"}, "aaaab", "aa"},
      {{"abc", "b"}, "xabc", "xa"},  // "b" ends first
      {{"b", "abc"}, "xabc", "xa"},
      {{"bc", "abc"}, "xabc", "x"},  // they end together: the longer one
      {{"abc", "bc"}, "xabc", "x"},
      {{"END"}, "the EN", "the EN"},  // held back, then let go
      {{"END", "NDX"}, "aENEN", "aENEN"},
      {{"\n\n"}, "a\nb\n\nc", "a\nb"},
      {{"stop"}, "stop", ""},
  };
  for (const Case& c : cases) {
    for (unsigned cuts = 0; cuts < 1u << c.text.size(); ++cuts) {
      ASSERT_EQ(feed(c.stops, c.text, cuts), c.shown) << c.text << " cut at " << cuts;
    }
  }
}

TEST(StopStrings, ShowsWhatCannotBecomeAStop) {
  const std::vector<std::string> stops = {"</end>"};
  StopStrings stop(stops);
  EXPECT_EQ(stop.append("text <", false), "text ");
  EXPECT_EQ(stop.append("b> and </", false), "<b> and ");
  EXPECT_FALSE(stop.found());
  EXPECT_EQ(stop.append("end> more", false), "");
  EXPECT_TRUE(stop.found());
  EXPECT_EQ(stop.append("more", true), "");
}

}  // namespace
}  // namespace lathe
