#include "eval/humaneval.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "base/error.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

HumanEvalTask toy_task() {
  return {"toy/0", "def add(a, b):\n    \"\"\" Sum. \"\"\"\n", "add", "    return a + b\n",
          "def check(candidate):\n    assert candidate(1, 2) == 3\n"};
}

TEST(HumanEval, CutsAtTheFirstStopString) {
  const std::pair<const char*, const char*> cases[] = {
      {"    return 1\ndef g():\n", "    return 1"},
      {"    return 1\n\nprint(f())\nclass A:", "    return 1\n"},
      {"    return 1\n# note", "    return 1"},
      {"    return 1\n    # note\n    if x:\n", "    return 1\n    # note\n    if x:\n"},
      {"    return 1\nif __name__", "    return 1"},
      {"", ""},
  };
  for (const auto& [completion, kept] : cases) EXPECT_EQ(cut_completion(completion, false), kept);
  EXPECT_EQ(cut_completion("    return 1\n```\nIt adds.", true), "    return 1\n");
  EXPECT_EQ(cut_completion("    return '```'\n", false), "    return '```'\n");
}

TEST(HumanEval, AssemblesPromptCompletionTestsAndCheck) {
  EXPECT_EQ(assemble_program(toy_task(), "    return a + b"),
            "def add(a, b):\n    \"\"\" Sum. \"\"\"\n    return a + b\n"
            "def check(candidate):\n    assert candidate(1, 2) == 3\n\ncheck(add)\n");
}

// Where the kernel refuses isolation, code is not judged.
std::unique_ptr<Sandbox> sandbox_if_available(std::string* reason) {
  try {
    return std::make_unique<Sandbox>();
  } catch (const Error& error) {
    *reason = error.what();
    if (reason->find("not available") == std::string::npos) throw;
    return nullptr;
  }
}

TEST(HumanEval, JudgesCompletions) {
  std::string reason;
  const auto available = sandbox_if_available(&reason);
  if (!available) GTEST_SKIP() << reason;
  const Sandbox& sandbox = *available;
  const auto verdict = [&](const char* completion) {
    return check_completion(toy_task(), completion, sandbox);
  };
  EXPECT_TRUE(verdict("    return a + b\n").passed);
  EXPECT_EQ(verdict("    return a - b\n").reason, "AssertionError");
  EXPECT_FALSE(verdict("    return a +\n").passed);
  EXPECT_FALSE(verdict("    return a + b\n\nimport sys\nsys.exit(0)\n").passed);
}

// Every published solution passes, an empty one does not, and the verdicts are the same with one
// worker and with several at once. Every eighth task, to stay short.
TEST(HumanEval, PublishedSolutionsPass) {
  const auto path = shared_path("data/humaneval/HumanEval.jsonl.gz");
  LATHE_SKIP_WITHOUT(path, "HumanEval");
  const auto tasks = load_humaneval(*path);
  ASSERT_EQ(tasks.size(), 164u);
  std::string reason;
  const auto available = sandbox_if_available(&reason);
  if (!available) GTEST_SKIP() << reason;
  const Sandbox& sandbox = *available;
  std::vector<std::size_t> chosen;
  for (std::size_t i = 0; i < tasks.size(); i += 8) chosen.push_back(i);
  // A busy machine, or one under a sanitizer, may need more than the three seconds of a program.
  const auto passes = [&](const HumanEvalTask& task, const std::string& completion) {
    Verdict verdict;
    for (int attempt = 0; attempt < 5; ++attempt) {
      verdict = check_completion(task, completion, sandbox);
      if (verdict.reason.find("timed out") == std::string::npos) break;
    }
    return verdict.passed;
  };
  const auto judge_all = [&](int workers) {
    std::vector<char> passed(2 * chosen.size());
    std::atomic<std::size_t> next{0};
    std::vector<std::thread> threads;
    for (int worker = 0; worker < workers; ++worker) {
      threads.emplace_back([&] {
        for (std::size_t i; (i = next++) < chosen.size();) {
          const HumanEvalTask& task = tasks[chosen[i]];
          passed[2 * i] = passes(task, task.canonical_solution);
          passed[2 * i + 1] = passes(task, "    pass\n");
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return passed;
  };
  const std::vector<char> alone = judge_all(1);
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    EXPECT_TRUE(alone[2 * i]) << tasks[chosen[i]].task_id;
    EXPECT_FALSE(alone[2 * i + 1]) << tasks[chosen[i]].task_id;
  }
  EXPECT_EQ(judge_all(4), alone);
}

}  // namespace
}  // namespace lathe
