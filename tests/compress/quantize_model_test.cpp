#include "compress/quantize_model.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/sha256.h"
#include "compress/embed_sequences.h"
#include "compress/hidden_store.h"
#include "compress/layer_pass.h"
#include "compress/random_model.h"

namespace lathe {
namespace {

class QuantizeModel : public testing::Test {
 protected:
  OwnedExec owned_{2};
  Exec& exec_ = owned_.exec;
  TemporaryDirectory directory_;

  std::string source(const char* config = kQwen2Config) {
    const std::string path = directory_ / "source";
    std::filesystem::create_directories(path);
    write_random_model(path, config, 7);
    return path;
  }

  static QuantizeOptions options_for(const char* format, QuantizeMethod method,
                                     ActivationFormat activations = ActivationFormat::kNone) {
    QuantizeOptions options =
        recommended_options(weight_format_from_name(format), method, activations);
    options.samples = 12;
    options.seq_len = 48;
    options.min_expert_tokens = 32;
    return options;
  }

  QuantizeJob job_for(const Checkpoint& checkpoint, const QuantizeOptions& options,
                      const std::string& out) {
    QuantizeJob job;
    job.source = &checkpoint;
    job.out = out;
    job.options = options;
    if (options.needs_calibration()) {
      job.sequences =
          random_sequences(options.samples, options.seq_len, checkpoint.config().vocab_size, 3);
    }
    job.config_json = read_file(checkpoint.path() + "/config.json");
    job.manifest.source = "test";
    return job;
  }

