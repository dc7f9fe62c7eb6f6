#include "eval/language.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

TEST(Language, IsFoundByScriptWordsAndLetters) {
  const std::pair<const char*, const char*> cases[] = {
      {"", ""},
      {"1, 2, 3! \u00BD \U0001F600", ""},
      {"xyzzy", "en"},
      {"THIS IS THE END OF IT", "en"},
      {"Das ist nicht mein Haus.", "de"},
      {"Isto não é a minha casa.", "pt"},
      {"Esta no es mi casa.", "es"},
      {"Questa non è la mia casa.", "it"},
      {"Это не мой дом.", "ru"},
      {"Това не е моята къща.", "bg"},
      {"Це не мій дім.", "uk"},
      {"هذا ليس بيتي في المدينة", "ar"},
      {"این خانه من نیست", "fa"},
      {"یہ میرا گھر نہیں ہے", "ur"},
      {"यह मेरा घर नहीं है", "hi"},
      {"हे माझे घर नाही आहे", "mr"},
      {"यो मेरो घर होइन र छैन", "ne"},
      {"これは私の家ではありません", "ja"},
      {"大会の結果を発表", "ja"},
      {"这不是我们的家", "zh-cn"},
      {"這不是我們的家", "zh-tw"},
      {"Γειά σου", "el"},
      // Few foreign letters, names of pages and of people change nothing.
      {"यह Python की एक किताब है", "hi"},
      {"Siehe https://the.of.and/is/was und the@and.of auch", "de"},
  };
  for (const auto& [text, code] : cases) EXPECT_EQ(detect_language(text), code) << text;
}

TEST(Language, KnowsItsCodes) {
  EXPECT_TRUE(is_known_language("zh-cn"));
  EXPECT_TRUE(is_known_language("sw"));
  EXPECT_FALSE(is_known_language("zh"));
  EXPECT_FALSE(is_known_language(""));
}

}  // namespace
}  // namespace lathe
