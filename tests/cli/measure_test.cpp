// inspect, bench, eval on the tiny model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/json.h"
#include "cli/run_program.h"
#include "cli/tiny_checkpoint.h"
#include "support/shared_data.h"

namespace lathe {
namespace {

std::string sample_text() {
  const std::string file = temporary_directory() + "/text.txt";
  std::string text;
  for (int i = 0; i < 40; ++i) text += "Line " + std::to_string(i * 37) + " of a text.\n";
  write_file_atomically(file, text);
  return file;
}

Json json_of(const std::vector<std::string>& arguments) {
  const ProgramResult result = run_lathe(arguments);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return parse_json(result.out, "output");
}

TEST(Inspect, SaysWhatTheModelIs) {
  const Json json = json_of({"inspect", tiny_checkpoint(), "--json"});
  EXPECT_EQ(json["config"]["model_type"], "qwen2");
  EXPECT_EQ(json["config"]["num_layers"], 3);
  EXPECT_EQ(json["integrity"]["intact"], nullptr);
  EXPECT_EQ(json["chat_template"], true);
  EXPECT_GT(json["weights"]["bf16"].get<int64_t>(), 100000);
  EXPECT_GT(json["machine"]["weight_bytes"].get<int64_t>(), 0);
  EXPECT_EQ(json["machine"]["kv_bytes_per_token"], 2 * 3 * 16 * 2);  // k, v; layers; size; bf16
  EXPECT_FALSE(json_of({"inspect", tiny_checkpoint(), "--json", "--quick"}).contains("machine"));
}

TEST(Eval, RefusesATextThatIsNone) {
  const std::string file = temporary_directory() + "/image.png";
  write_file_atomically(file, "\x89PNG\r\n" + std::string(4000, '\xfe'));
  const ProgramResult result = run_lathe(
      {"eval", "perplexity", tiny_checkpoint(), "--data", file, "--seq-len", "64", "--json"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("image.png: not a text in UTF-8"), std::string::npos) << result.err;
}

TEST(Bench, ReportsCheckedSpeeds) {
  const Json json = json_of(
      {"bench", tiny_checkpoint(), "-p", "32", "-n", "8", "-b", "3", "--threads", "2", "--json"});
  EXPECT_GT(json["prefill_tokens_per_second"].get<double>(), 0);
  EXPECT_GT(json["decode_tokens_per_second"].get<double>(), 0);
  EXPECT_EQ(json["prompt_tokens"], 32);
  EXPECT_EQ(json["batch"], 3);
  EXPECT_EQ(json["threads"], 2);
  EXPECT_EQ(json["checked"], true);
  EXPECT_TRUE(json.contains("weight_bytes"));
  EXPECT_TRUE(json.contains("read_bandwidth_bytes_per_second"));
  const Json decode_only =
      json_of({"bench", tiny_checkpoint(), "-p", "0", "-n", "4", "-r", "1", "--json"});
  EXPECT_EQ(decode_only["prefill_tokens_per_second"], nullptr);
}

// As llama-bench has it: comma lists, a row for every prompt and every number of tokens to decode.
TEST(Bench, TakesLists) {
  const std::vector<std::string> lists = {"bench", "-p", "0,16,8", "-n",
                                          "3",     "-b", "1,2",    "--depth",
                                          "4,9",   "-r", "1",      tiny_checkpoint()};
  std::vector<std::string> as_json = lists;
  as_json.emplace_back("--json");
  const Json results = json_of(as_json);
  ASSERT_TRUE(results.is_array());
  std::vector<std::vector<int64_t>> rows;
  for (const Json& result : results) {
    EXPECT_EQ(result["checked"], true);
    const bool is_prefill = result["prompt_tokens"] != 0;
    EXPECT_EQ(result["generated_tokens"] != 0, !is_prefill);
    EXPECT_GT(result[is_prefill ? "prefill_tokens_per_second" : "decode_tokens_per_second"], 0);
    EXPECT_EQ(result[is_prefill ? "decode_tokens_per_second" : "prefill_tokens_per_second"],
              nullptr);
    rows.push_back({result["batch"].get<int64_t>(), result["prompt_tokens"].get<int64_t>(),
                    result["generated_tokens"].get<int64_t>(),
                    is_prefill ? 0 : result["depth"].get<int64_t>()});
  }
  EXPECT_EQ(rows, (std::vector<std::vector<int64_t>>{{1, 16, 0, 0},
                                                     {1, 8, 0, 0},
                                                     {1, 0, 3, 4},
                                                     {1, 0, 3, 9},
                                                     {2, 16, 0, 0},
                                                     {2, 8, 0, 0},
                                                     {2, 0, 3, 4},
                                                     {2, 0, 3, 9}}));
  const ProgramResult text = run_lathe(lists);
  EXPECT_EQ(text.exit_code, 0) << text.err;
  for (const char* part : {"| batch |", " pp16 |", " pp8 |", " tg3 |"}) {
    EXPECT_NE(text.out.find(part), std::string::npos) << part << "\n" << text.out;
  }
  const auto refused = [](std::vector<std::string> flags, const char* part) {
    flags.insert(flags.begin(), {"bench", tiny_checkpoint()});
    const ProgramResult result = run_lathe(flags);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  };
  refused({"-b", "1,0"}, "-b 0");
  refused({"-p", "0,0", "-n", "0"}, "nothing to measure");
  refused({"-p", "16,x"}, "x");
  refused({"-n", "4,8", "--draft", "ngram"}, "--draft takes one number");
}

TEST(Bench, TakesRandomWeightsOfAnyFormat) {
  for (const char* format : {"bf16", "mxfp4", "nvfp4", "int4", "fp8", "mxfp8"}) {
    SCOPED_TRACE(format);
    const Json json =
        json_of({"bench", golden_path("tiny/gemma3-sliding-global"), "--random-weights", format,
                 "-p", "16", "-n", "4", "-r", "1", "--json"});
    EXPECT_GT(json["decode_tokens_per_second"].get<double>(), 0);
    EXPECT_EQ(json["random_weights"], format);
    EXPECT_EQ(json["checked"], true);  // finite logits, the same in every batch
  }
  const ProgramResult unknown =
      run_lathe({"bench", tiny_checkpoint(), "--random-weights", "fp3", "-n", "1"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_NE(unknown.err.find("fp3"), std::string::npos) << unknown.err;
}

TEST(BenchKernels, ChecksAndTimesEveryCase) {
  const Json json =
      json_of({"bench", "kernels", "--formats", "mxfp4,nvfp4/nvfp4,int8,bf16,mxfp4/f32", "--shapes",
               "96x64,33x128", "--rows", "1,5,130", "--time", "0", "--copies", "0", "--threads",
               "2", "--json"});
  EXPECT_EQ(json["checked"], true);
  EXPECT_EQ(json["device"], "cpu");
  ASSERT_EQ(json["cases"].size(), 5u * 2 * 3);
  EXPECT_EQ(json["cases"][4]["k"], 128);
  EXPECT_EQ(json["cases"][4]["rows"], 5);
  for (const Json& entry : json["cases"]) {
    SCOPED_TRACE(dump_json(entry));
    EXPECT_GT(entry["seconds"].get<double>(), 0);
    EXPECT_GE(entry["seconds"].get<double>(), entry["fastest_seconds"].get<double>());
    EXPECT_GT(entry["weight_bytes"].get<int64_t>(), 0);
    EXPECT_LT(entry["difference_to_reference"].get<double>(), 1e-5);
  }
  const Json reference = json_of({"bench", "kernels", "--formats", "mxfp4", "--shapes", "32x64",
                                  "--rows", "2", "--kernel", "ref", "--time", "0", "--json"});
  EXPECT_EQ(reference["cases"][0]["difference_to_reference"], 0.0);
  EXPECT_NE(reference["cases"][0]["kernel"].get<std::string>().find("ref"), std::string::npos);
}

TEST(BenchKernels, RefusesWhatCannotBe) {
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"--shapes", "96"},
           {"--shapes", "0x64"},
           {"--shapes", "1x99999999999999"},
           {"--formats", "fp3"},
           {"--formats", "mxfp4/fp3"},
           {"--shapes", "96x60"},  // no whole groups
           {"--rows", "0"},
           {"--kernel", "sse"},
           {"--time", "-1"},
           {"--device", "tpu"},
       }) {
    std::vector<std::string> command = {"bench", "kernels", "--time", "0", "--json"};
    if (arguments[0] == "--time") command = {"bench", "kernels"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const ProgramResult result = run_lathe(command);
    EXPECT_EQ(result.exit_code, 2) << arguments[0] << " " << arguments[1] << ": " << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }
  const ProgramResult no_model = run_lathe({"bench"});
  EXPECT_EQ(no_model.exit_code, 2);
  EXPECT_NE(no_model.err.find("MODEL"), std::string::npos) << no_model.err;
}

// score gives every logprob, so perplexity can be computed from outside.
TEST(Eval, PerplexityIsTheMeanOfScores) {
  const std::string text = sample_text();
  const Json json = json_of({"eval", "perplexity", tiny_checkpoint(), "--data", text, "--windows",
                             "3", "--seq-len", "40", "--dtype", "fp32", "--json"});
  EXPECT_EQ(json["windows"], 3);
  EXPECT_EQ(json["scored_tokens"], 3 * 39);
  const std::string content = read_file(text);
  double total = 0;
  for (int window = 0; window < 3; ++window) {
    std::vector<int> ids;
    for (int i = 0; i < 40; ++i)
      ids.push_back(static_cast<unsigned char>(content[window * 40 + i]));
    const Json score = parse_json(
        run_lathe({"score", tiny_checkpoint(), "--dtype", "fp32"}, dump_json({{"ids", ids}}) + "\n")
            .out,
        "score");
    double nll = 0;
    for (const Json& logprob : score["logprobs"]) nll -= logprob.get<double>();
    EXPECT_NEAR(json["window_nll"][static_cast<std::size_t>(window)].get<double>(), nll, 1e-6);
    total += nll;
  }
  EXPECT_NEAR(json["perplexity"].get<double>(), std::exp(total / (3 * 39)), 1e-3);
}

TEST(Eval, AModelAgainstItself) {
  const std::string text = sample_text();
  const Json pair = json_of({"eval", "perplexity", tiny_checkpoint(), tiny_checkpoint(), "--data",
                             text, "--windows", "4", "--seq-len", "32", "--json"});
  EXPECT_EQ(pair["compared"]["paired"]["perplexity_ratio"], 1.0);
  const Json kld = json_of({"eval", "kld", tiny_checkpoint(), "--reference", tiny_checkpoint(),
                            "--data", text, "--windows", "2", "--seq-len", "32", "--json"});
  EXPECT_NEAR(kld["mean_kl"].get<double>(), 0, 1e-6);
  EXPECT_EQ(kld["top1_agreement"], 1.0);
}

// Next to others, a model's divergence is what it is alone.
TEST(Eval, SeveralModelsAgainstOneReference) {
  const std::string text = sample_text();
  std::vector<std::string> models = {tiny_checkpoint()};
  for (const char* format : {"mxfp4", "int4"}) {
    models.push_back(temporary_directory() + "/several-" + format);
    json_of({"quantize", tiny_checkpoint(), models.back(), "--format", format, "--method", "rtn",
             "--hadamard", "0", "--activations", "none", "--json"});
  }
  const auto arguments = [&](std::vector<std::string> measured, bool json = true) {
    measured.insert(measured.begin(), {"eval", "kld"});
    measured.insert(measured.end(), {"--data", text, "--windows", "3", "--seq-len", "32"});
    if (json) measured.push_back("--json");
    return measured;
  };
  std::vector<std::string> all = {tiny_checkpoint()};
  all.insert(all.end(), models.begin(), models.end());
  const Json together = json_of(arguments(all));
  EXPECT_EQ(together["reference"], tiny_checkpoint());
  EXPECT_EQ(together["windows"], 3);
  EXPECT_EQ(together["seq_len"], 32);
  ASSERT_EQ(together["models"].size(), 3u);
  for (std::size_t i = 0; i < models.size(); ++i) {
    SCOPED_TRACE(models[i]);
    Json alone = json_of(arguments({tiny_checkpoint(), models[i]}));
    EXPECT_FALSE(alone.contains("models"));
    EXPECT_EQ(alone["model"], models[i]);
    for (const char* shared : {"reference", "task", "data"}) alone.erase(shared);
    const Json& entry = together["models"][i];
    EXPECT_EQ(entry.size(), alone.size());
    for (const auto& [key, value] : alone.items()) EXPECT_EQ(entry[key], value) << key;
  }
  EXPECT_GT(together["models"][1]["mean_kl"].get<double>(), 0);
  EXPECT_NE(together["models"][1]["mean_kl"], together["models"][2]["mean_kl"]);

  all.erase(all.begin());
  all.insert(all.end(), {"--reference", tiny_checkpoint()});
  EXPECT_EQ(json_of(arguments(all)), together);
  const ProgramResult printed = run_lathe(arguments(all, /*json=*/false));
  EXPECT_EQ(printed.exit_code, 0) << printed.err;
  for (const std::string& model : models) {
    EXPECT_NE(printed.out.find("\n" + model + "  "), std::string::npos) << printed.out;
  }

  for (const std::string& wrong : {tiny_weights_only(), std::string("/no/such/model")}) {
    const ProgramResult refused =
        run_lathe(arguments({tiny_checkpoint(), models[1], wrong, models[2]}));
    EXPECT_EQ(refused.exit_code, 1);
    EXPECT_NE(refused.err.find(wrong), std::string::npos) << refused.err;
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
  }
}

// One window has no spread to tell an error by.
TEST(Eval, OneWindowIsEnough) {
  const std::string text = sample_text();
  for (const char* cache : {"--kv", "--caches"}) {
    const ProgramResult result = run_lathe({"eval", "kld", tiny_checkpoint(), cache, "q4", "--data",
                                            text, "--windows", "1", "--seq-len", "32"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("q4"), std::string::npos) << result.out;
  }
  const Json kld = json_of({"eval", "kld", tiny_checkpoint(), "--kv", "q4", "--data", text,
                            "--windows", "1", "--seq-len", "32", "--json"});
  EXPECT_TRUE(kld["compared"]["perplexity_ratio_95"][0].is_null());
}

TEST(Eval, PasskeyPairsTwoModelsAndCaches) {
  const std::string text = sample_text();
  const std::vector<std::string> options = {"--data",   text, "--lengths", "300", "200",
                                            "--depths", "2",  "--trials",  "2"};
  const auto passkey = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"eval", "passkey"});
    arguments.insert(arguments.end(), options.begin(), options.end());
    return arguments;
  };
  const auto with_json = [](std::vector<std::string> arguments) {
    arguments.emplace_back("--json");
    return json_of(arguments);
  };
  const Json pair = with_json(passkey({tiny_checkpoint(), tiny_checkpoint()}));
  EXPECT_EQ(pair["items"], 8);
  EXPECT_EQ(pair["by_length"][0]["length"], 200);
  EXPECT_EQ(pair["by_depth"][0]["depth"], 0.25);
  EXPECT_EQ(pair["by_depth"][0]["items"], 4);
  EXPECT_EQ(pair["compared"]["model"], tiny_checkpoint());
  EXPECT_EQ(pair["compared"]["tries"], pair["tries"]);
  EXPECT_EQ(pair["compared"]["paired"]["difference"], 0.0);
  EXPECT_EQ(pair["compared"]["paired"]["mcnemar_p"], 1.0);
  const Json caches = with_json(passkey({tiny_checkpoint(), "--caches", "bf16", "q4"}));
  ASSERT_EQ(caches["caches"].size(), 2u);
  EXPECT_EQ(caches["caches"][0]["tries"], pair["tries"]);
  EXPECT_EQ(caches["caches"][1]["kv"]["name"], "q4");
  EXPECT_EQ(caches["caches"][1]["paired"]["difference"], 0.0);
  const ProgramResult printed = run_lathe(passkey({tiny_checkpoint(), tiny_checkpoint()}));
  EXPECT_EQ(printed.exit_code, 0) << printed.err;
  EXPECT_NE(printed.out.find("  depth             25 %     75 %\n"
                             "  length 200         0/2      0/2      0/4\n"),
            std::string::npos)
      << printed.out;
  EXPECT_NE(printed.out.find("exact McNemar p = 1\n"), std::string::npos) << printed.out;
  const ProgramResult refused = run_lathe(passkey({tiny_checkpoint(), tiny_weights_only()}));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_NE(refused.err.find("tokenizer"), std::string::npos) << refused.err;
}

TEST(Eval, TasksRunToTheEnd) {
  const std::string directory = temporary_directory();
  write_file_atomically(directory + "/gsm8k.jsonl",
                        "{\"question\":\"1+1?\",\"answer\":\"#### 2\"}\n"
                        "{\"question\":\"2+2?\",\"answer\":\"#### 4\"}\n");
  const std::string items = directory + "/items.jsonl";
  const Json gsm8k =
      json_of({"eval", "gsm8k", tiny_checkpoint(), tiny_checkpoint(), "--data",
               directory + "/gsm8k.jsonl", "--max-tokens", "4", "--items", items, "--json"});
  EXPECT_EQ(gsm8k["items"], 2);
  EXPECT_EQ(gsm8k["compared"]["paired"]["difference"], 0.0);
  EXPECT_EQ(gsm8k["compared"]["paired"]["mcnemar_p"], 1.0);
  const std::string lines = read_file(items);
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 4);

