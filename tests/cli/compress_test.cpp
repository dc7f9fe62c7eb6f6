// quantize and compress on the tiny model, down to the files.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/json.h"
#include "cli/run_program.h"
#include "cli/tiny_checkpoint.h"

namespace lathe {
namespace {

TEST(Quantize, WritesAModelThatRuns) {
  const std::string out = temporary_directory() + "/out";
  const ProgramResult result =
      run_lathe({"quantize", tiny_checkpoint(), out, "--method", "rtn", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = parse_json(result.out, "quantize");
  EXPECT_EQ(json["linears"].size(), 3u * 7);
  for (const char* name :
       {"config.json", "tokenizer.json", "tokenizer_config.json", "lathe.json"}) {
    EXPECT_TRUE(std::filesystem::exists(out + "/" + name)) << name;
  }
  const Json inspected =
      parse_json(run_lathe({"inspect", out, "--quick", "--json"}).out, "inspect");
  EXPECT_EQ(inspected["integrity"]["intact"], true);
  EXPECT_TRUE(inspected["weights"].contains("mxfp4"));
  EXPECT_EQ(run_lathe({"generate", out, "Hi", "--max-tokens", "3"}).exit_code, 0);
  // Its logits are kept, and are those that selftest computes.
  EXPECT_EQ(json["fingerprint"], true);
  const Json selftest = parse_json(run_lathe({"selftest", out, "--json"}).out, "selftest");
  EXPECT_EQ(selftest["fingerprint"]["max_difference"], 0.0);
  // A second run does not write over it; one that was to be resumed has nothing left to do.
  EXPECT_NE(run_lathe({"quantize", tiny_checkpoint(), out, "--method", "rtn"}).exit_code, 0);
  EXPECT_NE(run_lathe({"quantize", tiny_checkpoint(), out, "--resume"}).exit_code, 0);  // mr-gptq
  const std::string before = read_file(out + "/lathe.json");
  const ProgramResult again =
      run_lathe({"quantize", tiny_checkpoint(), out, "--method", "rtn", "--resume", "--json"});
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_EQ(parse_json(again.out, "quantize")["finished_before"], true);
  EXPECT_EQ(parse_json(again.out, "quantize")["linears"], json["linears"]);
  EXPECT_EQ(read_file(out + "/lathe.json"), before);
  // Killed between the manifest and the fingerprint, with the journal still there.
  Json manifest = parse_json(before, "lathe.json");
  manifest.erase("logits_fingerprint");
  write_file_atomically(out + "/lathe.json", dump_json(manifest, 2) + "\n");
  write_file_atomically(out + "/quantize.journal.json", "{}");
  ASSERT_EQ(
      run_lathe({"quantize", tiny_checkpoint(), out, "--method", "rtn", "--resume"}).exit_code, 0);
  EXPECT_EQ(read_file(out + "/lathe.json"), before);
  EXPECT_FALSE(std::filesystem::exists(out + "/quantize.journal.json"));

  write_file_atomically(out + "/tokenizer.json", "{}");
  const ProgramResult damaged = run_lathe({"inspect", out});
  EXPECT_EQ(damaged.exit_code, 1);
  EXPECT_NE(damaged.err.find("tokenizer.json"), std::string::npos) << damaged.err;
}

// The tiny model with the first value of one tensor replaced.
std::string changed_model(const std::string& tensor, float value) {
  const std::string directory = temporary_directory() + "/changed";
  std::filesystem::remove_all(directory);
  std::filesystem::copy(tiny_checkpoint(), directory);
  std::string bytes = read_file(directory + "/model.safetensors");
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  const Json entry = parse_json(bytes.substr(8, header_size), "header")[tensor];
  EXPECT_EQ(entry["dtype"], "BF16");  // the upper half of a float
  std::memcpy(bytes.data() + 8 + header_size + entry["data_offsets"][0].get<std::size_t>(),
              reinterpret_cast<const char*>(&value) + 2, 2);
  write_file_atomically(directory + "/model.safetensors", bytes);
  return directory;
}

// Whichever tensor it is, and whether or not anything is computed with it.
TEST(Quantize, NamesTheTensorThatIsNotFinite) {
  for (const char* tensor :
       {"model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"}) {
    for (const char* method : {"rtn", "mr-gptq"}) {
      SCOPED_TRACE(std::string(tensor) + " " + method);
      const std::string out = temporary_directory() + "/" + tensor + method;
      const ProgramResult result =
          run_lathe({"quantize", changed_model(tensor, std::nanf("")), out, "--method", method,
                     "--samples", "2", "--seq-len", "32"});
      EXPECT_EQ(result.exit_code, 1);
      EXPECT_NE(result.err.find("tensor '" + std::string(tensor) + "': element 0 of"),
                std::string::npos)
          << result.err;
      EXPECT_FALSE(std::filesystem::exists(out + "/lathe.json"));
    }
  }
}

TEST(Quantize, WarnsOfLayersThatFellBack) {
  // One input channel of the first layer is always zero.
  const std::string model = changed_model("model.layers.0.input_layernorm.weight", 0);
  const std::vector<std::string> flags = {"--hadamard", "0", "--samples", "4", "--seq-len", "64"};
  const auto quantized = [&](const std::string& from, const std::string& out) {
    std::vector<std::string> command = {"quantize", from, temporary_directory() + "/" + out};
    command.insert(command.end(), flags.begin(), flags.end());
    return run_lathe(command);
  };
  const ProgramResult result = quantized(model, "fell-back");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("3 of 21 linear layers with input channels that were always zero"),
            std::string::npos)
      << result.err;
  EXPECT_EQ(quantized(tiny_checkpoint(), "as-promised").err.find("linear layers"),
            std::string::npos);
}

// Who has a rotated model, and who has not, is told which engines read it.
TEST(Quantize, SaysWhoReadsARotatedModel) {
  for (const char* hadamard : {"0", "32"}) {
    const std::string out = temporary_directory() + "/rotated" + hadamard;
    const std::vector<std::string> command = {"quantize", tiny_checkpoint(), out,     "--method",
                                              "rtn",      "--hadamard",      hadamard};
    const ProgramResult result = run_lathe(command);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const bool is_rotated = hadamard != std::string("0");
    EXPECT_EQ(result.out.find("--hadamard 0") != std::string::npos, is_rotated) << result.out;
    EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), is_rotated ? 2 : 1);
  }
}

// Formats and rules that no file can hold are measured through the weights that they stand for.
TEST(Quantize, EmulatesWhatCannotBeStored) {
  for (const auto& [format, rule] : {std::pair<std::string, std::string>{"mxfp4-fitted", ""},
                                     {"nvint4", ""},
                                     {"mxint4", ""},
                                     {"mxfp4", "paper_eq1"}}) {
    SCOPED_TRACE(format + " " + rule);
    const std::string out = temporary_directory() + "/emulated-" + format;
    std::vector<std::string> command = {"quantize", tiny_checkpoint(), out,   "--method",
                                        "rtn",      "--format",        format};
    if (!rule.empty()) command.insert(command.end(), {"--scale-rule", rule});
    const ProgramResult refused = run_lathe(command);
    EXPECT_EQ(refused.exit_code, 1);
    EXPECT_NE(refused.err.find("--emulate"), std::string::npos) << refused.err;
    EXPECT_FALSE(std::filesystem::exists(out));

    command.push_back("--emulate");
    std::vector<std::string> with_activations = command;
    with_activations.insert(with_activations.end(), {"--activations", "int8"});
    EXPECT_EQ(run_lathe(with_activations).exit_code, 1);
    const ProgramResult result = run_lathe(command);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("emulated"), std::string::npos) << result.out;
    const Json inspected =
        parse_json(run_lathe({"inspect", out, "--quick", "--json"}).out, "inspect");
    EXPECT_EQ(inspected["emulates"], format + " weights, stored as fp32");
    EXPECT_FALSE(read_json_file(out + "/config.json").contains("quantization_config"));
    EXPECT_EQ(run_lathe({"selftest", out}).exit_code, 0);
  }
  EXPECT_EQ(run_lathe({"quantize", tiny_checkpoint(), temporary_directory() + "/x", "--format",
                       "nvfp4", "--scale-rule", "ceil"})
                .exit_code,
            2);
}

