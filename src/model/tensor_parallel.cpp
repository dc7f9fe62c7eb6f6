#include "model/tensor_parallel.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/rank_threads.h"
#include "cache/sharded_kv_cache.h"
#include "formats/sharded_checkpoint.h"
#include "kernels/collective/thread_collective.h"
#include "kernels/peaks/peaks.h"
#include "model/decoder.h"

#ifdef LATHE_HAS_CUDA
#include "kernels/collective/nccl_collective.h"
#include "model/cuda_decoder.h"
#endif

namespace lathe {
namespace {

// One rank's model and what it computes with. Used on the rank's thread only.
struct Rank {
  Rank(std::unique_ptr<Collective> to_others, int num_threads, int cuda_device)
      : threads(num_threads),
        exec{threads, workspace, cuda_device},
        collective(std::move(to_others)) {}

  ThreadPool threads;
  Workspace workspace;
  Exec exec;
  std::unique_ptr<Collective> collective;
  std::unique_ptr<Model> model;
  // Of the step in progress: copies, since every rank's cache advances its sequences itself.
  std::vector<KvSequence> sequences;
  std::vector<KvRows> rows;

  void copy_sequences(std::span<const KvRows> from) {
    if (sequences.size() < from.size()) sequences.resize(from.size());
    rows.assign(from.begin(), from.end());
    for (std::size_t i = 0; i < from.size(); ++i) {
      sequences[i] = *from[i].sequence;
      rows[i].sequence = &sequences[i];
    }
  }
};

class TensorParallelModel final : public Model {
 public:
  TensorParallelModel(const ModelConfig& config,
                      std::vector<std::unique_ptr<Collective>> collectives, const RankLoader& load,
                      const Exec& exec);
  ~TensorParallelModel() override;

  const ModelConfig& config() const override { return config_; }
  int64_t weight_bytes() const override;
  std::string kernels() const override;
  double measure_bandwidth(Exec& exec) const override;
  void set_profile(StepProfile* profile) override { first().set_profile(profile); }
  void learn_key_means(std::span<const std::vector<int32_t>> texts, Exec&) override {
    run([&](Rank& rank) { rank.model->learn_key_means(texts, rank.exec); });
  }
  std::unique_ptr<KvCache> make_cache(KvFormat format, int64_t num_tokens,
                                      int64_t max_sequence_tokens) const override;
  std::unique_ptr<KvCache> make_coded_cache(const KvCodec&,
                                            const CodedKvCacheOptions&) const override {
    fail_one_rank_only("a coded cache");
  }
  KvRopes kv_ropes(int64_t) const override { fail_one_rank_only("a parked cache"); }
  void forward(const ForwardBatch& batch, KvCache& cache, float* logits, float* hidden,
               Exec& exec) override;
  const float* forward_on_device(const ForwardBatch& batch, KvCache& cache, Exec& exec) override;
  bool can_sample() const override { return first().can_sample(); }
  void forward_and_sample(const ForwardBatch& batch, KvCache& cache, const SampleBatch& sampling,
                          const SampledBatch& sampled, float* hidden, Exec& exec) override;
  double batch_tolerance() const override { return first().batch_tolerance(); }

 private:
  [[noreturn]] static void fail_one_rank_only(const char* what) {
    fail(ErrorCode::kUnsupported, what,
         " holds all KV heads together; with --tensor-parallel use --kv bf16 or fp8");
  }
  Model& first() const { return *ranks_.front()->model; }
  // body(rank) on every rank.
  template <typename Body>
  void run(const Body& body) const;
  // A step: first_rank(batch, cache, exec) on rank 0, forward() on the others.
  template <typename FirstRank>
  void step(const ForwardBatch& batch, KvCache& cache, bool wants_logits, Exec& exec,
            const FirstRank& first_rank);

  ModelConfig config_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  mutable RankThreads threads_;
};

TensorParallelModel::TensorParallelModel(const ModelConfig& config,
                                         std::vector<std::unique_ptr<Collective>> collectives,
                                         const RankLoader& load, const Exec& exec)
    : config_(config), threads_(static_cast<int>(collectives.size())) {
  const auto size = static_cast<int>(collectives.size());
  const int num_threads = std::max(1, exec.threads.num_threads() / size);
  for (auto& collective : collectives) {
    const int device = exec.on_cuda() ? exec.cuda_device + collective->rank() : -1;
    ranks_.push_back(std::make_unique<Rank>(std::move(collective), num_threads, device));
  }
  run([&](Rank& rank) { rank.model = load(*rank.collective, rank.exec); });
}

TensorParallelModel::~TensorParallelModel() {
  // Each on its own thread: what belongs to a GPU goes with that GPU current, and NCCL's ranks
  // leave together.
  threads_.run(
      [&](int rank) {
        ranks_[static_cast<std::size_t>(rank)]->model = nullptr;
        ranks_[static_cast<std::size_t>(rank)]->collective = nullptr;
      },
      [] {});
}

template <typename Body>
void TensorParallelModel::run(const Body& body) const {
  threads_.run(
      [&](int index) {
        Rank& rank = *ranks_[static_cast<std::size_t>(index)];
        with_context(str("rank ", index, " of ", ranks_.size()), [&] { body(rank); });
      },
      [&] { ranks_.front()->collective->abort(); });
}

int64_t TensorParallelModel::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& rank : ranks_) bytes += rank->model->weight_bytes();
  return bytes;
}