  write_file_atomically(
      directory + "/ifeval.jsonl",
      dump_json({{"key", 5},
                 {"prompt", "Say it without commas."},
                 {"instruction_id_list", {"punctuation:no_comma", "detectable_format:title"}},
                 {"kwargs", {Json::object(), Json::object()}}}));
  const Json ifeval =
      json_of({"eval", "ifeval", tiny_checkpoint(), tiny_checkpoint(), "--data",
               directory + "/ifeval.jsonl", "--max-tokens", "4", "--items", items, "--json"});
  EXPECT_EQ(ifeval["items"], 1);
  EXPECT_EQ(ifeval["accuracy"], 0.0);  // four tokens are no <<title>>
  EXPECT_EQ(ifeval["ifeval"]["instructions"], 2);
  EXPECT_EQ(ifeval["ifeval"]["prompt_loose"], 0.0);
  EXPECT_FALSE(ifeval.contains("invalid"));
  EXPECT_EQ(ifeval["compared"]["ifeval"], ifeval["ifeval"]);
  EXPECT_EQ(ifeval["compared"]["paired"]["mcnemar_p"], 1.0);
  const std::string answers = read_file(items);
  EXPECT_NE(answers.find("\"id\":\"ifeval/5\""), std::string::npos) << answers;
  EXPECT_NE(answers.find("detectable_format:title=no"), std::string::npos) << answers;
  EXPECT_EQ(std::count(answers.begin(), answers.end(), '\n'), 2);

