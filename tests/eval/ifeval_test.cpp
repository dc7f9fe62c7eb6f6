#include "eval/ifeval.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <map>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "eval/language.h"
#include "eval/sentences.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

IfevalItem item_of(const std::string& id, const Json& kwargs) {
  return {"1", "prompt", {parse_ifeval_instruction(id, kwargs)}};
}

bool is_strict(const std::string& id, const Json& kwargs, std::string_view response) {
  return check_ifeval(item_of(id, kwargs), response).strict[0] != 0;
}

const Json kNone = Json::object();

struct Agreement {
  int64_t cases = 0;
  int64_t same = 0;
  void add(bool is_same) {
    ++cases;
    same += is_same;
  }
  double share() const { return static_cast<double>(same) / static_cast<double>(cases); }
};

// The verdicts of lm-eval's checker (scripts/make-ifeval-golden), exactly but for what needs
// trained models there.
TEST(IfevalGolden, AgreesWithThePublishedChecker) {
  const Json golden = read_json_file(golden_path("eval/ifeval.json"));
  std::map<std::string, Agreement> approximate;
  std::map<std::string, int> strict_seen, loose_seen, failed_seen;
  int64_t exact_cases = 0;
  for (const Json& group : golden["cases"]) {
    const auto id = group[0].get<std::string>();
    const IfevalItem item = item_of(id, group[1]);
    const bool is_approximate = id == "language:response_language" ||
                                id == "length_constraints:number_sentences" ||
                                id.starts_with("change_case:english");
    for (const Json& row : group[2]) {
      const auto response = row[0].get<std::string>();
      const bool strict = row[1] == 1, loose = row[2] == 1;
      ++(strict ? strict_seen : loose ? loose_seen : failed_seen)[id];
      const IfevalVerdict verdict = check_ifeval(item, response);
      const bool is_same = verdict.strict[0] == strict && verdict.loose[0] == loose;
      if (is_approximate) {
        approximate[id].add(is_same);
        continue;
      }
      ++exact_cases;
      EXPECT_TRUE(is_same) << id << " " << dump_json(group[1]) << "\n"
                           << dump_json(response) << "\nis " << to_string(item, verdict)
                           << ", expected " << row[1] << row[2];
    }
  }
  EXPECT_GT(exact_cases, 1000);
  EXPECT_EQ(strict_seen.size(), 25u);  // every kind has both verdicts
  EXPECT_EQ(failed_seen.size(), 25u);
  const std::pair<const char*, double> least[] = {
      {"length_constraints:number_sentences", 0.99},
      {"language:response_language", 0.98},
      {"change_case:english_lowercase", 0.92},  // many are a few words
      {"change_case:english_capital", 0.90},    // langdetect skips most of a capital word
  };
  ASSERT_EQ(approximate.size(), std::size(least));
  for (const auto& [id, share] : least) {
    EXPECT_GE(approximate[id].cases, 50) << id;
    EXPECT_GE(approximate[id].share(), share) << id << " of " << approximate[id].cases;
  }
}

TEST(IfevalGolden, SentencesAsPunktSplitsThem) {
  const Json golden = read_json_file(golden_path("eval/ifeval.json"));
  Agreement agreement;
  for (const Json& row : golden["sentences"]) {
    const auto text = row[0].get<std::string>();
    const auto sentences = static_cast<int64_t>(split_sentences(text).size());
    agreement.add(sentences == row[1].get<int64_t>());
  }
  EXPECT_GE(agreement.cases, 90);
  EXPECT_GE(agreement.share(), 0.98) << agreement.same << " of " << agreement.cases;
}

TEST(IfevalGolden, LanguagesAsLangdetectFindsThem) {
  const Json golden = read_json_file(golden_path("eval/ifeval.json"));
  Agreement agreement;
  for (const Json& row : golden["languages"]) {
    const auto text = row[0].get<std::string>();
    agreement.add(detect_language(text) == row[1].get<std::string>());
  }
  EXPECT_GE(agreement.cases, 60);
  EXPECT_GE(agreement.share(), 0.98) << agreement.same << " of " << agreement.cases;
}