// Each reaches the library: the manifest's settings say what was done.
TEST(Quantize, AblationsAreSettings) {
  struct Case {
    std::vector<std::string> flags;
    std::vector<std::string> settings;
  };
  int number = 0;
  for (const Case& c :
       {Case{{"--column-order", "natural", "--damping", "0.1", "--sequential", "--sweeps", "2",
              "--min-expert-tokens", "7"},
             {"order=natural", "damping=0.1", "sequential=1", "sweeps=2", "min_expert_tokens=7"}},
        Case{{"--column-weights", "diagonal", "--refinements", "1", "--error-norm", "2.4"},
             {"column_weights=diagonal", "refinements=1", "norm=2.4", "order=activation"}},
        Case{{"--damping", "0.01", "0.1", "--scale-search", "paper_grid"},
             {"damping=0.01,0.1", "scales=paper_grid"}},
        Case{{"--method", "smoothquant", "--smooth-alpha", "0.5"}, {"smooth_alpha=0.5"}},
        Case{{"--method", "awq", "--awq-grid", "3"}, {"awq_grid=3"}}}) {
    SCOPED_TRACE(number);
    const std::string out = temporary_directory() + "/ablation" + std::to_string(number++);
    std::vector<std::string> command = {"quantize", tiny_checkpoint(), out, "--samples",
                                        "4",        "--seq-len",       "32"};
    command.insert(command.end(), c.flags.begin(), c.flags.end());
    const ProgramResult result = run_lathe(command);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const std::string settings =
        " " + read_json_file(out + "/lathe.json")["settings"]["quantize"].get<std::string>() + " ";
    for (const std::string& setting : c.settings) {
      EXPECT_NE(settings.find(" " + setting + " "), std::string::npos) << setting << settings;
    }
  }
}

