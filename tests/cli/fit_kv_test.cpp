// fit-kv on the tiny model, and what reads its codec.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/json.h"
#include "cli/run_program.h"
#include "cli/tiny_checkpoint.h"

namespace lathe {
namespace {

std::string long_text() {
  const std::string file = temporary_directory() + "/fit_kv_text.txt";
  std::string text;
  for (int i = 0; i < 400; ++i) {
    text += "Line " + std::to_string(i * 37 % 101) + " of a text that goes on.\n";
  }
  write_file_atomically(file, text);
  return file;
}

Json json_of(std::vector<std::string> arguments) {
  arguments.emplace_back("--json");
  const ProgramResult result = run_lathe(arguments);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return result.exit_code == 0 ? parse_json(result.out, "output") : Json::object();
}

// One line that has `part`, the exit code of a wrong command line or of a failure.
void expect_error(const std::vector<std::string>& arguments, int exit_code,
                  const std::string& part) {
  const ProgramResult result = run_lathe(arguments);
  EXPECT_EQ(result.exit_code, exit_code) << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
}

TEST(FitKv, PutsACodecIntoTheModelThatEvalReads) {
  const std::string out = temporary_directory() + "/fitted";
  ASSERT_EQ(run_lathe({"quantize", tiny_checkpoint(), out, "--method", "rtn"}).exit_code, 0);
  const std::string text = long_text();
  const std::vector<std::string> fit = {"fit-kv",    out,   "--calibration", text, "--samples", "8",
                                        "--seq-len", "128", "--window",      "16"};
  const Json fitted = json_of(fit);
  EXPECT_EQ(fitted["layers"].size(), 3u);
  EXPECT_EQ(fitted["train_tokens"], 7 * 124);
  EXPECT_LT(fitted["layers"][2]["keys"]["heldout_relative_mse"].get<double>(), 1);
  EXPECT_GT(fitted["bits_per_value"].get<double>(), 2);
  EXPECT_TRUE(std::filesystem::exists(out + "/kv_codec.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(out + "/kv_codec.safetensors.working"));
  // The directory is still whole, and notices when the codec is damaged.
  EXPECT_EQ(json_of({"inspect", out, "--quick"})["integrity"]["intact"], true);
  EXPECT_EQ(run_lathe({"selftest", out}).exit_code, 0);

  const std::vector<std::string> window = {"--data", text, "--windows", "2", "--seq-len", "512"};
  const auto with_window = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), window.begin(), window.end());
    return arguments;
  };
  const Json exact = json_of(with_window({"eval", "perplexity", out}));
  EXPECT_EQ(exact["kv"]["bits_per_value"], 16.0);
  const Json coded = json_of(with_window({"eval", "perplexity", out, "--kv", "aqua2"}));
  EXPECT_NE(coded["perplexity"], exact["perplexity"]);
  EXPECT_EQ(coded["kv"]["bits_per_value"], fitted["bits_per_value"]);
  // 512 tokens: 3 chunks of 128 are codes; 4 blocks of 32 tokens and the one that keeps the sinks
  // are bf16, which on a CPU have their keys before RoPE too.
  EXPECT_NEAR(coded["kv"]["sequence_bits_per_value"].get<double>(),
              (384 * fitted["bits_per_value"].get<double>() + 160 * 24) / 512, 1e-9);
  EXPECT_EQ(json_of(with_window(
                {"eval", "perplexity", out, "--kv", "aqua2", "--chunk", "8"}))["perplexity"],
            coded["perplexity"]);
  const Json kld = json_of(with_window({"eval", "kld", out, "--kv", "aqua2"}));
  EXPECT_GT(kld["mean_kl"].get<double>(), 0);
  EXPECT_EQ(kld["perplexity"], coded["perplexity"]);
  EXPECT_EQ(kld["reference_perplexity"], exact["perplexity"]);
  const Json passkey = json_of({"eval", "passkey", out, "--kv", "aqua2", "--data", text,
                                "--lengths", "300", "500", "--depths", "2"});
  EXPECT_EQ(passkey["items"], 4);
  EXPECT_EQ(passkey["tries"][3]["length"], 500);
  EXPECT_EQ(passkey["by_depth"][1]["depth"], 0.75);
  EXPECT_EQ(passkey["by_depth"][1]["items"], 2);