// One response each way for kinds whose rule is easily got wrong; the golden file has many more.
TEST(Ifeval, ChecksWhatTheKindSays) {
  const Json two = {{"num_bullets", 2}};
  const char* bullets = "detectable_format:number_bullet_lists";
  EXPECT_TRUE(is_strict(bullets, two, "* a\n\n  - b"));
  EXPECT_FALSE(is_strict(bullets, two, "* a\n** b"));        // emphasis
  EXPECT_FALSE(is_strict(bullets, two, "*\n* b"));           // the first takes its next line
  EXPECT_TRUE(is_strict(bullets, two, "*\n\n* b"));          // but not the one after
  EXPECT_FALSE(is_strict(bullets, two, "* a\n- b\n--- c"));  // a rule is a bullet

  const Json section = {{"section_spliter", "Section"}, {"num_sections", 2}};
  EXPECT_TRUE(is_strict("detectable_format:multiple_sections", section, "Section 1\nSection٣"));
  EXPECT_FALSE(is_strict("detectable_format:multiple_sections", section, "Section 1, section 2"));

  const Json word = {{"forbidden_words", {"C++", "a.b"}}};
  EXPECT_FALSE(is_strict("keywords:forbidden_words", word, "I like c++, too"));
  EXPECT_TRUE(is_strict("keywords:forbidden_words", word, "AC++, axb"));
  EXPECT_FALSE(is_strict("keywords:forbidden_words", word, "(A.B)"));
  EXPECT_TRUE(is_strict("keywords:forbidden_words", {{"forbidden_words", {"can"}}}, "élcan canó"));

  const Json hash = {{"letter", "#"}, {"let_frequency", 4}, {"let_relation", "less than"}};
  EXPECT_TRUE(is_strict("keywords:letter_frequency", hash, "###"));
  EXPECT_FALSE(is_strict("keywords:letter_frequency", hash, "## ##"));

  const Json capitals = {{"capital_frequency", 3}, {"capital_relation", "at least"}};
  EXPECT_TRUE(is_strict("change_case:capital_word_frequency", capitals, "I CAN'T"));
  EXPECT_FALSE(is_strict("change_case:capital_word_frequency", capitals, "RE-USE U.S.A. x"));

  EXPECT_TRUE(is_strict("change_case:english_capital", kNone, "THIS IS WHAT THEY SAID TO US."));
  EXPECT_FALSE(is_strict("change_case:english_capital", kNone, "This IS WHAT THEY SAID TO US."));
  EXPECT_FALSE(is_strict("change_case:english_lowercase", kNone, "das ist nicht mein haus"));
  EXPECT_TRUE(is_strict("language:response_language", {{"language", "mr"}}, "हे माझे घर आहे."));
  EXPECT_FALSE(is_strict("language:response_language", {{"language", "mr"}}, "यह मेरा घर है।"));
  EXPECT_TRUE(is_strict("language:response_language", {{"language", "mr"}}, "1, 2, 3"));  // none
}

TEST(Ifeval, LooseForgivesFirstAndLastLineAndStars) {
  const IfevalItem item = item_of("startend:quotation", kNone);
  const auto verdict = [&](const char* response) {
    const IfevalVerdict v = check_ifeval(item, response);
    return to_string(item, v);
  };
  EXPECT_EQ(verdict("\"yes\""), "startend:quotation=strict");
  EXPECT_EQ(verdict("Sure:\n\"yes\""), "startend:quotation=loose");
  EXPECT_EQ(verdict("\"yes\"\nAnything else?"), "startend:quotation=loose");
  EXPECT_EQ(verdict("Sure:\n\"yes\"\nAnything else?"), "startend:quotation=loose");
  EXPECT_EQ(verdict("Sure:\n**\"yes\"**\nAnything else?"), "startend:quotation=loose");
  EXPECT_EQ(verdict("Sure:\nWell:\n\"yes\""), "startend:quotation=no");
  // Without its only line nothing is left, and nothing follows nothing.
  const IfevalItem no_comma = item_of("punctuation:no_comma", kNone);
  EXPECT_FALSE(check_ifeval(no_comma, "a, b").loose[0]);
  EXPECT_FALSE(check_ifeval(no_comma, "").loose[0]);
  EXPECT_FALSE(check_ifeval(no_comma, " \n\xE3\x80\x80\n").loose[0]);
}

TEST(Ifeval, CountsPromptsAndInstructions) {
  IfevalCounts counts;
  counts.add({.strict = {1, 0, 1}, .loose = {1, 1, 1}});
  counts.add({.strict = {1}, .loose = {1}});
  counts.add({.strict = {0, 0}, .loose = {0, 1}});
  EXPECT_EQ(counts.prompts, 3);
  EXPECT_EQ(counts.strict_prompts, 1);
  EXPECT_EQ(counts.loose_prompts, 2);
  EXPECT_EQ(counts.instructions, 6);
  EXPECT_EQ(counts.strict_instructions, 3);
  EXPECT_EQ(counts.loose_instructions, 5);
}

