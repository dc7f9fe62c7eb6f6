#include "compress/kv_fit_model.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <filesystem>
#include <memory>
#include <utility>

#include "base/error.h"
#include "compress/embed_sequences.h"
#include "compress/hidden_store.h"
#include "compress/layer_pass.h"
#include "compress/speed_probe.h"

namespace lathe {
namespace {

constexpr int64_t kRowsPerStep = 2048;

using Clock = std::chrono::steady_clock;

// A directory of working files that does not outlive the run.
class WorkingDirectory {
 public:
  explicit WorkingDirectory(std::string path) : path_(std::move(path)) {
    std::error_code error;
    if (!std::filesystem::create_directory(path_, error) && error) {
      fail(ErrorCode::kIo, "making the working directory ", path_, ": ", error.message());
    }
  }
  ~WorkingDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  WorkingDirectory(const WorkingDirectory&) = delete;
  WorkingDirectory& operator=(const WorkingDirectory&) = delete;

 private:
  std::string path_;
};

// Which calibration tokens of the share are kept, and what a fit sees them for.
struct TokenRows {
  std::vector<int32_t> row;  // [all tokens], -1 for a sink of every codec
  int64_t count = 0;
  struct Parts {
    std::vector<int32_t> train, held_out;
  };
  std::vector<Parts> parts;  // of each codec
};
TokenRows plan_rows(const KvFitJob& job, const RankShare& share) {
  TokenRows rows;
  rows.parts.resize(job.options.size());
  int64_t fewest_sinks = job.options.front().num_sinks;
  for (const KvFitOptions& options : job.options) {
    fewest_sinks = std::min(fewest_sinks, options.num_sinks);
  }
  const auto every = static_cast<std::size_t>(job.held_out_every);
  for (auto i = static_cast<std::size_t>(share.begin); i < static_cast<std::size_t>(share.end);
       ++i) {
    for (std::size_t t = 0; t < job.sequences[i].size(); ++t) {
      if (static_cast<int64_t>(t) < fewest_sinks) {
        rows.row.push_back(-1);
        continue;
      }
      const auto row = static_cast<int32_t>(rows.count++);
      rows.row.push_back(row);
      for (std::size_t c = 0; c < rows.parts.size(); ++c) {
        if (static_cast<int64_t>(t) < job.options[c].num_sinks) continue;
        TokenRows::Parts& parts = rows.parts[c];
        (i % every == every - 1 ? parts.held_out : parts.train).push_back(row);
      }
    }
  }
  return rows;
}

void check_job(const KvFitJob& job, const Exec& exec) {
  if (exec.on_cuda() && job.ranks != nullptr && job.ranks->size() > 1) {
    fail(ErrorCode::kUnsupported, "fit-kv over ranks computes on CPUs only; use --device cpu");
  }
  if (job.held_out_every < 2 || static_cast<int64_t>(job.sequences.size()) < job.held_out_every) {
    fail(ErrorCode::kInvalidArgument, job.sequences.size(), " calibration sequences, every ",
         job.held_out_every, "th of them held out: none is left to judge by; raise --samples");
  }
  int64_t tokens = 0;
  for (const auto& sequence : job.sequences) tokens += static_cast<int64_t>(sequence.size());
  if (tokens > (int64_t{1} << 30)) {
    fail(ErrorCode::kInvalidArgument, tokens, " calibration tokens are more than 2^30");
  }
  check_token_ids(job.sequences, job.source->config().vocab_size);
  if (job.options.empty()) fail(ErrorCode::kInvalidArgument, "no codec to fit");
  for (const KvFitOptions& options : job.options) {
    check_kv_fit_options(options, job.source->config());
  }
}

// Ranks that were given different things would wait for one another, or fit to a mixture.
void check_same_job(const KvFitJob& job, Communicator& ranks) {
  if (ranks.size() == 1) return;
  const std::string own =
      str("model ", kv_model_fingerprint(*job.source), " calibration ", digest_of(job.sequences));
  std::string first = own;
  broadcast_text(ranks, 0, first);
  if (own != first) {
    fail(ErrorCode::kInvalidArgument, "another model or calibration text than ",
         rank_name(ranks, 0), " has: ", own, " instead of ", first);
  }
}

}  // namespace

std::vector<KvFitResult> fit_kv_codecs(const KvFitJob& job, const KvFitCallbacks& callbacks,
                                       Exec& exec) {
  check_job(job, exec);
  const Clock::time_point start = Clock::now();
  const ModelConfig& config = job.source->config();
  SoloCommunicator solo;
  Communicator& ranks = job.ranks != nullptr ? *job.ranks : solo;
  check_same_job(job, ranks);
  const RankShare own = share_of(std::ssize(job.sequences), ranks.rank(), ranks.size());
  const std::vector<std::vector<int32_t>> sequences(job.sequences.begin() + own.begin,
                                                    job.sequences.begin() + own.end);
  TokenRows rows = plan_rows(job, own);
  std::vector<KvFitResult> results(job.options.size());
  std::deque<KvFitter> fitters;
  for (std::size_t c = 0; c < results.size(); ++c) {
    TokenRows::Parts& parts = rows.parts[c];
    double counts[] = {static_cast<double>(parts.train.size()),
                       static_cast<double>(parts.held_out.size())};
    all_reduce_sum(ranks, counts);
    results[c].train_tokens = static_cast<int64_t>(counts[0]);
    results[c].held_out_tokens = static_cast<int64_t>(counts[1]);
    fitters.emplace_back(config, job.options[c], std::move(parts.train), std::move(parts.held_out),
                         rows.count, &ranks);
  }

  const std::string working_directory =
      ranks.rank() == 0 ? job.working_directory : str(job.working_directory, ".", ranks.rank());
  const WorkingDirectory directory(working_directory);
  HiddenStore store(working_directory, lengths_of(sequences), config.hidden_size);
  embed_sequences(*job.source, sequences, DType::kBF16, nullptr, store, exec);
  LayerPass pass(config, store, kRowsPerStep, exec);
  const int64_t width = config.kv_size();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const auto report = [&](double share) {
      if (callbacks.on_progress) {
        callbacks.on_progress(
            layer, (static_cast<double>(layer) + share) / static_cast<double>(config.num_layers));
      }
      if (callbacks.canceled && callbacks.canceled()) {
        fail(ErrorCode::kCanceled, "stopped at layer ", layer, " of ", config.num_layers);
      }
    };
    report(0);
    Buffer keys(rows.count * width * int64_t{sizeof(float)});
    Buffer values(rows.count * width * int64_t{sizeof(float)});
    with_context(str("layer ", layer), [&] {
      // As the model is served: bf16 weights stay so, quantized ones run by their kernels.
      const CalibrationLayer packed =
          pass.pack(load_layer_weights(*job.source, layer, DType::kBF16), exec, ComputeType::kAuto);
      pass.propagate_and_capture(
          packed,
          [&](int64_t first_token, const float* k, const float* v, int64_t stride, int64_t count) {
            exec.threads.parallel_for(count, 64, [&](int64_t begin, int64_t end, int) {
              for (int64_t t = begin; t < end; ++t) {
                const int32_t row = rows.row[static_cast<std::size_t>(first_token + t)];
                if (row < 0) continue;
                const auto bytes = static_cast<std::size_t>(width) * sizeof(float);
                std::memcpy(keys.as<float>() + row * width, k + t * stride, bytes);
                std::memcpy(values.as<float>() + row * width, v + t * stride, bytes);
              }
            });
          },
          [&](int64_t tokens) {
            report(0.9 * static_cast<double>(tokens) / static_cast<double>(store.num_tokens()));
          },
          exec);
      job.source->release_pages();
    });
    for (KvFitter& fitter : fitters) {
      const bool last = &fitter == &fitters.back();
      fitter.add_layer(last ? std::move(keys) : keys.clone(),
                       last ? std::move(values) : values.clone(), exec);
    }
  }
  for (std::size_t c = 0; c < results.size(); ++c) {
    KvFitResult& result = results[c];
    result.layers = fitters[c].reports();
    result.file = fitters[c].finish();
    result.file.model_fingerprint = kv_model_fingerprint(*job.source);
    result.file.calibration_hash = digest_of(job.sequences);
    result.file.created_by = job.created_by;
    result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return results;
}

KvFitPlan plan_kv_fit(const Checkpoint& source, std::span<const KvFitOptions> options,
                      int64_t samples, int64_t seq_len, Exec& exec) {
  const ModelConfig& config = source.config();
  for (const KvFitOptions& codec : options) check_kv_fit_options(codec, config);
  const double tokens = static_cast<double>(samples) * static_cast<double>(seq_len);
  const auto width = static_cast<double>(config.kv_size());
  double linear_flops = 0;
  double largest_layer = 0;  // weights
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    double weights = 0;
    for (const LinearSlot& slot : layer_slots(config, layer)) {
      const double size = static_cast<double>(slot.n) * static_cast<double>(slot.k);
      const double reached =
          slot.expert < 0 ? tokens
                          : tokens * static_cast<double>(config.num_experts_per_token) /
                                static_cast<double>(std::max<int64_t>(config.num_experts, 1));
      weights += size;
      linear_flops += 2 * reached * size;
    }
    largest_layer = std::max(largest_layer, weights);
  }
  // Attention, causal, in fp32.
  const double attention_flops = tokens * static_cast<double>(seq_len) *
                                 static_cast<double>(config.q_size()) * 2 *
                                 static_cast<double>(config.num_layers);
  // Moments of keys and of values with their inputs, three to four predictions and searches.
  const auto layers = static_cast<double>(config.num_layers);
  const auto num_codecs = static_cast<double>(options.size());
  const double fit_flops =
      num_codecs * tokens * layers * (2 * 9 * width * width + 3 * 2 * 4 * width * width);
  // A Hopper GPU computes the layers faster than these cores fit the predictors.
  const double linear_rate =
      exec.on_cuda() ? 2e14
                     : 1e9 * measure_linear_gflops(std::min<int64_t>(config.hidden_size, 2048),
                                                   std::min<int64_t>(config.hidden_size, 2048),
                                                   ComputeType::kAuto, exec);
  const double gram_rate =
      1e9 * measure_gram_gflops(std::min<int64_t>(3 * config.kv_size(), 2048), exec);
  KvFitPlan plan;
  plan.seconds = linear_flops / linear_rate + (attention_flops + fit_flops) / gram_rate;
  plan.disk_bytes = 2 * tokens * static_cast<double>(config.hidden_size) * 4;
  const double rows = static_cast<double>(std::max<int64_t>(seq_len, kRowsPerStep));
  const double step =
      rows * 4 *
      (4 * static_cast<double>(config.hidden_size) +
       3 * static_cast<double>(std::max(config.intermediate_size, config.moe_intermediate_size)) +
       3 * static_cast<double>(config.q_size() + 2 * config.kv_size()));
  // The layer in bf16 as loaded, packed and as mapped pages; the embedding table comes before.
  const double embedding =
      static_cast<double>(config.vocab_size) * static_cast<double>(config.hidden_size) * 2;
  const auto num_rows = static_cast<int64_t>(tokens);
  double held_rows = 0;
  for (const KvFitOptions& codec : options) {
    held_rows += static_cast<double>(KvFitter::memory_bytes(config, codec, num_rows));
    const bool predicts = codec.method == KvFitMethod::kAqua;
    plan.codec_bytes += layers * width * 2 * 2 + (predicts ? layers * 4 * width * width * 2 : 0);
  }
  plan.memory_bytes = std::max(embedding * 2, 8 * largest_layer + step + held_rows) + 64e6;
  return plan;
}

}  // namespace lathe