  // Answers and scores with the same cache.
  const std::string questions = temporary_directory() + "/questions.jsonl";
  std::string line = "{\"question\":\"" + std::string(400, 'x') + "?\",\"answer\":\"#### 2\"}\n";
  write_file_atomically(questions, line + line);
  const std::vector<std::string> gsm8k = {
      "eval", "gsm8k", out, "--data", questions, "--limit", "2", "--max-tokens", "8"};
  const auto with = [](std::vector<std::string> arguments, std::vector<std::string> more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  EXPECT_EQ(json_of(with(gsm8k, {"--kv", "aqua2"}))["kv"]["bits_per_value"],
            fitted["bits_per_value"]);
  const std::string answers = temporary_directory() + "/cache_answers.jsonl";
  const Json tasks = json_of(with(gsm8k, {"--caches", "bf16", "aqua2", "--items", answers}));
  ASSERT_EQ(tasks["caches"].size(), 2u);
  EXPECT_FALSE(tasks["caches"][0].contains("paired"));
  EXPECT_EQ(tasks["caches"][1]["cache"], "aqua2");
  EXPECT_EQ(tasks["caches"][1]["items"], 2);
  EXPECT_EQ(tasks["caches"][1]["paired"]["mcnemar_p"], 1.0);
  EXPECT_EQ(tasks["caches"][1]["kv"]["bits_per_value"], fitted["bits_per_value"]);
  EXPECT_NE(read_file(answers).find("with cache aqua2"), std::string::npos);
  const ProgramResult table = run_lathe(with(gsm8k, {"--caches", "bf16", "aqua2"}));
  EXPECT_NE(table.out.find("\nbf16  16.000      0/2     0.00 %\naqua2"), std::string::npos)
      << table.out;
  expect_error(with(gsm8k, {"--caches", "bf16", "--draft", "ngram", "--judge", "kl",
                            "--judge-threshold", "1"}),
               2, "without --caches");
  const std::string ids = "{\"text\": \"" + std::string(400, 'y') + "\"}\n";
  const auto last_score = [&](const std::string& kv) {
    const ProgramResult result = run_lathe({"score", out, "--kv", kv}, ids);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return parse_json(result.out, "score")["logprobs"].back().get<double>();
  };
  EXPECT_NE(last_score("aqua2"), last_score("bf16"));
  const Json draft =
      json_of({"bench", out, "--draft", "ngram", "--kv", "aqua2", "-n", "8", "-r", "1"});
  EXPECT_EQ(draft["kv"], "aqua2");
  EXPECT_EQ(draft["checked"], false);
  EXPECT_GT(json_of({"inspect", out, "--kv", "aqua2"})["machine"]["kv_bytes_per_token"], 0);

  expect_error({"eval", "perplexity", out, "--kv", "aqua3", "--data", text}, 2, "aqua2");
  expect_error({"generate", out, "Hi", "--kv", "bf16", "--kv-codec", "/nowhere"}, 1, "/nowhere");
  std::filesystem::resize_file(out + "/kv_codec.safetensors", 100);
  EXPECT_EQ(run_lathe({"inspect", out}).exit_code, 1);
  expect_error({"eval", "perplexity", out, "--kv", "aqua2", "--data", text}, 1, "kv_codec");
  // Fitted again, it is whole again.
  json_of(fit);
  EXPECT_EQ(json_of({"inspect", out, "--quick"})["integrity"]["intact"], true);
}

TEST(FitKv, WritesWhereItIsToldAndRefusesOtherModels) {
  const std::string codec = temporary_directory() + "/codec.safetensors";
  const std::string text = long_text();
  const Json fitted =
      json_of({"fit-kv", tiny_checkpoint(), "-o", codec, "--calibration", text, "--samples", "8",
               "--seq-len", "64", "--method", "higgs", "--bits", "3", "--no-mean"});
  EXPECT_EQ(fitted["variant"], "none");
  EXPECT_EQ(fitted["predictor_bytes"], 0);
  const Json coded = json_of({"eval", "perplexity", tiny_checkpoint(), "--kv-codec", codec,
                              "--data", text, "--windows", "1", "--seq-len", "512"});
  EXPECT_EQ(coded["kv"]["name"], "higgs3");
  const std::string other = temporary_directory() + "/other_model";
  ASSERT_EQ(run_lathe({"quantize", tiny_checkpoint(), other, "--method", "rtn"}).exit_code, 0);
  expect_error({"eval", "perplexity", other, "--kv-codec", codec, "--data", text}, 2, "fit-kv");
}

TEST(FitKv, SweepsCodecsThatAreMeasuredTogether) {
  const std::string directory = temporary_directory();
  const std::string text = long_text();
  const std::string aqua = directory + "/a.safetensors", star = directory + "/b.safetensors";
  const std::string sweep = directory + "/sweep";
  write_file_atomically(sweep, "# two codecs\n\n" + aqua + "\n  " + star +
                                   " --variant star --group-layers 2 --bits 3 --ridge 0.5 "
                                   "--chunk-tokens 32 --predictor-dtype f32\r\n");
  const std::vector<std::string> fit = {
      "fit-kv", tiny_checkpoint(), "--calibration", text,       "--samples", "8", "--seq-len",
      "64",     "--sweep",         sweep,           "--window", "16"};
  const Json fitted = json_of(fit);
  ASSERT_EQ(fitted["codecs"].size(), 2u);
  EXPECT_EQ(fitted["codecs"][0]["codec"], aqua);
  EXPECT_EQ(fitted["codecs"][0]["bits"], 2);
  EXPECT_EQ(fitted["codecs"][1]["variant"], "star");
  EXPECT_EQ(fitted["codecs"][1]["bits"], 3);
  EXPECT_EQ(fitted["codecs"][1]["window"], 16);
  EXPECT_EQ(fitted["codecs"][0]["chunk"], 128);
  EXPECT_EQ(fitted["codecs"][1]["chunk"], 32);
  const std::string other = directory + "/c.safetensors";
  write_file_atomically(sweep, other + " --variant star --group-layers 2 --bits 3\n");
  const Json damped_less = json_of(fit);
  const Json& star_json = fitted["codecs"][1];
  EXPECT_EQ(star_json["predictor_bytes"].get<int64_t>(),
            2 * damped_less["codecs"][0]["predictor_bytes"].get<int64_t>());  // f32
  EXPECT_GT(star_json["layers"][1]["keys"]["train_relative_mse"].get<double>(),
            damped_less["codecs"][0]["layers"][1]["keys"]["train_relative_mse"].get<double>());

  const std::vector<std::string> data = {"--data", text, "--windows", "2", "--seq-len", "256"};
  const auto measure = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"eval", "kld", tiny_checkpoint()});
    arguments.insert(arguments.end(), data.begin(), data.end());
    return json_of(arguments);
  };
  const Json together = measure({"--caches", "q4", aqua, star});
  ASSERT_EQ(together["caches"].size(), 3u);
  const std::vector<std::vector<std::string>> alone = {
      {"--kv", "q4"}, {"--kv-codec", aqua}, {"--kv-codec", star}};
  for (std::size_t i = 0; i < alone.size(); ++i) {
    SCOPED_TRACE(i);
    const Json one = measure(alone[i]);
    EXPECT_GT(one["mean_kl"].get<double>(), 0);
    for (const char* key : {"mean_kl", "perplexity", "reference_perplexity", "kv", "compared"}) {
      EXPECT_EQ(together["caches"][i][key], one[key]) << key;
    }
  }

  const auto refuse = [&](const std::string& lines, const std::string& part) {
    write_file_atomically(sweep, lines);
    expect_error(fit, 2, part);
  };
  refuse("# nothing\n", "no codec");
  refuse(aqua + "\n" + aqua + " --bits 3\n", ":2: " + aqua);
  refuse(aqua + " --bits 9\n", aqua + ": --bits 9");
  refuse(aqua + " --variant new\n", "sweep:1");
  refuse(aqua + " --samples 9\n", "sweep:1");
  refuse("--bits 2\n", "sweep:1");
  expect_error({"eval", "kld", tiny_checkpoint(), "--data", text, "--caches", "nosuch"}, 2,
               "nosuch");
  expect_error({"eval", "kld", tiny_checkpoint(), "--data", text, "--caches", "q4", "--kv", "q4"},
               2, "--caches");
  expect_error({"eval", "perplexity", tiny_checkpoint(), "--data", text, "--caches", "q4"}, 2,
               "--caches");
}

