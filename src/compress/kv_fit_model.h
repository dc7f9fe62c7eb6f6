// fit-kv over a checkpoint: the model streamed layer by layer on exact caches, each layer's keys
// and values handed to KvFitter (kv_fit.h), or to several. Memory: one layer of the model, the keys
// and values of two for each codec; hidden states of all calibration tokens are in two working
// files. Ranks run sequences of their own, each with working files of its own, and share the
// moments of what they see.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "compress/kv_fit.h"
#include "formats/checkpoint.h"
#include "tensor/exec.h"

namespace lathe {

struct KvFitJob {
  const Checkpoint* source = nullptr;  // dense or quantized: it runs as it would be served
  std::vector<KvFitOptions> options;   // one codec each, at least one
  std::vector<std::vector<int32_t>> sequences;
  int64_t held_out_every = 8;     // every so many-th sequence judges instead of fitting; >= 2
  std::string working_directory;  // made (rank R > 0: with ".R" behind), and removed at the end
  std::string created_by;         // for people
  Communicator* ranks = nullptr;  // all of them have this same job; null: this process alone
};

struct KvFitCallbacks {
  std::function<void(int64_t layer, double fraction)> on_progress = nullptr;  // of the whole run
  // Asked after every step; true ends the run with kCanceled.
  std::function<bool()> canceled = nullptr;
};

struct KvFitResult {
  KvCodecFile file;
  std::vector<KvLayerReport> layers;
  double seconds = 0;
  int64_t train_tokens = 0;
  int64_t held_out_tokens = 0;
};

// One result for each of job.options, in one pass over the model; their `seconds` are the whole
// run's. On a GPU the model runs there and the fit here. Throws kInvalidArgument (options, no
// sequences to judge by), kUnsupported, kCanceled, kIo.
std::vector<KvFitResult> fit_kv_codecs(const KvFitJob& job, const KvFitCallbacks& callbacks,
                                       Exec& exec);

// What a run will take, without starting it: from shapes and two measurements of half a second.
struct KvFitPlan {
  double memory_bytes = 0;  // peak
  double disk_bytes = 0;    // working files, gone at the end
  double seconds = 0;
  double codec_bytes = 0;  // of kv_codec.safetensors
};
KvFitPlan plan_kv_fit(const Checkpoint& source, std::span<const KvFitOptions> options,
                      int64_t samples, int64_t seq_len, Exec& exec);

}  // namespace lathe