  QuantizeResult quantize(const std::string& from, const QuantizeOptions& options,
                          const std::string& out) {
    const auto checkpoint = Checkpoint::open(from);
    return quantize_model(job_for(*checkpoint, options, out), {}, exec_);
  }
};

double mean_error(const QuantizeResult& result) {
  double sum = 0;
  for (const LinearReport& report : result.reports) sum += report.error;
  return sum / static_cast<double>(result.reports.size());
}

// Every method and format writes a model that loads and computes nearly what the source does. The
// bounds are those of 4 and 8 bits: a relative squared weight error of 1 % to 2 % a layer, in
// 21 layers, and below 1e-4.
TEST_F(QuantizeModel, EveryMethodAndFormatGivesAModelThatStillComputes) {
  const std::string from = source();
  const std::vector<int32_t> prompt = random_sequences(1, 40, 101, 99)[0];
  const std::vector<float> expected = logits_of(from, prompt, exec_);
  struct Case {
    const char* format;
    QuantizeMethod method;
    double bound;
  };
  int number = 0;
  for (const Case& c :
       {Case{"mxfp4", QuantizeMethod::kRtn, .3}, Case{"mxfp4", QuantizeMethod::kMrGptq, .3},
        Case{"nvfp4", QuantizeMethod::kGptq, .2}, Case{"nvfp4", QuantizeMethod::kMrGptq, .2},
        Case{"int4", QuantizeMethod::kMrGptq, .2}, Case{"nvfp4", QuantizeMethod::kSmoothQuant, .3},
        Case{"int4", QuantizeMethod::kAwq, .3}, Case{"nvfp4", QuantizeMethod::kQuaRot, .2},
        Case{"int8", QuantizeMethod::kQuaRot, 2e-3}, Case{"int8", QuantizeMethod::kRtn, 2e-3},
        Case{"int8", QuantizeMethod::kSmoothQuant, 2e-3},
        Case{"fp8", QuantizeMethod::kMrGptq, .02}}) {
    SCOPED_TRACE(std::string(c.format) + " " + std::string(quantize_method_name(c.method)));
    const std::string out = directory_ / str("out", number++);
    const QuantizeResult result = quantize(from, options_for(c.format, c.method), out);
    EXPECT_EQ(result.reports.size(), 21u);
    const double distance = relative_distance(logits_of(out, prompt, exec_), expected);
    EXPECT_LT(distance, c.bound);
    EXPECT_GT(distance, 0);
    for (const LinearReport& report : result.reports) {
      EXPECT_GT(report.error, 0) << report.module;
      EXPECT_LT(report.error, 0.1) << report.module;
    }
  }
}

TEST_F(QuantizeModel, GptqLowersTheErrorOfEveryLayer) {
  const std::string from = source();
  for (const char* format : {"mxfp4", "nvfp4", "int4"}) {
    QuantizeOptions options = options_for(format, QuantizeMethod::kMrGptq);
    const QuantizeResult result = quantize(from, options, directory_ / format);
    for (const LinearReport& report : result.reports) {
      EXPECT_LT(report.error, report.rtn_error) << report.module;
      EXPECT_EQ(report.tokens, 12 * 48);
      EXPECT_FALSE(report.rtn_fallback);
    }
  }
}

// The codes on disk are those that were chosen, and the layers that follow saw them: a second run
// with other sequences gives other codes in layer 1.
TEST_F(QuantizeModel, StoresTheSchemeThatTheLayerNeeds) {
  const std::string from = source();
  QuantizeOptions options = options_for("nvfp4", QuantizeMethod::kMrGptq, ActivationFormat::kNvfp4);
  const std::string out = directory_ / "out";
  quantize(from, options, out);
  const auto checkpoint = Checkpoint::open(out);
  float previous = 0;
  for (const char* module : {"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj",
                             "model.layers.1.self_attn.v_proj"}) {
    const LinearWeights linear = checkpoint->load_linear(module, DType::kF32);
    ASSERT_TRUE(linear.quantized.has_value());
    EXPECT_EQ(linear.scheme.activations, ActivationFormat::kNvfp4);
    EXPECT_EQ(linear.scheme.hadamard, 16);
    EXPECT_GT(linear.scheme.input_global_scale, 0);
    // q, k, v share the global scale of weights and inputs.
    if (previous != 0) {
      EXPECT_EQ(linear.quantized->global_scale, previous);
    }
    previous = linear.quantized->global_scale;
  }
}

// The largest |x| that each kind of linear sees in the first layer of a model, behind its rotation.
std::map<LinearKind, float> first_input_amax(const Checkpoint& model,
                                             const std::vector<std::vector<int32_t>>& sequences,
                                             int64_t block, Exec& exec) {
  const Tensor embedding = model.load("model.embed_tokens.weight", DType::kF32);
  const int64_t hidden = model.config().hidden_size;
  TemporaryDirectory scratch;
  HiddenStore store(scratch.path(), lengths_of(sequences), hidden);
  store.begin(0);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    std::vector<float> rows;
    for (const int32_t id : sequences[i]) {
      const float* row = embedding.as<float>() + id * hidden;
      rows.insert(rows.end(), row, row + hidden);
    }
    store.write(0, static_cast<int64_t>(i), 1, rows.data());
  }
  store.finish(0);
  LayerPass pass(model.config(), store, 100, exec);
  CollectOptions options;
  options.kinds = {LinearKind::kQkv, LinearKind::kO, LinearKind::kGateUp, LinearKind::kDown};
  options.amax_blocks = {block};
  const CalibrationLayer packed = pass.pack(load_layer_weights(model, 0, DType::kF32), exec);
  std::map<LinearKind, float> amax;
  for (const auto& [key, input] : pass.collect(packed, options, {}, exec).inputs) {
    amax[key.first] = input.rotated_amax[0];
  }
  return amax;
}

// A static scale is that of the input as it is divided and rotated, so that nothing clips: exact
// where only the gain is in front, and near it behind quantized weights.
TEST_F(QuantizeModel, SmoothedInputsHaveTheirOwnStaticScale) {
  const std::string from = source();
  int number = 0;
  for (const QuantizeMethod method : {QuantizeMethod::kSmoothQuant, QuantizeMethod::kAwq}) {
    for (const int64_t block : {0, 16}) {
      SCOPED_TRACE(testing::Message() << quantize_method_name(method) << " " << block);
      QuantizeOptions options = options_for("nvfp4", method, ActivationFormat::kNvfp4);
      options.hadamard = {block};
      const std::string out = directory_ / str("out", number++);
      quantize(from, options, out);
      const auto checkpoint = Checkpoint::open(out);
      const std::map<LinearKind, float> amax = first_input_amax(
          *checkpoint, random_sequences(options.samples, options.seq_len, 101, 3), block, exec_);
      for (const LayerLinear& linear : load_layer_weights(*checkpoint, 0, DType::kF32).linears) {
        const double stored = 2688.0 / linear.weights.scheme.input_global_scale;
        const double seen = amax.at(linear.slot.kind);
        EXPECT_NEAR(stored, seen, (linear.slot.kind == LinearKind::kQkv ? 1e-5 : 0.15) * seen)
            << linear.slot.module;
      }
    }
  }
}

std::map<std::string, std::string> digests(const std::string& directory) {
  std::map<std::string, std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    out[entry.path().filename().string()] = sha256_hex_of_file(entry.path().string());
  }
  return out;
}

