// tokenize, render, score: a line in, a line out.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/atomic_file.h"
#include "base/json.h"
#include "cli/run_program.h"
#include "cli/tiny_checkpoint.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

TEST(Tokenize, PlainAndSpecial) {
  const std::string input = "\"Hi <|im_end|>\"\n\n\"\"\n\"\\u00e9\"\n";
  EXPECT_EQ(run_lathe({"tokenize", tiny_checkpoint()}, input).out,
            "[72,105,32,60,124,105,109,95,101,110,100,124,62]\n[]\n[195,169]\n");
  EXPECT_EQ(run_lathe({"tokenize", tiny_checkpoint(), "--special"}, input).out,
            "[72,105,32,257]\n[]\n[195,169]\n");
  EXPECT_EQ(run_lathe({"tokenize", tiny_checkpoint(), "--decode"}, "[72,105,257]\n").out,
            "\"Hi<|im_end|>\"\n");
}

TEST(Tokenize, BadLinesAreAnsweredAndCounted) {
  const ProgramResult result =
      run_lathe({"tokenize", tiny_checkpoint()}, "\"a\"\n17\n{\n\"\xff\"\n\"b\"\n");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.err.find("3 of 5 lines"), std::string::npos) << result.err;
  EXPECT_EQ(result.out.rfind("[97]\n{\"error\":", 0), 0u) << result.out;
  EXPECT_EQ(result.out.substr(result.out.size() - 5), "[98]\n");
  EXPECT_EQ(run_lathe({"tokenize", tiny_checkpoint(), "--decode"}, "[100000]\n").exit_code, 1);
  EXPECT_EQ(run_lathe({"tokenize", tiny_checkpoint(), "--decode"}, "[1.5]\n").exit_code, 1);
}

TEST(Render, Conversations) {
  const std::string messages = R"({"messages":[{"role":"user","content":"Hi"}])";
  EXPECT_EQ(run_lathe({"render", tiny_checkpoint()}, messages + "}\n").out,
            "\"<|im_start|>user\\nHi<|im_end|>\\n\"\n");
  EXPECT_EQ(run_lathe({"render", tiny_checkpoint()},
                      messages + ",\"tools\":null,\"add_generation_prompt\":true}\n")
                .out,
            "\"<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n\"\n");
}

TEST(Render, RefusalsAreAnswered) {
  const ProgramResult result =
      run_lathe({"render", tiny_checkpoint()},
                "{\"messages\":[{\"role\":\"nobody\",\"content\":\"Hi\"}]}\n{}\n[]\n"
                "{\"messages\":[],\"tools\":3}\n{\"messages\":[],\"add_generation_prompt\":1}\n");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.out.find("no such role"), std::string::npos) << result.out;
  EXPECT_NE(result.err.find("5 of 5"), std::string::npos) << result.err;
}

// The header's 8-byte length, the JSON, then the tensors; enough to read one small array.
std::vector<double> golden_values(const std::string& name, const char* tensor, bool integers) {
  const std::string file = read_file(golden_path(name));
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  const Json header = parse_json(file.substr(8, length), name);
  const auto begin = header[tensor]["data_offsets"][0].get<std::size_t>();
  const auto end = header[tensor]["data_offsets"][1].get<std::size_t>();
  const char* data = file.data() + 8 + length;
  std::vector<double> values;
  for (std::size_t at = begin; at < end; at += integers ? 8 : 4) {
    int64_t integer = 0;
    float number = 0;
    std::memcpy(integers ? static_cast<void*>(&integer) : &number, data + at, integers ? 8 : 4);
    values.push_back(integers ? static_cast<double>(integer) : static_cast<double>(number));
  }
  return values;
}

TEST(Score, AgreesWithTheReferenceImplementation) {
  const std::string golden = "tiny/qwen2-tied-mqa.expected.safetensors";
  const std::vector<double> ids = golden_values(golden, "input_ids", true);
  const std::vector<double> logits = golden_values(golden, "logits", false);
  const std::size_t vocab_size = logits.size() / ids.size();
  const std::vector<int> integers(ids.begin(), ids.end());
  const ProgramResult result = run_lathe({"score", tiny_checkpoint(), "--dtype", "fp32", "--gaps"},
                                         dump_json({{"ids", integers}}) + "\n");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = parse_json(result.out, "score");
  EXPECT_EQ(json["ids"], Json(integers));
  ASSERT_EQ(json["gaps"].size(), ids.size() - 1);
  ASSERT_EQ(json["logprobs"].size(), ids.size() - 1);
  // fp32 against fp64 differs by 1.3e-5 at most on this model (its golden notes).
  constexpr double kTolerance = 1e-4;
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    double sum = 0;
    for (std::size_t id = 0; id < vocab_size; ++id) sum += std::exp(logits[i * vocab_size + id]);
    const double expected =
        logits[i * vocab_size + static_cast<std::size_t>(integers[i + 1])] - std::log(sum);
    EXPECT_NEAR(json["logprobs"][i].get<double>(), expected, kTolerance) << i;
    const double* row = logits.data() + i * vocab_size;
    const double gap =
        *std::max_element(row, row + vocab_size) - row[static_cast<std::size_t>(integers[i + 1])];
    EXPECT_NEAR(json["gaps"][i].get<double>(), gap, kTolerance) << i;
  }
  ASSERT_EQ(json["top"].size(), 32u);
  const double* last = logits.data() + (ids.size() - 1) * vocab_size;
  for (std::size_t i = 0; i < 32; ++i) {
    const double logit = json["top"][i][1].get<double>();
    EXPECT_NEAR(logit, last[json["top"][i][0].get<std::size_t>()], kTolerance);
    if (i > 0) {
      EXPECT_LE(logit, json["top"][i - 1][1].get<double>());
    }
  }
  EXPECT_NEAR(json["top"][0][1].get<double>(), *std::max_element(last, last + vocab_size),
              kTolerance);
}

TEST(Score, TextAndOneToken) {
  const ProgramResult result = run_lathe({"score", tiny_checkpoint()},
                                         "{\"text\":\"Hi\"}\n{\"ids\":[72,105]}\n{\"ids\":[1]}\n");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::size_t first = result.out.find('\n');
  const std::size_t second = result.out.find('\n', first + 1);
  EXPECT_EQ(result.out.substr(0, first), result.out.substr(first + 1, second - first - 1));
  const Json one = parse_json(result.out.substr(second + 1), "score");
  EXPECT_EQ(one["logprobs"], Json::array());
}

TEST(Score, BadLines) {
  const ProgramResult result = run_lathe(
      {"score", tiny_checkpoint()},
      "{\"ids\":[]}\n{\"ids\":[320]}\n{\"ids\":[-1]}\n{\"ids\":\"x\"}\n{\"text\":\"\"}\n{}\n" +
          dump_json({{"ids", std::vector<int>(1025, 1)}}) + "\n");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.err.find("7 of 7"), std::string::npos) << result.err << result.out;
}

}  // namespace
}  // namespace lathe
