#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/json.h"
#include "cli/run_program.h"
#include "cli/tiny_checkpoint.h"

namespace lathe {
namespace {

TEST(Generate, IsDeterministicAndTheTextAlone) {
  const std::vector<std::string> ask = {"generate", tiny_checkpoint(), "Hello", "--max-tokens",
                                        "10"};
  const ProgramResult first = run_lathe(ask);
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(first.err, "");
  EXPECT_EQ(run_lathe(ask).out, first.out);
  std::vector<std::string> as_json = ask;
  as_json.push_back("--json");
  const Json json = parse_json(run_lathe(as_json).out, "generate");
  const std::string text = json["text"].get<std::string>();
  EXPECT_EQ(first.out, text.empty() || text.back() != '\n' ? text + "\n" : text);
  EXPECT_LE(json["completion_tokens"].get<int64_t>(), 10);
  EXPECT_GT(json["prompt_tokens"].get<int64_t>(), 5);
}

TEST(Generate, SeedsChooseTheText) {
  const auto text = [](const char* seed) {
    return run_lathe({"generate", tiny_checkpoint(), "Hello", "--max-tokens", "20", "--temperature",
                      "1.5", "--seed", seed})
        .out;
  };
  EXPECT_EQ(text("1"), text("1"));
  EXPECT_NE(text("1"), text("2"));
}

// Whatever drafts, the text is the same: greedy, and sampled with --coupled.
TEST(Generate, DraftsChangeNothing) {
  for (const bool coupled : {false, true}) {
    std::vector<std::string> ask = {
        "generate", tiny_checkpoint(), "Hello Hello Hello", "--max-tokens", "30", "--json"};
    if (coupled) ask.insert(ask.end(), {"--coupled", "--temperature", "0.8", "--seed", "5"});
    const Json plain = parse_json(run_lathe(ask).out, "generate");
    for (const std::string& draft :
         {std::string("ngram"), std::string("self"), tiny_checkpoint()}) {
      for (const char* tokens : {"auto", "0", "3"}) {
        SCOPED_TRACE(draft + " " + tokens);
        std::vector<std::string> with_draft = ask;
        with_draft.insert(with_draft.end(), {"--draft", draft, "--draft-tokens", tokens});
        const ProgramResult result = run_lathe(with_draft);
        ASSERT_EQ(result.exit_code, 0) << result.err;
        const Json json = parse_json(result.out, "generate");
        EXPECT_EQ(json["text"], plain["text"]);
        EXPECT_EQ(json["completion_tokens"], plain["completion_tokens"]);
        if (draft == tiny_checkpoint() && tokens[0] == '3') {
          EXPECT_EQ(json["speculative"]["acceptance"], 1.0);
          EXPECT_GT(json["speculative"]["cycles"], 3);
        }
        if (tokens[0] == '0') {
          EXPECT_EQ(json["speculative"]["cycles"], 0);
        }
      }
    }
  }
}

TEST(Generate, DraftsThatCannotBe) {
  const auto error = [](const std::string& model, const std::string& draft) {
    const ProgramResult result =
        run_lathe({"generate", model, "Hello", "--draft", draft, "--max-tokens", "3"});
    EXPECT_NE(result.exit_code, 0);
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    return result.err;
  };
  EXPECT_NE(error(tiny_checkpoint(), "/no/such/model").find("/no/such/model"), std::string::npos);
  EXPECT_NE(error(tiny_checkpoint(), tiny_weights_only()).find("tokenizer"), std::string::npos);
}

TEST(Generate, PromptsFromEverywhere) {
  const std::vector<std::string> base = {"generate", tiny_checkpoint(), "--max-tokens", "8"};
  const auto with = [&](std::vector<std::string> more, const std::string& input = "") {
    std::vector<std::string> arguments = base;
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_lathe(arguments, input);
  };
  const std::string expected = with({"Some prompt"}).out;
  EXPECT_EQ(with({}, "Some prompt").out, expected);
  EXPECT_EQ(with({"-"}, "Some prompt").out, expected);
  const std::string file = temporary_directory() + "/prompt.txt";
  write_file_atomically(file, "Some prompt");
  EXPECT_EQ(with({"--prompt-file", file}).out, expected);
  const ProgramResult pipe = run_shell("mkfifo " + file + ".pipe; printf 'Some prompt' > " + file +
                                       ".pipe & " + "\"$LATHE\" generate " + tiny_checkpoint() +
                                       " --max-tokens 8 --prompt-file " + file + ".pipe");
  EXPECT_EQ(pipe.out, expected) << pipe.err;
  EXPECT_EQ(with({"--prompt-file", file, "and this"}).exit_code, 2);
  EXPECT_EQ(with({"--raw", "--system", "x", "y"}).exit_code, 2);
}

TEST(Generate, EmptyBrokenAndLongPrompts) {
  const std::vector<std::string> base = {"generate", tiny_checkpoint(), "--max-tokens", "4"};
  EXPECT_EQ(run_lathe({"generate", tiny_checkpoint(), "", "--max-tokens", "4"}).exit_code, 0);
  const ProgramResult raw = run_lathe({"generate", tiny_checkpoint(), "", "--raw"});
  EXPECT_EQ(raw.exit_code, 2);
  EXPECT_NE(raw.err.find("empty"), std::string::npos) << raw.err;
  EXPECT_EQ(run_lathe(base, "broken \xff\xfe utf-8").exit_code, 0);
  EXPECT_EQ(run_lathe(base, std::string("with\0zero", 9)).exit_code, 0);
  const ProgramResult too_long = run_lathe(base, std::string(2000, 'x'));
  EXPECT_EQ(too_long.exit_code, 2);
  EXPECT_NE(too_long.err.find("1024"), std::string::npos) << too_long.err;
  const ProgramResult no_room = run_lathe(
      {"generate", tiny_checkpoint(), std::string(300, 'x'), "--raw", "--cache-tokens", "64"});
  EXPECT_EQ(no_room.exit_code, 2);
  EXPECT_NE(no_room.err.find("goes to 1024: raise --context or --cache-tokens (now 64)"),
            std::string::npos)
      << no_room.err;
  const ProgramResult no_memory =
      run_lathe({"generate", tiny_checkpoint(), "x", "--raw", "--cache-tokens", "68000000000"});
  EXPECT_EQ(no_memory.exit_code, 1);
  EXPECT_NE(no_memory.err.find("a smaller --context or --cache-tokens"), std::string::npos)
      << no_memory.err;
}

TEST(Generate, StopStringsCutTheText) {
  const std::vector<std::string> ask = {
      "generate", tiny_checkpoint(), "Hello", "--max-tokens", "20",
      "--json",   "--temperature",   "1",     "--seed",       "3"};
  const std::string text = parse_json(run_lathe(ask).out, "json")["text"].get<std::string>();
  std::size_t at = 2;  // a whole ASCII character inside the text
  while (at < text.size() && (text[at] < 33 || text[at] > 126)) ++at;
  ASSERT_LT(at, text.size()) << text;
  const std::string stop(1, text[at]);
  std::vector<std::string> stopped = ask;
  stopped.insert(stopped.end(), {"--stop", stop});
  const Json json = parse_json(run_lathe(stopped).out, "json");
  EXPECT_EQ(json["text"].get<std::string>(), text.substr(0, text.find(stop)));
  EXPECT_EQ(json["finish_reason"], "stop");
}

TEST(Generate, ASchemaRulesTheText) {
  const std::string file = temporary_directory() + "/schema.json";
  write_file_atomically(file,
                        R"({"type":"object","properties":{"name":{"type":"string","maxLength":5},
      "age":{"type":"integer","minimum":10,"maximum":99}},"required":["name","age"],
      "additionalProperties":false})");
  for (const char* seed : {"1", "2", "3"}) {
    const ProgramResult result =
        run_lathe({"generate", tiny_checkpoint(), "Hello", "--schema", file, "--max-tokens", "200",
                   "--temperature", "1.5", "--seed", seed});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const Json json = parse_json(result.out, "answer");
    EXPECT_TRUE(json["name"].is_string()) << result.out;
    EXPECT_GE(json["age"].get<int64_t>(), 10);
    EXPECT_LE(json["age"].get<int64_t>(), 99);
  }
  const auto error_of = [&](const std::string& path) {
    const ProgramResult result = run_lathe({"generate", tiny_checkpoint(), "x", "--schema", path});
    EXPECT_NE(result.exit_code, 0);
    return result.err;
  };
  EXPECT_NE(error_of(file + ".nowhere").find("nowhere"), std::string::npos);
  write_file_atomically(file, "{");
  EXPECT_NE(error_of(file).find("not valid JSON"), std::string::npos);
  write_file_atomically(file, R"({"not":{}})");
  const std::string refused = error_of(file);
  EXPECT_NE(refused.find("the keyword 'not' is not supported"), std::string::npos) << refused;
}