// Stopped anywhere, resumed as often as it takes: the same bytes as without a stop, and nothing
// left over.
TEST_F(QuantizeModel, ResumesToTheSameBytes) {
  const std::string from = source();
  const auto checkpoint = Checkpoint::open(from);
  const QuantizeOptions options =
      options_for("mxfp4", QuantizeMethod::kMrGptq, ActivationFormat::kMxfp4);
  quantize_model(job_for(*checkpoint, options, directory_ / "whole"), {}, exec_);

  QuantizeJob job = job_for(*checkpoint, options, directory_ / "resumed");
  job.resume = true;
  int starts = 0;
  std::optional<QuantizeResult> result;
  for (int patience = 3; !result; patience += 2) {
    int calls = 0;
    QuantizeCallbacks callbacks;
    callbacks.canceled = [&] { return ++calls > patience; };
    ++starts;
    try {
      result = quantize_model(job, callbacks, exec_);
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::kCanceled) << error.what();
    }
  }
  EXPECT_GT(starts, 4);
  EXPECT_EQ(result->reports.size(), 21u);
  EXPECT_EQ(digests(directory_ / "resumed"), digests(directory_ / "whole"));
}

// The same with SIGKILL, which runs no destructor and flushes nothing.
TEST_F(QuantizeModel, SurvivesKills) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer cannot start threads behind a fork";
#endif
  const std::string from = source();
  const auto checkpoint = Checkpoint::open(from);
  const QuantizeOptions options = options_for("nvfp4", QuantizeMethod::kMrGptq);
  quantize_model(job_for(*checkpoint, options, directory_ / "whole"), {}, exec_);
  QuantizeJob job = job_for(*checkpoint, options, directory_ / "resumed");
  job.resume = true;
  int kills = 0;
  for (int patience = 4;; patience += 3) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      int calls = 0;
      QuantizeCallbacks callbacks;
      callbacks.canceled = [&] {
        if (++calls > patience) ::raise(SIGKILL);
        return false;
      };
      try {
        OwnedExec own(2);  // threads do not survive a fork
        quantize_model(job, callbacks, own.exec);
      } catch (const std::exception&) {
        ::_exit(1);
      }
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    if (WIFEXITED(status)) {
      ASSERT_EQ(WEXITSTATUS(status), 0);
      break;
    }
    ASSERT_EQ(WTERMSIG(status), SIGKILL);
    ++kills;
  }
  EXPECT_GT(kills, 3);
  EXPECT_EQ(digests(directory_ / "resumed"), digests(directory_ / "whole"));
}

// A part that was damaged on disk is made again only when the inputs of its layer are still there;
// those of a later layer are never taken for them.
TEST_F(QuantizeModel, NeverContinuesFromTheInputsOfAnotherLayer) {
  const std::string from = source();
  const auto checkpoint = Checkpoint::open(from);
  QuantizeJob job =
      job_for(*checkpoint, options_for("mxfp4", QuantizeMethod::kMrGptq), directory_ / "out");
  QuantizeCallbacks stop;
  stop.on_progress = [&](const QuantizeProgress& now) {
    if (now.stage == "layer 2: loading") fail(ErrorCode::kCanceled, "stop");
  };
  EXPECT_THROW(quantize_model(job, stop, exec_), Error);
  // Layers 0 and 1 are done; the files hold the inputs of 1 and 2. Layer 0 is damaged.
  for (const auto& entry : std::filesystem::directory_iterator(directory_ / "out")) {
    if (entry.path().filename().string().find("model-00001") != std::string::npos) {
      std::filesystem::resize_file(entry.path(), entry.file_size() - 1);
    }
  }
  job.resume = true;
  quantize_model(job, {}, exec_);  // from the embeddings
  const std::vector<int32_t> prompt = random_sequences(1, 40, 101, 95)[0];
  EXPECT_LT(relative_distance(logits_of(directory_ / "out", prompt, exec_),
                              logits_of(from, prompt, exec_)),
            0.3);
}