// Every kind of the published items, with the arguments of one of them.
std::vector<IfevalItem> every_kind() {
  std::vector<IfevalItem> items;
  std::map<std::string, int> seen;
  const Json golden = read_json_file(golden_path("eval/ifeval.json"));
  for (const Json& group : golden["cases"]) {
    const auto id = group[0].get<std::string>();
    if (seen[id]++ == 0) items.push_back(item_of(id, group[1]));
  }
  return items;
}

TEST(Ifeval, TakesAnyBytes) {
  const std::vector<IfevalItem> items = every_kind();
  EXPECT_EQ(items.size(), 25u);
  std::vector<std::string> responses = {"",
                                        "\xFF",
                                        "\xE0\xA4",
                                        "a\xC3",
                                        "\xED\xA0\x80 b",
                                        "*",
                                        "'",
                                        "\"",
                                        "<<",
                                        "[",
                                        ".",
                                        "...",
                                        "\n",
                                        "\r",
                                        "-",
                                        ",",
                                        "******",
                                        "```",
                                        "P.",
                                        "P.P.",
                                        std::string(3, '\0'),
                                        ". . .",
                                        ".\")"};
  uint64_t state = 1;
  const std::string_view letters = "*\n. -'\"[]<>!?,:SsPpAa1\xC3\xA9\xE2\x80\x9D\xFF`{}";
  for (int i = 0; i < 500; ++i) {
    std::string response;
    for (int j = 0; j < 40; ++j) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      response += letters[(state >> 33) % letters.size()];
    }
    responses.push_back(response);
  }
  for (const std::string& response : responses) {
    for (const IfevalItem& item : items) {
      const IfevalVerdict verdict = check_ifeval(item, response);
      EXPECT_LE(verdict.strict[0], verdict.loose[0]);
    }
  }
}

// What makes a careless pattern quadratic, a megabyte of it: 10^12 steps would take minutes each. A
// minute for all of them is room for sanitizers on a busy machine.
TEST(Ifeval, TakesLinearTime) {
  const std::vector<IfevalItem> items = every_kind();
  const auto start = std::chrono::steady_clock::now();
  for (const std::string_view unit :
       {"[", "\n", "*", "<<", ".", "'", ".)", "p.", "a", "CANNOT-", "Section ", "\xE2\x80\x9D"}) {
    std::string response;
    while (response.size() < 1'000'000) response += unit;
    for (const IfevalItem& item : items) follows(item.instructions[0], response);
  }
  const std::string word(199, 'a');
  const std::string response(1'000'000, 'a');
  EXPECT_FALSE(is_strict("keywords:existence", {{"keywords", {word + "b"}}}, response));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 60);
}

TEST(Ifeval, PatternsInArgumentsAreText) {
  for (const char* word : {"(a*)*b", "(?R)", "[", "\\", "a{1000}{1000}", "\\Q", "\\E", "(?<=a)",
                           ".*", "^", "|", "#", "\\C", "a&&b", "x y", "-", "é"}) {
    SCOPED_TRACE(word);
    const std::string text = std::string("yy") + word + "zz";
    EXPECT_TRUE(is_strict("keywords:existence", {{"keywords", {word}}}, text));
    EXPECT_FALSE(is_strict("keywords:existence", {{"keywords", {word}}}, "aaaa~aaaa"));
    EXPECT_FALSE(is_strict("keywords:forbidden_words", {{"forbidden_words", {word}}},
                           std::string("so ") + word + " it"));
  }
}