TEST(FitKv, SaysWhatItWillTake) {
  const Json plan = json_of({"fit-kv", tiny_checkpoint(), "--plan"});
  EXPECT_GT(plan["memory_bytes"].get<double>(), 1e6);
  EXPECT_GT(plan["seconds"].get<double>(), 0);
  EXPECT_FALSE(std::filesystem::exists(tiny_checkpoint() + "/kv_codec.safetensors"));
}

TEST(FitKv, WrongFlagsAreRefusedBeforeTheWork) {
  const std::string model = tiny_checkpoint();
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"--bits", "7"}, "7"},
      {{"--method", "magic"}, "magic"},
      {{"--variant", "round"}, "round"},
      {{"--key-inputs", "queries"}, "queries"},
      {{"--value-inputs", "queries"}, "queries"},
      {{"--value-inputs", "latent", "--variant", "dense"}, "--value-inputs latent"},
      {{"--scale", "f64"}, "f64"},
      {{"--samples", "1"}, "--samples 1"},
      {{"--seq-len", "1000000000000"}, "1000000000000"},
      {{"--sinks", "-1"}, "-1"},
      {{"--sinks", "4097"}, "4097"},
      {{"--chunk-tokens", "48"}, "--chunk-tokens 48"},
      {{"--chunk-tokens", "0"}, "--chunk-tokens 0"},
      {{"--ridge", "0"}, "--ridge 0"},
      {{"--ridge", "nan"}, "--ridge nan"},
      {{"--predictor-dtype", "f16"}, "--predictor-dtype f16"},
      {{"--latent-bits", "5"}, "5"},
      {{"--grid-dim", "3"}, "3"},
      {{"--device", "cuda"}, "cuda"},
  };
  for (const auto& [flags, part] : cases) {
    SCOPED_TRACE(part);
    std::vector<std::string> arguments = {"fit-kv", model, "-o", temporary_directory() + "/no"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    expect_error(arguments, 2, part);
  }
  expect_error({"fit-kv", model, "-o", "/nowhere/at/all", "--samples", "8", "--seq-len", "64"}, 1,
               "/nowhere/at/all");
}

}  // namespace
}  // namespace lathe