TEST(Chat, ConversationOverPipes) {
  const std::string file = temporary_directory() + "/saved.json";
  const ProgramResult result =
      run_lathe({"chat", tiny_checkpoint(), "--max-tokens", "4", "--seed", "1", "--json"},
                "hi\n\n/regen\n/stats\n/help\n/frobnicate\n/system s\n/save " + file +
                    "\nyo\n/clear\n/regen\n"
                    "/exit\nnever\n");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  std::vector<Json> lines;
  for (std::size_t begin = 0; begin < result.out.size();) {
    const std::size_t end = result.out.find('\n', begin);
    lines.push_back(parse_json(result.out.substr(begin, end - begin), "line"));
    begin = end + 1;
  }
  ASSERT_EQ(lines.size(), 10u) << result.out;
  EXPECT_EQ(lines[0]["role"], "assistant");
  EXPECT_EQ(lines[1]["role"], "assistant");
  EXPECT_EQ(lines[0]["prompt_tokens"], lines[1]["prompt_tokens"]);
  EXPECT_NE(lines[4]["note"].get<std::string>().find("/frobnicate"), std::string::npos);
  EXPECT_EQ(lines[7]["role"], "assistant");
  EXPECT_NE(lines[9]["note"].get<std::string>().find("no answer yet"), std::string::npos);
  const Json saved = read_json_file(file);
  EXPECT_EQ(saved["messages"], Json::parse(R"([{"role":"system","content":"s"}])"));
}

