// lathe bench kv: how fast a sequence is parked as codes and woken again, beside prefilling it
// anew.
#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "cli/bench_model.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/kv_speed.h"
#include "cli/loaded_model.h"
#include "cli/output.h"
#include "cli/speed.h"
#include "kernels/features.h"
#ifdef LATHE_HAS_CUDA
#include "cli/cuda_kv_speed.h"
#endif

namespace lathe {
namespace {

struct KvBenchFlags {
  CommonFlags common;
  ModelFlags model;
  std::string path;
  std::vector<std::string> variants = {"dense"};
  int bits = 2;
  int64_t tokens = 8192;
  int repetitions = 3;
  bool prefill = true;
  int64_t chunk_tokens = 4096;  // of a GPU's prefill
  std::string random_weights;   // on a GPU
};

// The file of --kv-codec, or made-up predictors of every asked variant.
std::vector<KvCodecFile> codecs(const KvBenchFlags& flags, const Checkpoint& checkpoint) {
  std::vector<KvCodecFile> files;
  if (!flags.model.kv_codec.empty()) {
    files.push_back(read_kv_codec(flags.model.kv_codec));
    check_kv_codec(files.back(), checkpoint.config(), kv_model_fingerprint(checkpoint),
                   flags.model.kv_codec);
    return files;
  }
  for (const std::string& variant : flags.variants) {
    files.push_back(made_up_kv_codec(checkpoint.config(), variant, flags.bits));
  }
  return files;
}

void print_result(const KvBenchFlags& flags, const Json& result, const std::string& head) {
  if (flags.common.json) return print_json(result);
  std::string text = str("model     ", flags.path, head);
  char line[240];
  if (!result["prefill_tokens_per_second"].is_null()) {
    std::snprintf(line, sizeof line, "prefill %lld: %.0f tokens/s\n",
                  static_cast<long long>(flags.tokens),
                  result["prefill_tokens_per_second"].get<double>());
    text += line;
  }
  std::snprintf(line, sizeof line, "%-24s %8s %12s %12s %12s %10s\n", "codec", "bits", "B/token",
                "park tok/s", "wake tok/s", "x prefill");
  text += line;
  for (const Json& c : result["cases"]) {
    std::snprintf(
        line, sizeof line, "%-24s %8.3f %12lld %12.0f %12.0f %10.1f\n",
        str(c["method"].get<std::string>(), " ", c["variant"].get<std::string>()).c_str(),
        c["bits_per_value"].get<double>(), static_cast<long long>(c["token_bytes"].get<int64_t>()),
        c["park_tokens_per_second"].get<double>(), c["wake_tokens_per_second"].get<double>(),
        c["wake_over_prefill"].is_null() ? 0.0 : c["wake_over_prefill"].get<double>());
    text += line;
  }
  print(text);
}

#ifdef LATHE_HAS_CUDA
Json codec_json(const KvCodecFile& file) {
  return {{"method", file.method},
          {"variant", file.variant},
          {"bits_per_value", kv_bits_per_value(file)},
          {"predictor_bytes", kv_predictor_bytes(file)},
          {"token_bytes", kv_token_bytes(file)}};
}

void run_on_gpu(const KvBenchFlags& flags, Exec& exec) {
  ModelFlags live = flags.model;
  live.kv_codec.clear();  // a live cache
  const BenchModel loaded(flags.path, live, flags.random_weights, "", flags.common.json, exec);
  Model& model = loaded.model();
  if (flags.tokens > model.config().max_position_embeddings) {
    fail(ErrorCode::kInvalidArgument, "--tokens ", flags.tokens, ": the model goes to ",
         model.config().max_position_embeddings);
  }
  std::vector<KvCodecFile> files;
  if (flags.model.kv_codec.empty()) {
    for (const std::string& variant : flags.variants) {
      files.push_back(made_up_kv_codec(model.config(), variant, flags.bits));
    }
  } else {
    files = codecs(flags, *Checkpoint::open(flags.path));
  }
  Json cases = Json::array();
  double prefill = 0;
  for (const KvCodecFile& file : files) {
    const CudaKvSpeed speed =
        measure_cuda_kv_speed(model, file, kv_choice(live).live_format, flags.tokens,
                              flags.chunk_tokens, flags.repetitions, exec);
    prefill = speed.prefill;
    Json row = codec_json(file);
    row["park_tokens_per_second"] = median(speed.park);
    row["wake_tokens_per_second"] = median(speed.wake);
    row["wake_over_prefill"] = median(speed.wake) / speed.prefill;
    row["difference_to_cpu"] = speed.difference;
    cases.push_back(row);
  }
  print_result(flags,
               {{"model", flags.path},
                {"kv", kv_format_name(kv_choice(live).live_format)},
                {"kernels", model.kernels()},
                {"tokens", flags.tokens},
                {"prefill_tokens_per_second", prefill},
                {"checked", true},
                {"cases", cases}},
               "\nchecked   woken values are those that the CPU makes of the codes\n\n");
}
#endif

void run_bench_kv(const KvBenchFlags& flags) {
  if (flags.tokens < 2 * kBlockSize || flags.tokens > (int64_t{1} << 20) || flags.repetitions < 1 ||
      flags.repetitions > 1000) {
    fail(ErrorCode::kInvalidArgument, "--tokens ", flags.tokens, ", --repetitions ",
         flags.repetitions, ": ", 2 * kBlockSize, " to 1048576 tokens, 1 to 1000 repetitions");
  }
  if (flags.chunk_tokens < 1 || flags.chunk_tokens > (1 << 20)) {
    fail(ErrorCode::kInvalidArgument, "--chunk ", flags.chunk_tokens, ": 1 to 1048576");
  }
  Runtime runtime(flags.common);
  Exec& exec = runtime.exec();
#ifdef LATHE_HAS_CUDA
  if (exec.on_cuda()) return run_on_gpu(flags, exec);
#endif
  if (!flags.random_weights.empty()) {
    fail(ErrorCode::kInvalidArgument, "--random-weights are for --device cuda");
  }
  const auto checkpoint = Checkpoint::open(flags.path);
  const ModelConfig& config = checkpoint->config();
  const auto files = codecs(flags, *checkpoint);
  double prefill = 0;
  if (flags.prefill) {
    if (flags.tokens > config.max_position_embeddings) {
      fail(ErrorCode::kInvalidArgument, "--tokens ", flags.tokens, ": the model goes to ",
           config.max_position_embeddings, "; --no-prefill measures the codec alone");
    }
    ModelFlags live = flags.model;
    live.kv_codec.clear();  // prefill beside a live cache
    check_live_cache(live, "the prefill of 'bench kv'");
    const LoadedModel loaded(flags.path, live, exec, {.quiet = flags.common.json});
    SpeedOptions options;
    options.prompt_tokens = flags.tokens;
    options.decode_tokens = 0;
    options.repetitions = 1;
    const CacheMaker make_cache = live_cache(loaded.model(), loaded.kv_format());
    check_forward(loaded.model(), make_cache, exec);
    prefill = median(measure_speed(loaded.model(), make_cache, options, exec).prefill);
  }
  Json cases = Json::array();
  for (const KvCodecFile& file : files) {
    check_kv_kernels(file, exec);
    const KvSpeed speed = measure_kv_speed(config, file, flags.tokens, flags.repetitions, exec);
    cases.push_back(
        {{"method", file.method},
         {"variant", file.variant},
         {"bits_per_value", kv_bits_per_value(file)},
         {"predictor_bytes", kv_predictor_bytes(file)},
         {"token_bytes", kv_token_bytes(file)},
         {"park_tokens_per_second", median(speed.park)},
         {"wake_tokens_per_second", median(speed.wake)},
         {"wake_over_prefill", prefill > 0 ? Json(median(speed.wake) / prefill) : Json(nullptr)}});
  }
  Json result{{"model", flags.path},
              {"threads", exec.threads.num_threads()},
              {"cpu_features", cpu_features_text()},
              {"tokens", flags.tokens},
              {"prefill_tokens_per_second", prefill > 0 ? Json(prefill) : Json(nullptr)},
              {"checked", true},
              {"cases", cases}};
  print_result(flags, result,
               str("\nthreads   ", exec.threads.num_threads(), "   cpu ", cpu_features_text(),
                   "\nchecked   every kernel has the reference's bits; woken blocks are the parked "
                   "ones\n\n"));
}

}  // namespace

void add_bench_kv_command(CLI::App& bench, Invocation& invocation) {
  auto flags = std::make_shared<KvBenchFlags>();  // shared: the callback outlives this function
  CLI::App* command =
      bench.add_subcommand("kv", "Parking a sequence's keys and values as codes, and waking it");
  add_model_argument(*command, flags->path);
  command
      ->add_option("--variants", flags->variants,
                   "Without --kv-codec, made-up codecs of the model's shape: dense, low-rank, "
                   "block-diagonal, latent, latent-alone, mean, none (default: dense)")
      ->type_name("NAME,...")
      ->delimiter(',');
  const auto add = [&](const char* name, auto& value, const char* help) {
    command->add_option(name, value, help)->capture_default_str()->type_name("N");
  };
  add("--bits", flags->bits, "Bits of the made-up codec: 2, 3 or 4");
  add("--tokens", flags->tokens, "Tokens of the sequence");
  add("-r,--repetitions", flags->repetitions, "Repetitions; the median is reported");
  add("--chunk", flags->chunk_tokens, "On a GPU: rows of one prefill step");
  command
      ->add_option("--random-weights", flags->random_weights,
                   "On a GPU: random weights in this format (bf16, mxfp4, ...) instead of the "
                   "model's; MODEL needs a config.json only")
      ->type_name("FORMAT");
  command->add_flag("--prefill,!--no-prefill", flags->prefill,
                    "Prefill as many tokens with the model, for comparison");
  add_model_flags(*command, flags->model);
  add_common_flags(*command, flags->common);
  command->footer(
      "Every kernel is compared with the reference, and a woken block with the parked one, before "
      "anything is timed; on a GPU, woken values with those of the CPU.\n\nExample:\n  lathe bench "
      "kv smollm2.gguf --variants dense,latent,none");
  command->callback([flags, &invocation] { invocation.run = [flags] { run_bench_kv(*flags); }; });
}

}  // namespace lathe