  write_file_atomically(directory + "/none.jsonl", "\n");
  const ProgramResult none = run_lathe(
      {"eval", "ifeval", tiny_checkpoint(), "--data", directory + "/none.jsonl", "--json"});
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_NE(none.err.find("none.jsonl: holds no items"), std::string::npos) << none.err;

  write_file_atomically(directory + "/humaneval.jsonl",
                        dump_json({{"task_id", "toy/0"},
                                   {"prompt", "def one():\n"},
                                   {"entry_point", "one"},
                                   {"canonical_solution", "    return 1\n"},
                                   {"test", "def check(f):\n    assert f() == 1\n"}}));
  const ProgramResult result =
      run_lathe({"eval", "humaneval", tiny_checkpoint(), "--data", directory + "/humaneval.jsonl",
                 "--max-tokens", "4", "--json"});
  if (result.err.find("sandbox") != std::string::npos) GTEST_SKIP() << result.err;
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json humaneval = parse_json(result.out, "humaneval");
  EXPECT_EQ(humaneval["items"], 1);
  EXPECT_EQ(humaneval["pass_at_1"], 0.0);  // random weights do not write Python
}

TEST(Inspect, ForecastsGpusAndSaysWhatItRestsOn) {
  const ProgramResult result =
      run_lathe({"inspect", "70b", "--gpus", "2", "--gpu", "h100", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = parse_json(result.out, "output");
  const Json one = parse_json(
      run_lathe({"inspect", "70b", "--gpus", "1", "--gpu", "h100", "--json"}).out, "output");
  ASSERT_EQ(json["weights"].size(), 4u);
  EXPECT_EQ(one["weights"][0]["format"], "bf16");
  EXPECT_EQ(one["weights"][0]["fits"], false);  // 141 GB
  EXPECT_EQ(json["weights"][0]["fits"], true);
  const Json& mxfp4 = json["weights"][3];
  EXPECT_EQ(mxfp4["weight_bytes_per_gpu"].get<double>() * 2,
            one["weights"][3]["weight_bytes_per_gpu"].get<double>());
  EXPECT_GT(mxfp4["decode"][1]["all_reduce_seconds"].get<double>(), 0);
  for (const Json& figure : json["figures"]) {
    EXPECT_TRUE(figure["basis"] == "measured" || figure["basis"] == "assumed");
    EXPECT_FALSE(figure["source"].get<std::string>().empty());
  }
  const ProgramResult model = run_lathe({"inspect", tiny_checkpoint(), "--gpus", "1"});
  EXPECT_EQ(model.exit_code, 0) << model.err;
  EXPECT_NE(model.out.find("assumed"), std::string::npos);
  for (const std::vector<std::string>& wrong :
       {std::vector<std::string>{"inspect", "70b", "--gpus", "3"},
        {"inspect", "70b", "--gpus", "0"},
        {"inspect", "70b", "--gpus", "2", "--gpu", "b200"},
        {"inspect", "70b", "--gpus", "2", "--context", "0"},
        {"inspect", "70b", "--gpu", "h100"}}) {
    const ProgramResult refused = run_lathe(wrong);
    EXPECT_EQ(refused.exit_code, 2) << wrong.back();
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
  }
}

}  // namespace
}  // namespace lathe
