// fit-judge's mining on the tiny model and its 4-bit copy, with a checker that takes every answer.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>

#include "base/atomic_file.h"
#include "base/json.h"
#include "cli/run_program.h"
#include "cli/tiny_checkpoint.h"

namespace lathe {
namespace {

constexpr int kQuestions = 12;

class FitJudge : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = temporary_directory();
    draft_ = directory_ + "/draft";
    ASSERT_EQ(run_lathe({"quantize", tiny_checkpoint(), draft_, "--method", "rtn"}).exit_code, 0);
    // The tiny model repeats itself before long: there its answers end.
    write_file_atomically(directory_ + "/task.json",
                          R"({"checker": ["sh", "check.sh"], "stop": ["sss", "\uFFFD"]})");
    write_file_atomically(directory_ + "/check.sh",
                          "while read -r line; do echo '{\"outcome\": \"any\"}'; done\n");
    std::string items;
    for (int i = 0; i < kQuestions; ++i) {
      const std::string many(40, static_cast<char>('A' + 2 * i));
      items += dump_json({{"prompt", many + " and so on {x}"}}) + "\n";
    }
    write_file_atomically(directory_ + "/items.jsonl", items);
  }

  std::vector<std::string> mining(const std::string& work) const {
    const std::string in = directory_ + "/";
    std::vector<std::string> words = {"fit-judge", "--max-tokens", "24", "--mine-only"};
    const std::pair<const char*, std::string> flags[] = {
        {"--target", tiny_checkpoint()}, {"--draft", draft_},  {"--task", in + "task.json"},
        {"--data", in + "items.jsonl"},  {"-o", in + "judge"}, {"--work", in + work}};
    for (const auto& [flag, value] : flags) words.insert(words.end(), {flag, value});
    return words;
  }
  Json mine(const std::string& work, const std::vector<std::string>& flags) const {
    std::vector<std::string> words = mining(work);
    words.insert(words.end(), flags.begin(), flags.end());
    words.emplace_back("--json");
    const ProgramResult result = run_lathe(words);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.exit_code == 0 ? parse_json(result.out, "output") : Json::object();
  }

  std::string directory_, draft_;
};

TEST_F(FitJudge, OneContinuationAtATimeFindsTheSame) {
  const Json fast = mine("fast", {"--batch", "4"});
  const Json slow = mine("slow", {"--batch", "1", "--no-prefix-sharing"});
  EXPECT_EQ(fast["mining"], slow["mining"]);
  EXPECT_EQ(fast["mining"]["questions"], kQuestions);
  EXPECT_GT(fast["mining"]["records"], 0);
  for (const Json& one : {fast, slow}) {
    EXPECT_EQ(one["run"]["questions"], kQuestions);
    EXPECT_EQ(one["run"]["generated_tokens"], one["mining"]["generated_tokens"]);
    EXPECT_GT(one["run"]["seconds"], 0);
  }
  EXPECT_GT(fast["run"]["shared_prompt_tokens"], 0);
  EXPECT_EQ(slow["run"]["shared_prompt_tokens"], 0);
  EXPECT_EQ(slow["run"]["prefix_sharing"], false);
}