TEST(Ifeval, MalformedItemsAreNamed) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("ifeval_" + std::to_string(getpid()))).string();
  const auto line = [](const char* ids, const char* kwargs) {
    return str("{\"key\":7,\"prompt\":\"p\",\"instruction_id_list\":", ids, ",\"kwargs\":", kwargs,
               "}\n");
  };
  const std::string good = line("[\"punctuation:no_comma\"]", "[{\"num_words\":null}]");
  write_file_atomically(path, good);
  const auto items = load_ifeval(path);
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].key, "7");

  const char* words = "[\"length_constraints:number_words\"]";
  const char* exists = "[\"keywords:existence\"]";
  const char* letter = "[\"keywords:letter_frequency\"]";
  const std::pair<std::string, const char*> cases[] = {
      {"{", "line 2"},
      {"[]", "no string 'prompt'"},
      {"{\"key\":1}", "no string 'prompt'"},
      {"{\"prompt\":\"p\"}", "no 'key'"},
      {"{\"prompt\":\"p\",\"key\":1.5}", "no 'key'"},
      {"{\"prompt\":\"p\",\"key\":1}", "no list 'instruction_id_list'"},
      {line("[]", "[]"), "no list 'instruction_id_list'"},
      {line("[\"punctuation:no_comma\"]", "{}"), "no list 'kwargs'"},
      {line("[\"punctuation:no_comma\"]", "[{},{}]"), "1 instructions with 2 kwargs"},
      {line("[1]", "[{}]"), "must be texts"},
      {line("[\"punctuation:comma\"]", "[{}]"), "unknown instruction 'punctuation:comma'"},
      {line("[\"punctuation:no_comma\"]", "[null]"), "punctuation:no_comma: its kwargs must be"},
      {line("[\"punctuation:no_comma\"]", "[{\"num_words\":1}]"), "no argument 'num_words'"},
      {line(words, "[{\"num_words\":1}]"), "kwargs lack 'relation'"},
      {line(words, "[{\"relation\":\"at least\",\"num_words\":null}]"), "lack 'num_words'"},
      {line(words, "[{\"relation\":\"at most\",\"num_words\":1}]"), "'relation' must be"},
      {line(words, "[{\"relation\":\"at least\",\"num_words\":0}]"), "1 to 1000000000, not 0"},
      {line(words, "[{\"relation\":\"at least\",\"num_words\":18446744073709551615}]"), "not 184"},
      {line(words, "[{\"relation\":\"at least\",\"num_words\":\"5\"}]"), "must be a whole number"},
      {line(words, "[{\"relation\":\"at least\",\"num_words\":2.5}]"), "must be a whole number"},
      {line(exists, "[{\"keywords\":\"a\"}]"), "must be a list of 1 to 100 words"},
      {line(exists, "[{\"keywords\":[]}]"), "must be a list of 1 to 100 words"},
      {line(exists, "[{\"keywords\":[\"\"]}]"), "words of 1 to 200 bytes"},
      {line(exists, "[{\"keywords\":[5]}]"), "words of 1 to 200 bytes"},
      {line(exists, str("[{\"keywords\":[\"", std::string(201, 'a'), "\"]}]").c_str()),
       "200 bytes"},
      {line("[\"startend:end_checker\"]", "[{\"end_phrase\":[\"a\"]}]"), "must be text"},
      {line("[\"startend:end_checker\"]", "[{\"end_phrase\":\" \"}]"), "bytes, not 0"},
      {line(letter, "[{\"letter\":\"ab\",\"let_frequency\":1,\"let_relation\":\"at least\"}]"),
       "must be one letter"},
      {line("[\"language:response_language\"]", "[{\"language\":\"xx\"}]"), "'xx'"},
      {line("[\"length_constraints:nth_paragraph_first_word\"]",
            "[{\"num_paragraphs\":2,\"nth_paragraph\":3,\"first_word\":\"a\"}]"),
       "3 of 2 paragraphs"},
  };
  for (const auto& [bad, message] : cases) {
    write_file_atomically(path, good + bad);
    try {
      load_ifeval(path);
      ADD_FAILURE() << bad << " is taken";
    } catch (const Error& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find(message), std::string::npos) << bad << ": " << what;
      EXPECT_NE(what.find(path + " line 2"), std::string::npos) << what;
      EXPECT_EQ(what.find('\n'), std::string::npos) << what;
    }
  }
  std::filesystem::remove(path);
}

TEST(Ifeval, EveryPublishedItemLoads) {
  const auto path = shared_path("data/ifeval/input_data.jsonl");
  LATHE_SKIP_WITHOUT(path, "IFEval");
  const auto items = load_ifeval(*path);
  EXPECT_EQ(items.size(), 540u);
  std::map<std::string, int> kinds;
  for (const IfevalItem& item : items) {
    for (const IfevalInstruction& instruction : item.instructions) {
      ++kinds[std::string(ifeval_id(instruction))];
    }
  }
  EXPECT_EQ(kinds.size(), 25u);
}

}  // namespace
}  // namespace lathe