std::string TensorParallelModel::kernels() const {
  return str("tensor parallel over ", ranks_.size(), "\n", first().kernels());
}

double TensorParallelModel::measure_bandwidth(Exec& exec) const {
  if (!exec.on_cuda()) return measure_read_bandwidth(exec);  // they share one memory
  std::vector<double> bandwidths(ranks_.size());
  run([&](Rank& rank) {
    bandwidths[static_cast<std::size_t>(rank.collective->rank())] =
        rank.model->measure_bandwidth(rank.exec);
  });
  double sum = 0;
  for (const double bandwidth : bandwidths) sum += bandwidth;
  return sum;
}

std::unique_ptr<KvCache> TensorParallelModel::make_cache(KvFormat format, int64_t num_tokens,
                                                         int64_t max_sequence_tokens) const {
  std::vector<std::unique_ptr<PagedCache>> parts(ranks_.size());
  run([&](Rank& rank) {
    std::unique_ptr<KvCache> part = rank.model->make_cache(format, num_tokens, max_sequence_tokens);
    auto* paged = dynamic_cast<PagedCache*>(part.get());
    LATHE_CHECK(paged != nullptr);
    part.release();
    parts[static_cast<std::size_t>(rank.collective->rank())].reset(paged);
  });
  return std::make_unique<ShardedKvCache>(std::move(parts), max_sequence_tokens);
}

template <typename FirstRank>
void TensorParallelModel::step(const ForwardBatch& batch, KvCache& cache, bool wants_logits,
                               Exec& exec, const FirstRank& first_rank) {
  check_batch(batch);  // one error, and no rank has begun
  auto& sharded = static_cast<ShardedKvCache&>(cache);
  sharded.begin_step(batch.sequences, exec);
  try {
    run([&](Rank& rank) {
      rank.copy_sequences(batch.sequences);
      ForwardBatch own = batch;
      own.sequences = rank.rows;
      const int index = rank.collective->rank();
      if (index == 0) return first_rank(own, sharded.part(0), rank.exec);
      float unused = 0;  // says that logits are wanted; they go to rank 0
      rank.model->forward(own, sharded.part(index), wants_logits ? &unused : nullptr, nullptr,
                          rank.exec);
    });
  } catch (...) {
    sharded.abandon_step();
    throw;
  }
  sharded.commit();
}

void TensorParallelModel::forward(const ForwardBatch& batch, KvCache& cache, float* logits,
                                  float* hidden, Exec& exec) {
  step(batch, cache, logits != nullptr, exec,
       [&](const ForwardBatch& own, KvCache& part, Exec& rank_exec) {
         first().forward(own, part, logits, hidden, rank_exec);
       });
}

const float* TensorParallelModel::forward_on_device(const ForwardBatch& batch, KvCache& cache,
                                                    Exec& exec) {
  if (!exec.on_cuda()) return nullptr;
  const float* logits = nullptr;
  step(batch, cache, true, exec, [&](const ForwardBatch& own, KvCache& part, Exec& rank_exec) {
    logits = first().forward_on_device(own, part, rank_exec);
  });
  return logits;
}

void TensorParallelModel::forward_and_sample(const ForwardBatch& batch, KvCache& cache,
                                             const SampleBatch& sampling,
                                             const SampledBatch& sampled, float* hidden,
                                             Exec& exec) {
  step(batch, cache, true, exec, [&](const ForwardBatch& own, KvCache& part, Exec& rank_exec) {
    first().forward_and_sample(own, part, sampling, sampled, hidden, rank_exec);
  });
}

}  // namespace

std::unique_ptr<Model> make_tensor_parallel_model(
    const ModelConfig& config, std::vector<std::unique_ptr<Collective>> collectives,
    const RankLoader& load, const Exec& exec) {
  return std::make_unique<TensorParallelModel>(config, std::move(collectives), load, exec);
}

std::unique_ptr<Model> load_tensor_parallel_model(const Checkpoint& checkpoint,
                                                  const ModelOptions& options, Exec& exec) {
  const int size = options.tensor_parallel;
  shard_config(checkpoint.config(), size);  // before a GPU is asked for
  std::vector<std::unique_ptr<Collective>> collectives;
  if (exec.on_cuda()) {
#ifdef LATHE_HAS_CUDA
    collectives = make_nccl_collectives(exec.cuda_device, size);
#else
    fail(ErrorCode::kUnsupported, "this lathe was built without its CUDA backend (LATHE_CUDA=ON)");
#endif
  } else {
    collectives = make_thread_collectives(size);
  }
  const RankLoader load = [&](Collective& collective, Exec& rank_exec) -> std::unique_ptr<Model> {
    ModelOptions rank_options = options;
    if (collective.rank() != 0) rank_options.on_layer_loaded = nullptr;
    const auto shard = sharded_checkpoint(checkpoint, {collective.rank(), collective.size()});
#ifdef LATHE_HAS_CUDA
    if (rank_exec.on_cuda()) return load_cuda_model(*shard, rank_options, rank_exec, &collective);
#endif
    return load_cpu_model(*shard, rank_options, rank_exec, &collective);
  };
  return make_tensor_parallel_model(checkpoint.config(), std::move(collectives), load, exec);
}

}  // namespace lathe