TEST(Quantize, RefusesAblationsThatWouldDoNothing) {
  const std::string out = temporary_directory() + "/refused";
  for (const auto& [flags, message] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"--method", "rtn", "--damping", "0.1"}, "--damping goes with"},
           {{"--method", "awq", "--sequential"}, "--sequential goes with"},
           {{"--method", "rtn", "--column-order", "natural"}, "--column-order goes with"},
           {{"--method", "rtn", "--min-expert-tokens", "1"}, "--min-expert-tokens goes with"},
           {{"--method", "quarot", "--column-weights", "pivot"}, "--column-weights goes with"},
           {{"--method", "smoothquant", "--sweeps", "1"}, "--sweeps goes with"},
           {{"--smooth-alpha", "0.5"}, "--smooth-alpha goes with"},
           {{"--awq-grid", "5"}, "--awq-grid goes with"},
           {{"--method", "gptq", "--refinements", "1"}, "--refinements goes with"},
           {{"--scale-search", "absmax", "--error-norm", "3"}, "--error-norm goes with"},
           {{"--column-order", "random"}, "choose activation or natural"},
           {{"--scale-search", "mse"}, "absmax, paper_grid, exhaustive"},
           {{"--column-weights", "all"}, "none, diagonal, pivot"},
           {{"--damping", "0"}, "damping 0 is not a positive number"},
           {{"--error-norm", "0.5"}, "error norm 0.5"},
           {{"--sweeps", "-1"}, "--sweeps -1: at least 0"},
           {{"--method", "awq", "--awq-grid", "0"}, "AWQ grid 0"}}) {
    SCOPED_TRACE(message);
    std::vector<std::string> command = {"quantize", tiny_checkpoint(), out};
    command.insert(command.end(), flags.begin(), flags.end());
    const ProgramResult result = run_lathe(command);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_NE(result.err.find(message), std::string::npos) << result.err;
    EXPECT_FALSE(std::filesystem::exists(out));
  }
}

