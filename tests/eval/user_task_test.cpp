// Tasks of the user's own: their files, and checkers of every kind of manners.
#include "eval/user_task.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>

#include "base/atomic_file.h"
#include "base/json.h"
#include "formats/expect_error.h"
#include "formats/temporary_directory.h"

namespace lathe {
namespace {

CheckerProcess shell(const TemporaryDirectory& directory, const std::string& script,
                     double seconds = 20) {
  return {{"sh", "-c", script}, directory.path(), seconds};
}

Json item(const char* answer) { return {{"prompt", "x"}, {"answer", answer}}; }

TEST(CheckerProcess, AnswersLineAfterLine) {
  const TemporaryDirectory directory;
  // Counts, so that one process for all is told from one process each.
  CheckerProcess checker =
      shell(directory,
            "i=0; while read -r line; do i=$((i+1)); echo \"{\\\"outcome\\\": \\\"$i\\\"}\"; done");
  for (const char* expected : {"1", "2", "3"}) {
    const CheckerVerdict verdict = checker.check(item("a"), "answer\nof two lines");
    EXPECT_EQ(verdict.outcome, expected);
    EXPECT_FALSE(verdict.correct.has_value());
  }
}

TEST(CheckerProcess, IsStartedAgainWhenItEndsBehindAnAnswer) {
  const TemporaryDirectory directory;
  for (const char* end : {"\\n", ""}) {
    CheckerProcess checker =
        shell(directory, std::string("read -r line; printf '{\"correct\": true}") + end + "'");
    for (int i = 0; i < 4; ++i) {
      const CheckerVerdict verdict = checker.check(item("a"), "b");
      EXPECT_EQ(verdict.correct, true);
      EXPECT_EQ(verdict.outcome, "correct");
    }
  }
  // It need not even read.
  CheckerProcess blind = shell(directory, "echo '{\"outcome\": null, \"correct\": false}'");
  const std::string large(300'000, 'x');
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(blind.check(item("a"), large).outcome.has_value());
}

TEST(CheckerProcess, GetsTheItemAndTheResponseInTheTasksDirectory) {
  const TemporaryDirectory directory;
  CheckerProcess checker =
      shell(directory, "cat > seen.json; echo '{\"outcome\": \"ok\"}'; sleep 60", 0.5);
  checker.check(item("42"), "é\n\"quoted\"");
  const Json seen = parse_json(read_file(directory / "seen.json"), "seen");
  EXPECT_EQ(seen["item"]["answer"], "42");
  EXPECT_EQ(seen["response"], "é\n\"quoted\"");
}

TEST(CheckerProcess, ASlowOneHasFoundNothing) {
  const TemporaryDirectory directory;
  CheckerProcess checker = shell(directory, "read -r line; sleep 600 & sleep 600", 0.2);
  const auto start = std::chrono::steady_clock::now();
  const CheckerVerdict verdict = checker.check(item("a"), "b");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_FALSE(verdict.outcome.has_value());
  EXPECT_EQ(verdict.correct, false);
}

TEST(CheckerProcess, BrokenOnesStopTheRun) {
  const TemporaryDirectory directory;
  const auto fails = [&](const char* script, ErrorCode code, const char* text) {
    SCOPED_TRACE(script);
    CheckerProcess checker = shell(directory, script);
    expect_error(code, text, [&] { checker.check(item("a"), "b"); });
  };
  fails("echo first >&2; echo 'no module named x' >&2; exit 1", ErrorCode::kInvalidArgument,
        "no module named x");
  fails("exit 0", ErrorCode::kInvalidArgument, "ended without an answer");
  fails("echo nonsense", ErrorCode::kCorruptData, "the checker's answer");
  fails("echo '{}'", ErrorCode::kInvalidArgument, "\"outcome\" or \"correct\"");
  fails("echo '{\"outcome\": 5}'", ErrorCode::kInvalidArgument, "must be a string");
  fails("echo '{\"correct\": \"yes\"}'", ErrorCode::kInvalidArgument, "true or false");
  fails("head -c 3000000 /dev/zero", ErrorCode::kInvalidArgument, "more than");
  CheckerProcess two =
      shell(directory, "read -r l; echo '{\"outcome\":\"1\"}\n{\"outcome\":\"2\"}'; read -r l");
  EXPECT_EQ(two.check(item("a"), "b").outcome, "1");
  expect_error(ErrorCode::kInvalidArgument, "more than one line",
               [&] { two.check(item("a"), "b"); });
  CheckerProcess none({"/no/such/program"}, directory.path(), 5);
  expect_error(ErrorCode::kNotFound, "/no/such/program", [&] { none.check(item("a"), "b"); });
}

TEST(UserTask, ReadsItsFile) {
  const TemporaryDirectory directory;
  write_file_atomically(directory / "check.sh", "one");
  const std::string path = directory / "task.json";
  write_file_atomically(path,
                        R"({"checker": ["sh", "check.sh"], "stop": ["\n\n"], "timeout": 2.5})");
  const UserTask task = load_user_task(path);
  EXPECT_EQ(task.checker, (std::vector<std::string>{"sh", "check.sh"}));
  EXPECT_EQ(task.stop, std::vector<std::string>{"\n\n"});
  EXPECT_EQ(task.timeout, 2.5);
  // Another checker is another task.
  write_file_atomically(directory / "check.sh", "two");
  EXPECT_NE(load_user_task(path).sha256, task.sha256);

  for (const auto& [text, message] : std::vector<std::pair<const char*, const char*>>{
           {"[]", "object"},
           {R"({"stop": []})", "\"checker\" must be"},
           {R"({"checker": "python3 check.py"})", "\"checker\" must be a list"},
           {R"({"checker": [5]})", "list of texts"},
           {R"({"checker": ["a"], "stop": [""]})", "\"stop\""},
           {R"({"checker": ["a"], "timeout": 0})", "\"timeout\""},
           {R"({"checker": ["a"], "timeout": "5"})", "\"timeout\""},
           {R"({"checker": ["a"], "cheker": 1})", "\"cheker\""}}) {
    SCOPED_TRACE(text);
    write_file_atomically(path, text);
    expect_error(ErrorCode::kInvalidArgument, message, [&] { load_user_task(path); });
  }
  expect_error(ErrorCode::kNotFound, "none.json", [&] { load_user_task(directory / "none.json"); });
}

TEST(UserTask, ReadsItsItems) {
  const TemporaryDirectory directory;
  const std::string path = directory / "items.jsonl";
  write_file_atomically(path, R"({"prompt": "Once", "extra": 1}
{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
)");
  const auto items = load_user_items(path);
  ASSERT_EQ(items.size(), 2u);
  const PromptMaker make_prompt = [](std::span<const Turn> turns, std::string_view prefix) {
    std::vector<int32_t> ids = {static_cast<int32_t>(turns.size())};
    for (const Turn& turn : turns) ids.push_back(static_cast<int32_t>(turn.content.size()));
    ids.push_back(static_cast<int32_t>(prefix.size()));
    return ids;
  };
  EXPECT_EQ(user_prompt(items[0], make_prompt), (std::vector<int32_t>{0, 4}));
  EXPECT_EQ(user_prompt(items[1], make_prompt), (std::vector<int32_t>{2, 9, 2, 0}));
  for (const char* bad :
       {"5", "{}", R"({"prompt": 5})", R"({"prompt": "a", "messages": []})", R"({"messages": []})",
        R"({"messages": [{"role": "user"}]})", R"({"messages": [{"role": "tool", "content": ""}]})",
        R"({"messages": ["hi"]})"}) {
    SCOPED_TRACE(bad);
    write_file_atomically(path, std::string(bad) + "\n");
    EXPECT_THROW(load_user_items(path), Error);
  }
}

}  // namespace
}  // namespace lathe
