// Real models through the program: golden perplexities.
#include <gtest/gtest.h>

#include <cmath>

#include "base/atomic_file.h"
#include "base/json.h"
#include "cli/run_program.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

// transformers in fp32 over the same windows, which golden/ppl.json keeps one by one. Two windows
// say as much as thirty-two: each must agree.
void expect_golden_perplexity(const char* name, const char* seq_len, int windows) {
  const auto model = model_path(name);
  LATHE_SKIP_WITHOUT(model, name);
  const auto golden = shared_path("golden/ppl.json");
  LATHE_SKIP_WITHOUT(golden, "golden/ppl.json");
  const auto text = shared_path("data/wikitext2/wiki.test.raw");
  LATHE_SKIP_WITHOUT(text, "WikiText-2");
  const ProgramResult result =
      run_lathe({"eval", "perplexity", *model, "--data", *text, "--windows",
                 std::to_string(windows), "--seq-len", seq_len, "--dtype", "fp32", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = parse_json(result.out, "eval");
  const Json expected = read_json_file(*golden)["models"][name]["transformers"][seq_len]["nll"];
  double total = 0;
  for (int i = 0; i < windows; ++i) {
    const double nll = expected[static_cast<std::size_t>(i)].get<double>();
    EXPECT_NEAR(json["window_nll"][static_cast<std::size_t>(i)].get<double>(), nll, 1e-4 * nll)
        << "window " << i;
    total += nll;
  }
  const double perplexity = std::exp(total / (windows * (std::atof(seq_len) - 1)));
  EXPECT_NEAR(json["perplexity"].get<double>(), perplexity, 1e-4 * perplexity);
}

TEST(GoldenPerplexity, SmolLm2) { expect_golden_perplexity("smollm2", "512", 2); }
TEST(GoldenPerplexity, SmolLm2LongWindow) { expect_golden_perplexity("smollm2", "2048", 1); }
TEST(GoldenPerplexity, Gemma3) { expect_golden_perplexity("gemma3-270m", "512", 2); }
TEST(GoldenPerplexity, Qwen25Coder) { expect_golden_perplexity("qwen2.5-coder-0.5b", "512", 1); }

// Greedy answers of a batch, with and without drafts, token for token (as text: equal texts of
// greedy runs that differ in a token are no worry here).
TEST(Speculation, AnswersOfARealModelAreThoseOfPlainDecoding) {
  const auto model = model_path("smollm2");
  LATHE_SKIP_WITHOUT(model, "smollm2");
  const auto data = shared_path("data/gsm8k/test.jsonl");
  LATHE_SKIP_WITHOUT(data, "GSM8K");
  const std::string scratch = temporary_directory();
  const auto answers = [&](const std::vector<std::string>& more) {
    const std::string file = scratch + "/items.jsonl";
    std::vector<std::string> arguments = {"eval",    "gsm8k",   *model,         "--data", *data,
                                          "--limit", "8",       "--max-tokens", "48",     "--batch",
                                          "4",       "--items", file,           "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProgramResult result = run_lathe(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return read_file(file);
  };
  const std::string plain = answers({});
  EXPECT_GT(plain.size(), 1000u);
  EXPECT_EQ(answers({"--draft", "self", "--draft-tokens", "4"}), plain);
  EXPECT_EQ(answers({"--draft", "ngram", "--draft-tokens", "6"}), plain);
  EXPECT_EQ(answers({"--draft", "self", "--draft-tokens", "auto"}), plain);
}

}  // namespace
}  // namespace lathe