TEST_F(QuantizeModel, ResumeRefusesOtherSettings) {
  const std::string from = source();
  const auto checkpoint = Checkpoint::open(from);
  QuantizeJob job =
      job_for(*checkpoint, options_for("mxfp4", QuantizeMethod::kMrGptq), directory_ / "out");
  QuantizeCallbacks stop;
  int calls = 0;
  stop.canceled = [&] { return ++calls > 20; };
  EXPECT_THROW(quantize_model(job, stop, exec_), Error);
  job.resume = true;
  job.options.damping = {0.1};
  try {
    quantize_model(job, {}, exec_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
  }
}

TEST_F(QuantizeModel, ExpertsWithFewTokensAreRoundedAndReported) {
  const std::string from = source(kQwen3MoeConfig);
  QuantizeOptions options = options_for("mxfp4", QuantizeMethod::kMrGptq);
  options.min_expert_tokens = 150;
  const QuantizeResult result = quantize(from, options, directory_ / "out");
  EXPECT_EQ(result.reports.size(), 2u * (4 + 6 * 3));
  int64_t fallbacks = 0;
  int64_t gptq = 0;
  for (const LinearReport& report : result.reports) {
    const bool expert = report.module.find(".experts.") != std::string::npos;
    if (!expert) {
      EXPECT_FALSE(report.rtn_fallback);
      continue;
    }
    EXPECT_EQ(report.rtn_fallback, report.tokens < 150) << report.module;
    (report.rtn_fallback ? fallbacks : gptq) += 1;
  }
  EXPECT_GT(fallbacks, 0);
  EXPECT_GT(gptq, 0);
  EXPECT_EQ(describe_fallbacks(result.reports),
            str(fallbacks, " of 44 linear layers rounded to nearest (too few calibration tokens ",
                "reached the expert)"));
  const std::pair<std::string, std::string> counts = {
      "fallbacks", str("linears=44 rounded=", fallbacks, " escalated=0 with_dead_channels=0")};
  const Manifest manifest = read_manifest(directory_ / "out");
  EXPECT_NE(std::find(manifest.settings.begin(), manifest.settings.end(), counts),
            manifest.settings.end());
  const std::vector<int32_t> prompt = random_sequences(1, 40, 101, 98)[0];
  EXPECT_LT(relative_distance(logits_of(directory_ / "out", prompt, exec_),
                              logits_of(from, prompt, exec_)),
            0.5);
}

// Choosing among candidates on held-out tokens is not worse than any one of them, by that measure.
TEST_F(QuantizeModel, ChoosesRotationAndDampingByHeldOutError) {
  const std::string from = source();
  QuantizeOptions options = options_for("mxfp4", QuantizeMethod::kMrGptq);
  options.samples = 16;
  options.hadamard = {0, 16, 32};
  options.damping = {0.01, 0.1};
  const QuantizeResult chosen = quantize(from, options, directory_ / "chosen");
  std::set<int64_t> blocks;
  for (const LinearReport& report : chosen.reports) {
    blocks.insert(report.hadamard);
    EXPECT_EQ(report.tokens, 14 * 48);  // every eighth sequence is held out
  }
  EXPECT_LT(mean_error(chosen), 0.02);
  EXPECT_GT(blocks.size(), 1u);
  // q, k, v share the rotation.
  EXPECT_EQ(chosen.reports[0].hadamard, chosen.reports[1].hadamard);
  EXPECT_EQ(chosen.reports[0].hadamard, chosen.reports[2].hadamard);
}

TEST_F(QuantizeModel, SequentialCalibrationWorks) {
  const std::string from = source();
  QuantizeOptions options = options_for("mxfp4", QuantizeMethod::kMrGptq);
  options.sequential = true;
  const QuantizeResult result = quantize(from, options, directory_ / "out");
  for (const LinearReport& report : result.reports) EXPECT_LT(report.error, report.rtn_error);
  const std::vector<int32_t> prompt = random_sequences(1, 40, 101, 97)[0];
  EXPECT_LT(relative_distance(logits_of(directory_ / "out", prompt, exec_),
                              logits_of(from, prompt, exec_)),
            0.3);
}

// Formats that compressed-tensors does not have go out as dense weights.
TEST_F(QuantizeModel, DenseOutputHoldsTheDecodedWeights) {
  const std::string from = source();
  const auto checkpoint = Checkpoint::open(from);
  QuantizeOptions options = options_for("mxfp4-fitted", QuantizeMethod::kMrGptq);
  QuantizeJob job = job_for(*checkpoint, options, directory_ / "out");
  EXPECT_THROW(quantize_model(job, {}, exec_), Error);
  job.dense_output = true;
  quantize_model(job, {}, exec_);
  const std::vector<int32_t> prompt = random_sequences(1, 40, 101, 96)[0];
  const double distance = relative_distance(logits_of(directory_ / "out", prompt, exec_),
                                            logits_of(from, prompt, exec_));
  EXPECT_LT(distance, 0.2);
  EXPECT_GT(distance, 1e-4);
}

TEST_F(QuantizeModel, RefusesWhatCannotBe) {
  const std::string from = source(kGemma3Config);
  const auto checkpoint = Checkpoint::open(from);
  const auto code_of = [&](const QuantizeJob& job) -> std::optional<ErrorCode> {
    try {
      quantize_model(job, {}, exec_);
      return std::nullopt;
    } catch (const Error& error) {
      return error.code();
    }
  };
  QuantizeJob quarot =
      job_for(*checkpoint, options_for("nvfp4", QuantizeMethod::kQuaRot), directory_ / "a");
  EXPECT_EQ(code_of(quarot), ErrorCode::kUnsupported);
  QuantizeJob thirds =
      job_for(*checkpoint, options_for("mxfp4", QuantizeMethod::kRtn), directory_ / "b");
  thirds.options.scales.mx_rule = MxScaleRule::kAbsmaxX3;
  EXPECT_EQ(code_of(thirds), ErrorCode::kUnsupported);
  QuantizeJob silent =
      job_for(*checkpoint, options_for("mxfp4", QuantizeMethod::kMrGptq), directory_ / "c");
  silent.sequences.clear();
  EXPECT_EQ(code_of(silent), ErrorCode::kInvalidArgument);
  QuantizeJob strange =
      job_for(*checkpoint, options_for("mxfp4", QuantizeMethod::kMrGptq), directory_ / "d");
  strange.sequences[2][5] = 101;
  EXPECT_EQ(code_of(strange), ErrorCode::kInvalidArgument);
  // Gemma itself is fine.
  EXPECT_EQ(code_of(job_for(*checkpoint, options_for("mxfp4", QuantizeMethod::kMrGptq),
                            directory_ / "e")),
            std::nullopt);
  // A quantized model is not quantized again.
  const auto again = Checkpoint::open(directory_ / "e");
  EXPECT_EQ(code_of(job_for(*again, options_for("mxfp4", QuantizeMethod::kRtn), directory_ / "f")),
            ErrorCode::kUnsupported);
}

TEST_F(QuantizeModel, PlanCountsWhatIsWritten) {
  const std::string from = source();
  const auto checkpoint = Checkpoint::open(from);
  const QuantizeOptions options = options_for("mxfp4", QuantizeMethod::kMrGptq);
  const QuantizePlan plan = plan_quantization(*checkpoint, options, exec_);
  EXPECT_GT(plan.seconds, 0);
  EXPECT_GT(plan.memory_bytes, 0);
  // 4.25 bits for every weight of 3 layers, and the embedding.
  const double weights = 3.0 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96);
  EXPECT_NEAR(plan.result_bytes, weights * 4.25 / 8 + 101 * 64 * 2 + 64 * 2, 1);
  EXPECT_NEAR(plan.disk_bytes - plan.result_bytes, 2.0 * 12 * 48 * 64 * 4, 1);
}