TEST(Chat, ATurnThatDoesNotFitEndsTheTurnOnly) {
  const ProgramResult result =
      run_lathe({"chat", tiny_checkpoint(), "--max-tokens", "4", "--seed", "1"},
                std::string(2000, 'x') + "\nhi\n");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out.rfind("lathe: ", 0), 0u) << result.out;
}

TEST(Chat, TakesWhatFlagsLeaveOpenFromTheModelsRecommendation) {
  const std::string model = temporary_directory() + "/greedy";
  std::filesystem::copy(tiny_checkpoint(), model);
  write_file_atomically(model + "/generation_config.json", R"({"temperature": 0})");
  const auto answer = [&](const char* seed, std::vector<std::string> flags = {}) {
    flags.insert(flags.begin(),
                 {"chat", model, "--max-tokens", "12", "--seed", seed, "--threads", "1"});
    const ProgramResult result = run_lathe(flags, "hi\n");
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  };
  EXPECT_EQ(answer("1"), answer("2"));
  EXPECT_NE(answer("1", {"--temperature", "5"}), answer("2", {"--temperature", "5"}));
}

TEST(Chat, AnswersFollowASchema) {
  const std::string file = temporary_directory() + "/chat_schema.json";
  write_file_atomically(file, R"({"enum": [1, "two"]})");
  const ProgramResult result = run_lathe(
      {"chat", tiny_checkpoint(), "--schema", file, "--seed", "1", "--json"}, "hi\nand again\n");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  for (std::size_t begin = 0; begin < result.out.size();) {
    const std::size_t end = result.out.find('\n', begin);
    const Json line = parse_json(result.out.substr(begin, end - begin), "line");
    const std::string content = line["content"].get<std::string>();
    EXPECT_TRUE(content == "1" || content == "\"two\"") << content;
    begin = end + 1;
  }
  write_file_atomically(file, "{");
  const ProgramResult bad = run_lathe({"chat", tiny_checkpoint(), "--schema", file}, "hi\n");
  EXPECT_NE(bad.exit_code, 0);
  EXPECT_NE(bad.err.find("not valid JSON"), std::string::npos) << bad.err;
}

TEST(Chat, NeedsATemplate) {
  const ProgramResult result = run_lathe({"chat", tiny_weights_only()});
  EXPECT_EQ(result.exit_code, 1);
}

}  // namespace
}  // namespace lathe