TEST_F(FitJudge, ASecondRunHasNothingLeftToMine) {
  const Json first = mine("again", {"--questions", "2"});
  EXPECT_EQ(first["run"]["questions"], 2);
  const Json more = mine("again", {});
  EXPECT_EQ(more["run"]["questions"], kQuestions - 2);
  EXPECT_LT(more["run"]["generated_tokens"], more["mining"]["generated_tokens"]);
  const Json none = mine("again", {});
  EXPECT_EQ(none["run"]["questions"], 0);
  EXPECT_EQ(none["run"]["generated_tokens"], 0);
  EXPECT_EQ(none["mining"], more["mining"]);
  const ProgramResult text = run_lathe(mining("again"));
  EXPECT_NE(text.out.find("12 questions"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("this run: 0 questions"), std::string::npos) << text.out;
}

// J11: a judge goes with the model that it was trained on, run as it was run then.
TEST_F(FitJudge, ShardsFindTheSame) {
  const Json whole = mine("whole", {});
  // One part is mined before the others, and one is asked for again.
  for (const char* shard : {"2/3", "1/3", "2/3", "3/3"}) mine("parts", {"--shard", shard});
  const Json parts = mine("parts", {});
  EXPECT_EQ(parts["run"]["questions"], 0);
  EXPECT_EQ(parts["mining"], whole["mining"]);
  EXPECT_EQ(mine("parts", {"--shard", "1/2"})["run"]["questions"], 0);
  for (const char* shard : {"0/3", "4/3", "1", "1/", "/2", "1/3x", "-1/3", "1/99999"}) {
    std::vector<std::string> words = mining("parts");
    words.insert(words.end(), {"--shard", shard});
    const ProgramResult result = run_lathe(words);
    EXPECT_EQ(result.exit_code, 2) << shard;
    EXPECT_NE(result.err.find("--shard"), std::string::npos) << result.err;
  }
}

TEST_F(FitJudge, AJournalHasOneWriter) {
  mine("parts", {"--shard", "1/2"});
  const int fd = ::open((directory_ + "/parts/rank-1/journal.jsonl").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(::flock(fd, LOCK_EX), 0);
  for (const char* flag : {"--shard=1/2", "--batch=8"}) {
    std::vector<std::string> words = mining("parts");
    words.emplace_back(flag);
    const ProgramResult result = run_lathe(words);
    EXPECT_EQ(result.exit_code, 1) << result.err;
    EXPECT_NE(result.err.find("another process is mining"), std::string::npos) << result.err;
  }
  ::close(fd);
  EXPECT_EQ(mine("parts", {})["mining"]["questions"], kQuestions);
}

TEST_F(FitJudge, AJudgeIsForOneModelAsItRan) {
  // Outcomes that change with nearly every token.
  write_file_atomically(
      directory_ + "/check.sh",
      "while read -r line; do echo \"{\\\"outcome\\\": \\\"$((${#line} % 2))\\\"}\"; done\n");
  std::string items;
  for (int i = 0; i < 120; ++i) {
    const std::string many(static_cast<std::size_t>(10 + i % 31), static_cast<char>('0' + i % 75));
    items += dump_json({{"prompt", many + " and so on {x}"}}) + "\n";
  }
  write_file_atomically(directory_ + "/items.jsonl", items);
  std::vector<std::string> fit = mining("trained");
  std::erase(fit, "--mine-only");
  const ProgramResult fitted = run_lathe(fit);
  ASSERT_EQ(fitted.exit_code, 0) << fitted.err;
  const auto ask = [&](const std::string& model, const std::vector<std::string>& flags) {
    std::vector<std::string> words = {"generate", model,   "Hello",   "--max-tokens",       "8",
                                      "--draft",  "ngram", "--judge", directory_ + "/judge"};
    words.insert(words.end(), flags.begin(), flags.end());
    return run_lathe(words);
  };
  const ProgramResult same = ask(tiny_checkpoint(), {});
  EXPECT_EQ(same.exit_code, 0) << same.err;
  EXPECT_EQ(same.err, "");
  const auto expect_refused = [](const ProgramResult& result, const char* part) {
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  };
  expect_refused(ask(tiny_checkpoint(), {"--kv", "int8"}), "with --kv bf16");
  expect_refused(ask(tiny_checkpoint(), {"--dtype", "fp32"}), "with --dtype auto");
  expect_refused(ask(draft_, {}), "weight format dense");
  // An older file, which does not say all of that, runs with a warning.
  std::string bytes = read_file(directory_ + "/judge");
  const std::string schema = R"(\"schema\":2)";
  ASSERT_NE(bytes.find(schema), std::string::npos);
  bytes.replace(bytes.find(schema), schema.size(), R"(\"schema\":1)");
  write_file_atomically(directory_ + "/judge", bytes);
  const ProgramResult older = ask(tiny_checkpoint(), {"--kv", "int8"});
  EXPECT_EQ(older.exit_code, 0) << older.err;
  EXPECT_EQ(older.out.empty(), false);
  EXPECT_NE(older.err.find("for which tokenizer, other layers' weights, precision, cache format"),
            std::string::npos)
      << older.err;
}

}  // namespace
}  // namespace lathe