// What the plan counts is what happens, to the last operation: dense, sliding, experts (their
// inputs add up to the tokens times those that a token takes), several rotations, four passes.
TEST_F(QuantizeModel, PlanCountsTheWorkThatIsDone) {
  struct Case {
    const char* config;
    const char* format;
    QuantizeMethod method;
    bool sequential;
    bool chooses;
    bool static_rotated_inputs = false;
  };
  int number = 0;
  for (const Case& c :
       {Case{kQwen2Config, "mxfp4", QuantizeMethod::kMrGptq, false, false},
        Case{kQwen2Config, "nvfp4", QuantizeMethod::kMrGptq, true, false},
        Case{kQwen2Config, "int4", QuantizeMethod::kGptq, false, true},
        Case{kQwen2Config, "mxfp4", QuantizeMethod::kRtn, false, false},
        Case{kGemma3Config, "mxfp4", QuantizeMethod::kMrGptq, false, false},
        Case{kQwen2Config, "nvfp4", QuantizeMethod::kSmoothQuant, false, false, true},
        Case{kQwen3MoeConfig, "mxfp4", QuantizeMethod::kMrGptq, false, false}}) {
    SCOPED_TRACE(number);
    TemporaryDirectory place;
    const std::string from = place / "source";
    std::filesystem::create_directories(from);
    write_random_model(from, c.config, 7);
    QuantizeOptions options = options_for(c.format, c.method);
    options.min_expert_tokens = 1;
    options.sequential = c.sequential;
    if (c.chooses) {
      options.hadamard = {0, 16, 32};
      options.damping = {0.01, 0.1};
    }
    if (c.static_rotated_inputs) {
      options.hadamard = {16};
      options.activations = ActivationFormat::kNvfp4;
    }
    const auto checkpoint = Checkpoint::open(from);
    const StageNumbers planned = quantization_work(checkpoint->config(), options);
    const QuantizeResult result = quantize(from, options, directory_ / str("work", number++));
    for (std::size_t i = 0; i < kNumCalibrationStages; ++i) {
      EXPECT_NEAR(result.stage_work.values[i], planned.values[i], 1e-9 * planned.values[i])
          << calibration_stage_name(static_cast<CalibrationStage>(i));
    }
    EXPECT_GT(planned[CalibrationStage::kScales], 0);
    EXPECT_EQ(planned[CalibrationStage::kFactor] > 0, options.uses_gptq());
    EXPECT_GT(result.stage_seconds.total(), 0.9 * result.seconds);
    EXPECT_LT(result.stage_seconds.total(), 1.1 * result.seconds + 0.1);
  }
}

