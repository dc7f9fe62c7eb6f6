// Exit codes, one-line errors, help: the same for every command.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <sstream>

#include "base/atomic_file.h"
#include "cli/run_program.h"
#include "cli/tiny_checkpoint.h"

namespace lathe {
namespace {

const char* const kCommands[] = {"inspect", "convert",  "quantize", "compress", "generate",
                                 "chat",    "eval",     "bench",    "tokenize", "render",
                                 "score",   "selftest", "fit-kv"};

// Exit code, nothing on stdout, exactly one line "lathe: ..." that contains `part`.
void expect_error(const ProgramResult& result, int exit_code, const std::string& part) {
  EXPECT_EQ(result.exit_code, exit_code) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err.rfind("lathe: ", 0), 0u) << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
}

TEST(Usage, Version) {
  const ProgramResult result = run_lathe({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out.rfind("lathe ", 0), 0u);
}

TEST(Usage, EveryCommandHasHelpWithAnExample) {
  for (const char* command : kCommands) {
    const ProgramResult result = run_lathe({command, "--help"});
    EXPECT_EQ(result.exit_code, 0) << command;
    EXPECT_NE(result.out.find("Example"), std::string::npos) << command;
    EXPECT_NE(result.out.find(std::string("lathe ") + command), std::string::npos) << command;
    for (const char* flag : {"--json", "--threads", "--device"}) {
      EXPECT_NE(result.out.find(flag), std::string::npos) << command << flag;
    }
  }
}

// What a terminal of 100 columns shows unbroken; examples are for copying, and stay whole.
TEST(Usage, HelpFitsThePage) {
  for (const char* command : kCommands) {
    std::istringstream page(run_lathe({command, "--help"}).out);
    bool in_examples = false;
    for (std::string line; std::getline(page, line);) {
      in_examples = in_examples || line.rfind("Example", 0) == 0;
      EXPECT_TRUE(in_examples || line.size() <= 100) << command << ": " << line;
      EXPECT_EQ(line.find("{false}"), std::string::npos) << command << ": " << line;
    }
  }
}

TEST(Usage, HelpIsACommandToo) {
  EXPECT_EQ(run_lathe({"help"}).out, run_lathe({"--help"}).out);
  const ProgramResult quantize = run_lathe({"help", "quantize"});
  EXPECT_EQ(quantize.exit_code, 0);
  EXPECT_EQ(quantize.out, run_lathe({"quantize", "--help"}).out);
  EXPECT_NE(quantize.out.find("--samples"), std::string::npos);
}

TEST(Usage, WrongCommandLinesExitWith2) {
  const std::string model = tiny_checkpoint();
  struct Case {
    std::vector<std::string> arguments;
    const char* part;
  };
  const Case cases[] = {
      {{}, "give a command (see 'lathe --help')"},
      {{"help", "frobnicate"}, "frobnicate"},
      {{"frobnicate"}, "frobnicate"},
      {{"generate"}, "MODEL"},
      {{"generate", model, "x", "--frobnicate", "5"}, "there is no flag --frobnicate (see"},
      {{"generate", model, "why", "is", "the", "sky", "blue"}, "needs quotes"},
      {{"generate", model, "x", "--threads", "99999999999"}, "--threads 99999999999: not a number"},
      {{"generate", model, "x", "--max-tokens", "0"}, "--max-tokens is 0"},
      {{"generate", model, "x", "--context", "-1"}, "--context is -1"},
      {{"generate", model, "x", "--stop", ""}, "--stop has an empty string"},
      {{"generate", model}, "nothing came from standard input"},
      {{"chat", model, "--min-p", "7"}, "--min-p is 7"},
      {{"serve", model, "--max-num-seqs", "0"}, "--max-num-seqs is 0"},
      {{"serve", model, "--max-num-seqs", "9999"}, "--max-batch-tokens is 512"},
      {{"generate", model, "x", "--temperature", "warm"}, "warm"},
      {{"generate", model, "x", "--temperature", "-1"}, "temperature"},
      {{"generate", model, "x", "--top-p", "3"}, "--top-p is 3"},
      {{"generate", model, "x", "--device", "cuda"}, "cuda"},
      {{"generate", model, "x", "--device", "abacus"}, "abacus"},
      {{"generate", model, "x", "--tensor-parallel", "0"}, "--tensor-parallel 0: 1 to 64"},
      {{"generate", model, "x", "--tensor-parallel", "two"}, "two"},
      {{"generate", model, "x", "--threads", "-3"}, "-3"},
      {{"generate", model, "x", "--draft", "ngram", "--draft-tokens", "65"}, "65"},
      {{"generate", model, "x", "--draft", "ngram", "--draft-tokens", "many"}, "many"},
      {{"generate", model, "x", "--draft", "ngram", "--draft-tokens", "-1"}, "-1"},
      {{"generate", model, "x", "--draft", "ngram", "--judge", "kl", "--judge-threshold", "1"},
       "ngram"},
      {{"serve", model, "--port", "0", "--draft", "ngram", "--judge", "kl", "--judge-threshold",
        "1"},
       "ngram"},
      {{"bench", model, "--draft", "ngram", "--random-weights", "mxfp4"}, "own weights"},
      {{"generate", model, "x", "--kv", "aqua9"}, "aqua9"},
      {{"generate", model, "x", "--park-kv", "int8"}, "int8"},
      {{"generate", model, "x", "--park-kv", "aqua2", "--kv", "aqua3"}, "leave one out"},
      {{"generate", model, "x", "--prefix-cache-dir", "/tmp/never"}, "--park-kv"},
      {{"generate", model, "x", "--prefix-cache-ram-gb", "-1"}, "-1"},
      {{"bench", "attention", "--context", "0"}, "--context"},
      {{"bench", "attention", "--formats", "q9"}, "q9"},
      {{"generate", model, "x", "--dtype", "fp7"}, "fp7"},
      {{"score", model, "--kv", "q5"}, "q5"},
      {{"generate", "/no/such/model", "x", "--cache-tokens", "-1"}, "--cache-tokens is -1"},
      {{"chat", "/no/such/model", "--cache-tokens", "99999999999999"}, "--cache-tokens"},
      {{"selftest", "/no/such/model", "--kv", "aqua2"}, "--kv aqua2: selftest"},
      {{"fit-judge", "--target", "/no/such", "--draft", "/no/such", "--task", "gsm8k", "--data",
        "no", "-o", "no", "--kv-codec", "no.file"},
       "--kv-codec no.file: fit-judge"},
      {{"eval", "poetry", model, "--data", "/dev/null"}, "poetry"},
      {{"eval", "perplexity", model}, "--data"},
      {{"eval", "perplexity", model, model, model, "--data", "/dev/null"}, "3"},
      {{"eval", "kld", model, "--data", "/dev/null"}, "reference"},
      {{"eval", "ifeval", model}, "--data"},
      {{"eval", "perplexity", model, "--data", "/dev/null", "--limit", "3"}, "--limit"},
      {{"eval", "humaneval", model, "--data", "/dev/null", "--shots", "2"}, "--shots"},
      {{"eval", "/no/task.json", model, "--data", "/dev/null", "--windows", "2"}, "--windows"},
      {{"bench", model, "-b", "0"}, "-b"},
      {{"bench", model, "-n", "10000"}, "10000"},
      {{"quantize", model}, "OUT"},
      {{"quantize", model, "/tmp/never", "--format", "fp3"}, "fp3"},
      {{"quantize", model, "/tmp/never", "--method", "magic"}, "magic"},
      {{"quantize", model, "/tmp/never", "--activations", "fp3"}, "fp3"},
      {{"quantize", model, "/tmp/never", "--hadamard", "17"}, "17"},
      {{"quantize", model, "/tmp/never", "--hadamard", "-2"}, "-2"},
      {{"quantize", model, "/tmp/never", "--samples", "0"}, "--samples 0"},
      {{"quantize", model, "/tmp/never", "--samples", "9999999999"}, "less than 2^31 tokens"},
      {{"convert", model, "/tmp/never"}, "not a GGUF"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.part);
    expect_error(run_lathe(c.arguments), 2, c.part);
  }
}

TEST(Usage, FailuresExitWith1) {
  const std::string scratch = temporary_directory();
  write_file_atomically(scratch + "/garbage.gguf", "not a model");
  write_file_atomically(scratch + "/cut.gguf", std::string("GGUF\3\0\0\0", 8));
  const ProgramResult empty = run_shell("mkdir -p " + scratch + "/empty");
  ASSERT_EQ(empty.exit_code, 0);
  for (const char* command :
       {"inspect", "bench", "tokenize", "render", "score", "generate", "selftest"}) {
    for (const char* path : {"/no/such/model", "/garbage.gguf", "/cut.gguf", "/empty"}) {
      SCOPED_TRACE(std::string(command) + path);
      const std::string model = path[1] == 'n' ? path : scratch + path;
      expect_error(run_lathe({command, model}), 1, path[1] == 'n' ? "no model" : path + 1);
    }
  }
  expect_error(run_lathe({"inspect", scratch + "/empty"}), 1, "without config.json");
  expect_error(run_lathe({"generate", tiny_checkpoint(), "--prompt-file", scratch}), 1,
               "is a directory");
  expect_error(run_lathe({"generate", tiny_checkpoint(), "x", "--kv", "aqua2"}), 1, "fit-kv");
  expect_error(run_lathe({"score", tiny_checkpoint(), "--kv", "aqua2"}), 1, "fit-kv");
  expect_error(
      run_lathe({"generate", tiny_checkpoint(), "x", "--park-kv", "aqua2", "--kv", "aqua2"}), 1,
      "fit-kv");
  expect_error(run_lathe({"generate", tiny_checkpoint(), "x", "--park-kv", "aqua2", "--kv-codec",
                          scratch + "/garbage.gguf"}),
               1, "garbage");
  expect_error(run_lathe({"eval", "perplexity", tiny_checkpoint(), "--data", "/no/such/text"}), 1,
               "/no/such/text");
  expect_error(run_lathe({"tokenize", tiny_weights_only()}, "\"x\"\n"), 1, "tokenizer");
  expect_error(run_lathe({"render", tiny_weights_only()}, "{}\n"), 1, "chat template");
}

// Seven tenths of what is free: a cache, but not a draft model's beside it.
TEST(Usage, ADraftModelsCacheIsOfTheSameMemory) {
  const std::string model = tiny_checkpoint();
  constexpr int64_t kTooMany = 60'000'000'000;
  const ProgramResult asked =
      run_lathe({"generate", model, "x", "--cache-tokens", std::to_string(kTooMany)});
  expect_error(asked, 1, "MiB are free");
  long long tokens = 0, wanted = 0, free = 0;
  ASSERT_EQ(std::sscanf(asked.err.c_str() + asked.err.find("a cache of"),
                        "a cache of %lld tokens takes %lld MiB, and %lld MiB are free", &tokens,
                        &wanted, &free),
            3)
      << asked.err;
  const double share = 0.7 * static_cast<double>(free) / static_cast<double>(wanted);
  const auto both = static_cast<int64_t>(share * static_cast<double>(kTooMany));
  expect_error(run_lathe({"generate", model, "x", "--max-tokens", "1", "--draft", model,
                          "--cache-tokens", std::to_string(both)}),
               1, "MiB with the draft model's, and");
}

TEST(Usage, ClosedAndFullStandardOutputAreErrors) {
  const std::string ask = "\"$LATHE\" generate " + tiny_checkpoint() + " hello --max-tokens 3 ";
  const ProgramResult closed = run_shell("( " + ask + " >&- )");
  EXPECT_EQ(closed.exit_code, 1) << closed.err;
  EXPECT_NE(closed.err.find("standard output"), std::string::npos) << closed.err;
  const ProgramResult full = run_shell(ask + " > /dev/full");
  EXPECT_EQ(full.exit_code, 1);
  EXPECT_NE(full.err.find("No space left"), std::string::npos) << full.err;
}

TEST(Usage, AReaderThatLeavesEndsTheProgramQuietly) {
  const ProgramResult result =
      run_shell("yes '\"some text\"' | head -100000 | \"$LATHE\" tokenize " + tiny_checkpoint() +
                " | head -1");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(result.out, "[115,111,109,101,32,116,101,120,116]\n");
}

TEST(Usage, ClosedStandardInputIsEmptyInput) {
  const ProgramResult result = run_shell("\"$LATHE\" tokenize " + tiny_checkpoint() + " <&-");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "");
}

}  // namespace
}  // namespace lathe