TEST(Quantize, PlansWithoutWriting) {
  const std::string out = temporary_directory() + "/planned";
  const ProgramResult result = run_lathe({"quantize", tiny_checkpoint(), out, "--plan", "--json",
                                          "--samples", "2", "--seq-len", "64"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_GT(parse_json(result.out, "plan")["memory_bytes"].get<double>(), 0);
  EXPECT_FALSE(std::filesystem::exists(out));
}

TEST(Compress, MeasuresAndReports) {
  const std::string out = temporary_directory() + "/out";
  const ProgramResult result =
      run_lathe({"compress", tiny_checkpoint(), out, "--samples", "4", "--seq-len", "64",
                 "--windows", "4", "--eval-seq-len", "64", "--compare", "rtn", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = parse_json(result.out, "compress");
  EXPECT_EQ(json, read_json_file(out + "/report.json"));
  ASSERT_EQ(json["quality"].size(), 2u);
  EXPECT_EQ(json["quality"][0]["method"], "mr-gptq");
  EXPECT_EQ(json["quality"][1]["method"], "rtn");
  EXPECT_GT(json["quality"][0]["mean_kl"].get<double>(), 0);
  EXPECT_GT(json["quality"][0]["perplexity"].get<double>(), 1);
  EXPECT_LT(json["weight_bytes"].get<int64_t>(), json["source_weight_bytes"].get<int64_t>());
  EXPECT_FALSE(std::filesystem::exists(out + ".compare-rtn"));
  EXPECT_TRUE(std::filesystem::exists(out + "/kv_codec.safetensors"));
  EXPECT_GT(json["cache"]["bits_per_value"].get<double>(), 2);
  EXPECT_GT(json["cache"]["perplexity"].get<double>(), 1);
  EXPECT_EQ(json["cache"]["fit"]["layers"].size(), 3u);

  const std::string html = read_file(out + "/report.html");
  EXPECT_NE(html.find("<svg"), std::string::npos);
  EXPECT_NE(html.find("rtn"), std::string::npos);
  for (const char* remote : {"<script", "<link", "<img", "@import", "url(", "href=", "src="}) {
    EXPECT_EQ(html.find(remote), std::string::npos) << remote;
  }
  for (std::size_t at = 0; (at = html.find("http", at)) != std::string::npos; ++at) {
    EXPECT_EQ(html.compare(at, 26, "http://www.w3.org/2000/svg"), 0);  // a name, never fetched
  }

  // The manifest carries the numbers, and covers the report.
  const Json manifest = read_json_file(out + "/lathe.json");
  EXPECT_EQ(manifest["quality"][0]["metric"], "perplexity");
  EXPECT_NE(read_file(out + "/lathe.json").find("\"report.html\""),
            std::string::npos);  // scripts/demo
  const Json inspected = parse_json(run_lathe({"inspect", out, "--json"}).out, "inspect");
  EXPECT_EQ(inspected["integrity"]["intact"], true);

  const Json selftest = parse_json(run_lathe({"selftest", out, "--json"}).out, "selftest");
  EXPECT_EQ(selftest["passed"], true);
  EXPECT_EQ(selftest["fingerprint"]["same_path"], true);
  EXPECT_EQ(selftest["fingerprint"]["max_difference"], 0.0);

  // As after a kill while it measured: what quantizing found is there still, but not its time.
  std::filesystem::remove(out + "/report.json");
  std::filesystem::remove(out + "/report.html");
  Json unmeasured = manifest;
  unmeasured["quality"] = Json::array();
  std::erase_if(unmeasured["files"].get_ref<Json::array_t&>(), [](const Json& file) {
    return file["name"].get<std::string>().starts_with("report.");
  });
  write_file_atomically(out + "/lathe.json", dump_json(unmeasured, 2) + "\n");
  const ProgramResult resumed =
      run_lathe({"compress", tiny_checkpoint(), out, "--samples", "4", "--seq-len", "64",
                 "--windows", "4", "--eval-seq-len", "64", "--resume", "--json"});
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  const Json report = read_json_file(out + "/report.json");
  EXPECT_EQ(report["linears"], json["linears"]);
  EXPECT_EQ(report["linears"].size(), 21u);
  EXPECT_EQ(report["quantize_seconds"], nullptr);
  const std::string page = read_file(out + "/report.html");
  EXPECT_NE(page.find("Where the error is"), std::string::npos);
  EXPECT_EQ(page.find("Quantizing took"), std::string::npos);
  EXPECT_EQ(read_json_file(out + "/lathe.json")["quality"].size(), manifest["quality"].size());
}

// Weights that lie about themselves: digests brought up to date, so only the logits can tell.
TEST(Selftest, FindsWrongLogits) {
  const std::string out = temporary_directory() + "/out";
  ASSERT_EQ(run_lathe({"quantize", tiny_checkpoint(), out, "--method", "rtn"}).exit_code, 0);
  Json manifest = read_json_file(out + "/lathe.json");
  manifest.erase("logits_fingerprint");  // as written by something else
  write_file_atomically(out + "/lathe.json", dump_json(manifest));
  const Json none = parse_json(run_lathe({"selftest", out, "--json"}).out, "selftest");
  EXPECT_EQ(none["passed"], true);
  EXPECT_EQ(none["fingerprint"], nullptr);
  ASSERT_EQ(run_lathe({"selftest", out, "--write"}).exit_code, 0);
  EXPECT_EQ(run_lathe({"selftest", out}).exit_code, 0);
  EXPECT_EQ(run_lathe({"inspect", out, "--quick"}).exit_code, 0);

  manifest = read_json_file(out + "/lathe.json");
  Json& logit = manifest["logits_fingerprint"]["top_logits"][3];
  logit = logit.get<double>() + 0.01;  // within what another machine may differ by, not this one
  write_file_atomically(out + "/lathe.json", dump_json(manifest));
  const ProgramResult wrong = run_lathe({"selftest", out});
  EXPECT_EQ(wrong.exit_code, 1);
  EXPECT_NE(wrong.err.find("logits"), std::string::npos) << wrong.err;
  manifest["logits_fingerprint"]["computed_with"] = "another machine";
  const double largest = manifest["logits_fingerprint"]["top_logits"][0].get<double>();
  manifest["logits_fingerprint"]["tolerance"] = 0.7 * largest;  // a model full of rounding noise
  for (const double share : {0.02, 0.4}) {
    manifest["logits_fingerprint"]["top_logits"][0] = (1 + share) * largest;
    write_file_atomically(out + "/lathe.json", dump_json(manifest));
    const Json other = parse_json(run_lathe({"selftest", out, "--json"}).out, "selftest");
    EXPECT_EQ(other["passed"], true);
    EXPECT_EQ(other["fingerprint"]["telling"], share < 0.1);
  }
  manifest["logits_fingerprint"]["token_ids"][0] = 320;  // of another model
  write_file_atomically(out + "/lathe.json", dump_json(manifest));
  EXPECT_EQ(run_lathe({"selftest", out}).exit_code, 1);
}

}  // namespace
}  // namespace lathe