TEST_F(QuantizeModel, PlanIsTheWorkAtTheSpeedOfItsStages) {
  const auto checkpoint = Checkpoint::open(source());
  const QuantizeOptions options = options_for("mxfp4", QuantizeMethod::kMrGptq);
  const QuantizePlan plan = plan_quantization(*checkpoint, options, exec_);
  for (std::size_t i = 0; i < kNumCalibrationStages; ++i) {
    if (plan.stage_work.values[i] > 0) {
      EXPECT_GT(plan.stage_seconds.values[i], 0)
          << calibration_stage_name(static_cast<CalibrationStage>(i));
    }
  }
  EXPECT_DOUBLE_EQ(plan.seconds, plan.stage_seconds.total());
}

TEST(VisiblePositions, AreCountedAsAttentionSeesThem) {
  for (const int64_t length : {1, 7, 40}) {
    for (const int64_t window : {0, 1, 7, 39, 40, 100}) {
      int64_t sum = 0;
      for (int64_t i = 0; i < length; ++i) sum += window > 0 ? std::min(i + 1, window) : i + 1;
      EXPECT_EQ(visible_positions(length, window), sum) << length << " " << window;
    }
  }
}

TEST(LinearReports, AreSummedUpWhereAFallbackHappened) {
  std::vector<LinearReport> reports(5);
  EXPECT_EQ(describe_fallbacks(reports), "");
  reports[1].escalations = 3;
  reports[2].dead_columns = 7;
  reports[3].dead_columns = 1;
  EXPECT_EQ(describe_fallbacks(reports),
            "1 of 5 linear layers with more damping than asked for (a Hessian near to singular), "
            "2 with input channels that were always zero");
}

TEST(LinearReports, SurviveTheJournal) {
  LinearReport report;
  report.module = "model.layers.0.mlp.down_proj";
  report.rows = 3;
  report.cols = 4;
  report.tokens = 5;
  report.hadamard = 32;
  report.damping = 0.1;
  report.escalations = 1;
  report.dead_columns = 2;
  report.rtn_fallback = true;
  report.error = 0.1234567890123;
  report.rtn_error = 0.2;
  const auto back = reports_from_json(reports_to_json({report}));
  ASSERT_EQ(back.size(), 1u);
  EXPECT_EQ(reports_to_json(back), reports_to_json({report}));
  EXPECT_EQ(back[0].error, report.error);
  EXPECT_THROW(reports_from_json("[{}]"), Error);
  EXPECT_THROW(reports_from_json("nonsense"), Error);
}

}  // namespace
}  // namespace lathe
