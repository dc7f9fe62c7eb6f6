#include "cli/kv_flags.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "cache/predictive_codec.h"

namespace lathe {

KvChoice kv_choice(const ModelFlags& flags) {
  const bool exact = model_options(flags).dense_dtype == DType::kF32;
  KvChoice choice;
  choice.live_format = exact ? KvFormat::kF32 : KvFormat::kBF16;
  choice.coded = !flags.kv_codec.empty();
  if (flags.kv.empty()) return choice;
  for (const std::string method : {"aqua", "higgs", "int"}) {
    const bool names_codec = method == "aqua" || choice.coded;
    if (!names_codec || flags.kv.size() != method.size() + 1 || !flags.kv.starts_with(method)) {
      continue;
    }
    const int bits = flags.kv.back() - '0';
    if (bits < 2 || bits > 4) break;
    choice.coded = true;
    choice.method = method;
    choice.bits = bits;
    return choice;
  }
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

KvFormat live_kv_format(const ModelFlags& flags) {
  const KvChoice choice = kv_choice(flags);
  if (choice.coded) {
    fail(ErrorCode::kInvalidArgument, "--kv ", flags.kv.empty() ? flags.kv_codec : flags.kv,
         ": this command reads live caches only; take bf16, int8, q4 or higgs4");
  }
  return choice.live_format;
}

LoadedKvCodec load_kv_codec(const KvChoice& choice, const ModelFlags& flags,
                            const Checkpoint& checkpoint) {
  LoadedKvCodec loaded;
  loaded.path = flags.kv_codec;
  if (loaded.path.empty()) {
    const std::filesystem::path model(checkpoint.path());
    const std::filesystem::path path = model / kKvCodecFileName;
    if (checkpoint.is_gguf() || !std::filesystem::exists(path)) {
      fail(ErrorCode::kInvalidArgument, "--kv ", flags.kv, ": ", checkpoint.path(),
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

double kv_sequence_bits(const KvCodecFile& file, double exact_bits, int64_t num_tokens) {
  // Chunks are encoded as soon as `window` tokens behind them are there.
  const int64_t chunks = std::max<int64_t>(0, num_tokens - file.window) / file.chunk_tokens;
  const int64_t coded = std::max<int64_t>(0, chunks * file.chunk_tokens - file.num_sinks);
  return (static_cast<double>(coded) * kv_bits_per_value(file) +
          static_cast<double>(num_tokens - coded) * exact_bits) /
         static_cast<double>(num_tokens);
}

}  // namespace lathe
