#include "cli/kv_flags.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "cache/coded_kv_cache.h"
#include "cache/predictive_codec.h"
#include "cli/memory_use.h"
#include "cli/output.h"
#include "engine/prefix_parker.h"
#include "formats/model_fingerprint.h"
#ifdef LATHE_HAS_CUDA
#include "cache/cuda_kv_coder.h"
#include "tensor/device_buffer.h"
#endif

namespace lathe {
namespace {

// "aqua2" and the like, into choice. False: no such name.
bool parse_codec_name(const std::string& name, KvChoice& choice) {
  for (const std::string method : {"aqua", "higgs", "int"}) {
    if (name.size() == method.size() + 1 && name.starts_with(method) && name.back() >= '2' &&
        name.back() <= '4') {
      choice.coded = true;
      choice.method = method;
      choice.bits = name.back() - '0';
      return true;
    }
  }
  return false;
}

int64_t bytes_of(const char* flag, double gigabytes) {
  if (!(gigabytes >= 0 && gigabytes <= 1e6)) {
    fail(ErrorCode::kInvalidArgument, flag, " ", gigabytes, ": 0 to 1000000");
  }
  return static_cast<int64_t>(gigabytes * 1e9);
}

// Whether angles depend on the longest sequence that will be run (ModelOptions).
bool has_moving_rope(const ModelConfig& config) {
  const auto moves = [](const RopeConfig& rope) {
    return rope.scaling == RopeConfig::Scaling::kLongRope ||
           rope.scaling == RopeConfig::Scaling::kDynamic;
  };
  return moves(config.rope) || moves(config.rope_local);
}

CacheMemory cache_memory(const Exec& exec, int num_ranks) {
#ifdef LATHE_HAS_CUDA
  // Every rank's GPU holds its part of the cache.
  if (exec.on_cuda()) {
    return {.free_bytes = free_device_bytes(exec.cuda_device) * num_ranks, .default_share = 0.5};
  }
#endif
  (void)exec, (void)num_ranks;
  return {.free_bytes = available_memory_bytes(), .default_share = 0.25};
}

}  // namespace

KvChoice kv_choice(const ModelFlags& flags) {
  const bool exact = model_options(flags).dense_dtype == DType::kF32;
  KvChoice choice;
  choice.live_format = exact ? KvFormat::kF32 : KvFormat::kBF16;
  choice.coded = !flags.kv_codec.empty();
  if (flags.kv.empty()) return choice;
  // higgs3 and the like are live formats unless a codec is named.
  KvChoice codec = choice;
  if (parse_codec_name(flags.kv, codec) && (choice.coded || codec.method == "aqua")) return codec;
  if (choice.coded && flags.kv != "bf16" && flags.kv != "f32") {
    fail(ErrorCode::kInvalidArgument, "--kv ", flags.kv,
         " with --kv-codec: name what the codec is ",
         "(aqua2, higgs3, ...), the exact part's format (bf16, f32), or nothing");
  }
  try {
    choice.live_format = kv_format_from_name(flags.kv);
  } catch (const Error& error) {
    fail(ErrorCode::kInvalidArgument, "--kv ", flags.kv, ": ", error.what(),
         "; aqua2, aqua3 and aqua4 need a codec of 'lathe fit-kv'");
  }
  return choice;
}

void check_live_cache(const ModelFlags& flags, std::string_view command) {
  if (!kv_choice(flags).coded) return;
  const bool by_file = !flags.kv_codec.empty();
  fail(ErrorCode::kInvalidArgument, by_file ? "--kv-codec " : "--kv ",
       by_file ? flags.kv_codec : flags.kv, ": ", command,
       " reads live caches only; take bf16, or another that needs no codec");
}

LoadedKvCodec load_kv_codec(const KvChoice& choice, const ModelFlags& flags,
                            const Checkpoint& checkpoint) {
  LoadedKvCodec loaded;
  loaded.path = flags.kv_codec;
  if (loaded.path.empty()) {
    const std::filesystem::path model(checkpoint.path());
    const std::filesystem::path path = model / kKvCodecFileName;
    if (checkpoint.is_gguf() || !std::filesystem::exists(path)) {
      fail(ErrorCode::kNotFound, "--kv ", flags.kv, ": ", checkpoint.path(),
           " has no cache codec; make one with 'lathe fit-kv ", checkpoint.path(), " --bits ",
           choice.bits, checkpoint.is_gguf() ? " -o FILE' and name it with --kv-codec" : "'");
    }
    loaded.path = path.string();
  }
  loaded.file = read_kv_codec(loaded.path);
  if ((!choice.method.empty() && loaded.file.method != choice.method) ||
      (choice.bits != 0 && loaded.file.bits != choice.bits)) {
    fail(ErrorCode::kInvalidArgument, "--kv ", flags.kv, ": ", loaded.path, " is a codec ",
         loaded.file.method, loaded.file.bits, "; take --kv ", loaded.file.method, loaded.file.bits,
         " or fit another");
  }
  check_kv_codec(loaded.file, checkpoint.config(), kv_model_fingerprint(checkpoint), loaded.path);
  loaded.codec = make_kv_codec(loaded.file, checkpoint.config());
  return loaded;
}

void add_kv_flags(CLI::App& command, KvFlags& flags) {
  command
      .add_option("--park-kv", flags.park,
                  "Keep finished and preempted sequences in this codec (aqua4, aqua3, aqua2), and "
                  "wake them when a prompt begins alike; the codec of --kv, if that is one")
      ->type_name("CODEC");
  command.add_option("--prefix-cache-ram-gb", flags.memory_gb, "Memory for parked sequences")
      ->capture_default_str()
      ->type_name("GB");
  command
      .add_option("--prefix-cache-dir", flags.directory,
                  "Keep parked sequences in this directory too, for later runs")
      ->type_name("DIR");
  command.add_option("--prefix-cache-disk-gb", flags.disk_gb, "Room in that directory")
      ->capture_default_str()
      ->type_name("GB");
}

void RunningKv::check_device(const Exec& exec) const {
  if (!exec.on_cuda()) return;
  const KvFormat live = choice_.live_format;
  const bool exact = model_options(flags_).dense_dtype == DType::kF32;
  if (exact && live != KvFormat::kF32) {
    fail(ErrorCode::kInvalidArgument, "--kv ", flags_.kv,
         ": on a GPU --dtype fp32 has a cache of f32; leave --kv out");
  }
  if (live != KvFormat::kF32 && live != KvFormat::kBF16 && live != KvFormat::kFp8 &&
      live != KvFormat::kHiggs4) {
    fail(ErrorCode::kInvalidArgument, "--kv ", flags_.kv,
         ": a GPU does not read this format; take bf16, fp8, higgs4, or a codec (aqua2, "
         "--kv-codec)");
  }
}

void RunningKv::load(const Checkpoint& checkpoint, const Exec& exec) {
  const KvFormat live = choice_.live_format;
  if (exec.on_cuda() && checkpoint.config().qkv_bias && live == KvFormat::kFp8) {
    print_warning(
        "--kv fp8: this model's keys have biases, much larger than what they say of a token, and "
        "on a GPU fp8 rounds both together: answers may be nonsense; take bf16, higgs4, or a "
        "codec, which takes the mean off ('lathe fit-kv', --kv-codec)");
  }
  if (!choice_.coded) return;
  codec_ = load_kv_codec(choice_, flags_, checkpoint);
#ifdef LATHE_HAS_CUDA
  const bool exact = model_options(flags_).dense_dtype == DType::kF32;
  if (exec.on_cuda() && !gpu_attends_to_codes(codec_->file, checkpoint.config(),
                                              exact ? KvFormat::kF32 : KvFormat::kBF16)) {
    print_warning(str(
        "--kv ", name(),
        ": with this codec and model a GPU rebuilds the whole context in every step; 2-bit codes "
        "of what 'lathe fit-kv' makes unless told otherwise it reads as they lie, several times "
        "as fast, where heads have 64 or 128 numbers and no layer's window slides"));
  }
#endif
}

void RunningKv::take(KvCodecFile file, const ModelConfig& config) {
  auto codec = make_kv_codec(file, config);
  codec_ = {.path = "", .file = std::move(file), .codec = std::move(codec)};
}

EngineOptions RunningKv::engine_options(EngineOptions options, const ModelConfig& config,
                                        const Exec& exec, int64_t draft_token_bytes) const {
  options.kv_format = choice_.live_format;
  options.kv_codec = codec_ ? codec_->codec.get() : nullptr;
  options.kv_codec_file = codec_ ? &codec_->file : nullptr;
  CacheMemory memory = cache_memory(exec, flags_.tensor_parallel);
  // A draft runs on the first of several GPUs: it leaves as much less on each.
  memory.draft_token_bytes = draft_token_bytes * flags_.tensor_parallel;
  return resolve(options, config, memory);
}

std::string RunningKv::name() const {
  if (!codec_) return std::string(kv_format_name(choice_.live_format));
  return str(codec_->file.method, codec_->file.bits);
}

std::unique_ptr<KvCache> RunningKv::make_cache(const Model& model, int64_t num_tokens,
                                               int64_t max_sequence_tokens) const {
  if (!codec_) return model.make_cache(choice_.live_format, num_tokens, max_sequence_tokens);
  // Room for every token both ways, so that a prompt of any length fits in one step.
  return model.make_coded_cache(*codec_->codec, {.live_format = choice_.live_format,
                                                 .live_tokens = num_tokens + kBlockSize,
                                                 .coded_tokens = num_tokens,
                                                 .max_sequence_tokens = max_sequence_tokens,
                                                 .file = &codec_->file});
}

std::unique_ptr<KvCache> RunningKv::make_batch_cache(const Model& model, int64_t num_sequences,
                                                     int64_t max_sequence_tokens,
                                                     int64_t max_rows) const {
  const int64_t num_tokens = num_sequences * blocks_for(max_sequence_tokens) * kBlockSize;
  if (!codec_) return model.make_cache(choice_.live_format, num_tokens, max_sequence_tokens);
  CodedKvCacheOptions options =
      coded_cache_options(codec_->codec->policy(), choice_.live_format, num_sequences, max_rows,
                          num_tokens, max_sequence_tokens);
  options.file = &codec_->file;
  return model.make_coded_cache(*codec_->codec, options);
}

KvParking::KvParking(const ModelFlags& model, const KvFlags& flags)
    : codec_flags_(model), running_flags_(model), flags_(flags) {
  if (!flags.park.empty()) {
    const bool runs_coded = kv_choice(model).coded;
    if (!parse_codec_name(flags.park, choice_)) {
      fail(ErrorCode::kInvalidArgument, "--park-kv ", flags.park,
           ": unknown; aqua4, aqua3 or aqua2");
    }
    if (runs_coded && !model.kv.empty() && model.kv != flags.park) {
      fail(ErrorCode::kInvalidArgument, "--park-kv ", flags.park, " with --kv ", model.kv,
           ": running sequences are coded already, and parked as they are; name the same codec "
           "twice, or leave one out");
    }
    parks_running_codes_ = runs_coded && !model.kv.empty();
    codec_flags_.kv = flags.park;
    // Else --kv-codec is what --park-kv names.
    if (!parks_running_codes_) running_flags_.kv_codec.clear();
  } else if (!flags.directory.empty()) {
    fail(ErrorCode::kInvalidArgument, "--prefix-cache-dir ", flags.directory,
         ": what is kept there is parked; add --park-kv aqua2");
  }
  bytes_of("--prefix-cache-ram-gb", flags.memory_gb);
  bytes_of("--prefix-cache-disk-gb", flags.disk_gb);
}

void KvParking::load(const Checkpoint& checkpoint) {
  if (!choice_.coded || parks_running_codes_) return;
  codec_ =
      with_context("--park-kv", [&] { return load_kv_codec(choice_, codec_flags_, checkpoint); });
}

void KvParking::attach(Engine& engine, const Model& model, const Checkpoint& checkpoint,
                       Exec& exec) const {
  if (!choice_.coded) return;
  const EngineOptions& options = engine.options();
  const KvCodecFile& file = parks_running_codes_ ? *options.kv_codec_file : codec_->file;
  const KvCodec& codec = parks_running_codes_ ? *options.kv_codec : *codec_->codec;
  std::unique_ptr<PieceParker> parker =
      model.make_parker(engine.cache(), file, codec, options.max_sequence_tokens);
  const ParkedStoreOptions store = {
      .memory_bytes = bytes_of("--prefix-cache-ram-gb", flags_.memory_gb),
      .directory = flags_.directory,
      .disk_bytes = bytes_of("--prefix-cache-disk-gb", flags_.disk_gb)};
  engine.set_parker(std::make_unique<PrefixParker>(
      std::move(parker), store,
      str("pieces 5, ", kv_format_name(options.kv_format), ", ", model_fingerprint(checkpoint),
          ", ", kv_codec_fingerprint(file),
          has_moving_rope(checkpoint.config()) ? str(", context ", options.max_sequence_tokens)
                                               : "",
          exec.on_cuda() ? ", on a GPU" : "", parks_running_codes_ ? ", of running codes" : ""),
      exec));
}

}  // namespace lathe
