// --kv K and --kv-codec FILE: what the key-value cache stores; --park-kv and the prefix cache's
// flags: what is kept of sequences that do not run.
//
//   bf16, f32, fp8, int8, q4, higgs4 ...   live formats, read by attention as they lie
//   aqua2, aqua3, aqua4                    the codec that `lathe fit-kv` put into the model's
//   directory
//   --kv-codec FILE                        a codec from elsewhere, of any method; --kv must fit it
//
// --park-kv with the same codec as --kv parks running sequences' codes as they are.
// With a codec the sinks and the latest window stay exact (cache/coded_kv_cache.h).
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "cache/kv_codec.h"
#include "cache/kv_format.h"
#include "cli/flags.h"
#include "engine/engine.h"
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

// For what reads live caches only, before a model is loaded. Throws kInvalidArgument where the
// flags name a codec.
void check_live_cache(const ModelFlags& flags, std::string_view command);

struct LoadedKvCodec {
  std::string path;
  KvCodecFile file;
  std::unique_ptr<KvCodec> codec;
};
// The codec that a choice with `coded` asks for. Throws kNotFound when there is none,
// kInvalidArgument when it is another than --kv names, or another model's; kCorruptData.
LoadedKvCodec load_kv_codec(const KvChoice& choice, const ModelFlags& flags,
                            const Checkpoint& checkpoint);

// The cache of running sequences, as --kv and --kv-codec name it.
class RunningKv {
 public:
  // Reads no file. Throws kInvalidArgument for a name that does not exist.
  explicit RunningKv(const ModelFlags& flags) : flags_(flags), choice_(kv_choice(flags)) {}
  // Throws kInvalidArgument for a format that this device does not read.
  void check_device(const Exec& exec) const;
  // Reads the codec, if there is one; warns of a format that does not suit the model. Throws what
  // load_kv_codec() throws.
  void load(const Checkpoint& checkpoint, const Exec& exec);
  // Another codec instead of the file that the flags name; valid.
  void take(KvCodecFile file, const ModelConfig& config);

  // Of the whole cache, or of its exact part.
  KvFormat live_format() const { return choice_.live_format; }
  // Null: every block is live. Behind load().
  const LoadedKvCodec* codec() const { return codec_ ? &*codec_ : nullptr; }
  // The options, resolved, with this cache, which must outlive the engine; sized by what memory is
  // free. Behind the model, whose weights take theirs first, and behind the draft, which has a
  // cache too: draft_token_bytes of it for each token (LoadedDraft::cache_token_bytes()). Throws
  // what resolve() throws.
  EngineOptions engine_options(EngineOptions options, const ModelConfig& config, const Exec& exec,
                               int64_t draft_token_bytes = 0) const;
  std::string name() const;  // "bf16", "aqua2", ...
  // Empty caches; *this must outlive them. With room for num_tokens tokens, in steps of any size:
  std::unique_ptr<KvCache> make_cache(const Model& model, int64_t num_tokens,
                                      int64_t max_sequence_tokens) const;
  // With room for so many sequences, in steps of up to max_rows rows.
  std::unique_ptr<KvCache> make_batch_cache(const Model& model, int64_t num_sequences,
                                            int64_t max_sequence_tokens, int64_t max_rows) const;

 private:
  ModelFlags flags_;
  KvChoice choice_;
  std::optional<LoadedKvCodec> codec_;
};

inline constexpr const char* kCacheTokensHelp =
    "Tokens that the cache holds, of all sequences; 0: 1 GiB of them (with a draft model's), or "
    "one "
    "sequence of the model's whole context where that is more, but at most a quarter of free "
    "memory "
    "(half of a GPU's), and those of --context at the least";

struct KvFlags {
  std::string park;       // --park-kv
  std::string directory;  // --prefix-cache-dir
  double memory_gb = 0.25;
  double disk_gb = 8;
};
// --park-kv and the prefix cache's, for commands with an engine.
void add_kv_flags(CLI::App& command, KvFlags& flags);

// Where a command with an engine keeps the sequences that do not run.
class KvParking {
 public:
  // Throws kInvalidArgument for names that do not exist or do not go together. Opens nothing.
  KvParking(const ModelFlags& model, const KvFlags& flags);

  // For running sequences: without the codec that --kv-codec names for parking alone.
  const ModelFlags& model_flags() const { return running_flags_; }
  // Reads the codec. Throws what load_kv_codec() throws.
  void load(const Checkpoint& checkpoint);
  // Parks the engine's finished and preempted sequences, if --park-kv asks for it; behind load().
  // *this must outlive the engine. Throws kIo when the directory cannot be used.
  void attach(Engine& engine, const Model& model, const Checkpoint& checkpoint, Exec& exec) const;

 private:
  ModelFlags codec_flags_;  // that name the codec
  ModelFlags running_flags_;
  const KvFlags flags_;
  KvChoice choice_;
  bool parks_running_codes_ = false;    // by the engine's codec
  std::optional<LoadedKvCodec> codec_;  // else
};

}  // namespace lathe
