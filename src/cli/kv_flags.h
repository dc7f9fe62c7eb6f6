// --kv K and --kv-codec FILE: what the key-value cache stores.
//
//   bf16, f32, fp8, int8, q4, higgs4 ...   live formats, read by attention as they lie
//   aqua2, aqua3, aqua4                    the codec that `lathe fit-kv` put into the model's
//   directory
//   --kv-codec FILE                        a codec from elsewhere, of any method; --kv must fit it
//
// With a codec the sinks and the latest window stay exact (cache/coded_kv_cache.h).
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "cache/kv_codec.h"
#include "cache/kv_format.h"
#include "cli/flags.h"
#include "formats/checkpoint.h"
#include "formats/kv_codec_file.h"

namespace lathe {

// What the flags ask for, before any file is read.
struct KvChoice {
  KvFormat live_format = KvFormat::kBF16;  // of the whole cache, or of its exact part
  bool coded = false;
  std::string method;  // of the codec: "aqua"; empty: any
  int bits = 0;        // likewise; 0: any
};
// Throws kInvalidArgument for a name that does not exist.
KvChoice kv_choice(const ModelFlags& flags);

// The format, for commands that read live caches only. Throws kInvalidArgument for a coded one.
KvFormat live_kv_format(const ModelFlags& flags);

struct LoadedKvCodec {
  std::string path;
  KvCodecFile file;
  std::unique_ptr<KvCodec> codec;
};
// The codec that a choice with `coded` asks for. Throws kInvalidArgument when there is none, when
// it is another than --kv names, or another model's; kCorruptData.
LoadedKvCodec load_kv_codec(const KvChoice& choice, const ModelFlags& flags,
                            const Checkpoint& checkpoint);

// Bits of a number of a sequence of num_tokens tokens, on average: codes with their scales (and
// latents), and the exact sinks, window and unfinished chunk at exact_bits.
double kv_sequence_bits(const KvCodecFile& file, double exact_bits, int64_t num_tokens);

}  // namespace lathe
