// --kv K and --kv-codec FILE: what the key-value cache stores; --park-kv and the prefix cache's
// flags: what is kept of sequences that do not run.
//
//   bf16, f32, fp8, int8, q4, higgs4 ...   live formats, read by attention as they lie
//   aqua2, aqua3, aqua4                    the codec that `lathe fit-kv` put into the model's
//   directory
//   --kv-codec FILE                        a codec from elsewhere, of any method; --kv must fit it
//
// With a codec the sinks and the latest window stay exact (cache/coded_kv_cache.h).
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

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

// The format, for commands that read live caches only. Throws kInvalidArgument for a coded one.
KvFormat live_kv_format(const ModelFlags& flags);

struct LoadedKvCodec {
  std::string path;
  KvCodecFile file;
  std::unique_ptr<KvCodec> codec;
};
// The codec that a choice with `coded` asks for. Throws kNotFound when there is none,
// kInvalidArgument when it is another than --kv names, or another model's; kCorruptData.
LoadedKvCodec load_kv_codec(const KvChoice& choice, const ModelFlags& flags,
                            const Checkpoint& checkpoint);

// Bits of a number of a sequence of num_tokens tokens, on average: codes with their scales (and
// latents), and the exact sinks, window and unfinished chunk at exact_bits.
double kv_sequence_bits(const KvCodecFile& file, double exact_bits, int64_t num_tokens);

struct KvFlags {
  std::string park;       // --park-kv
  std::string directory;  // --prefix-cache-dir
  double memory_gb = 0.25;
  double disk_gb = 8;
};
// --park-kv and the prefix cache's, for commands with an engine.
void add_kv_flags(CLI::App& command, KvFlags& flags);

// The caches of a command with an engine: its running sequences', and where it parks the others.
class KvSetup {
 public:
  // Throws kInvalidArgument for names that do not exist or do not go together. Opens nothing.
  KvSetup(const ModelFlags& model, const KvFlags& flags);

  // With the exact part's format in place of a codec: for LoadedModel.
  const ModelFlags& model_flags() const { return live_flags_; }
  const std::string& name() const { return flags_.kv; }  // as --kv has it; empty: the default
  // Reads what the names ask for. Throws what load_kv_codec() throws.
  void load(const Checkpoint& checkpoint);

  // Of running sequences, null when all their blocks are live; behind load().
  const KvCodec* codec() const { return running_ ? running_->codec.get() : nullptr; }
  const KvCodecFile* codec_file() const { return running_ ? &running_->file : nullptr; }
  // A cache with room for so many sequences of so many tokens. max_rows: of one step.
  std::unique_ptr<KvCache> make_cache(const Model& model, KvFormat live_format,
                                      int64_t num_sequences, int64_t max_sequence_tokens,
                                      int64_t max_rows) const;
  // Parks the engine's finished and preempted sequences, if --park-kv asks for it. This setup must
  // outlive the engine. Throws kIo when the directory cannot be used.
  void attach(Engine& engine, const Model& model, const Checkpoint& checkpoint, Exec& exec) const;

 private:
  const ModelFlags flags_;
  ModelFlags live_flags_;
  const KvFlags kv_flags_;
  KvChoice choice_;
  KvChoice park_choice_;
  std::optional<LoadedKvCodec> running_;
  std::optional<LoadedKvCodec> parking_;
};

}  // namespace lathe
