// Scheduling alone: sequences whose tokens come from nowhere, over a real cache.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>

#include "base/rng.h"
#include "model/model_runner.h"

namespace lathe {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.num_layers = 1;
  config.num_heads = config.num_kv_heads = 1;
  config.head_dim = 8;
  config.hidden_size = 8;
  config.max_position_embeddings = 512;
  return config;
}

class SchedulerTest : public testing::Test {
 protected:
  void start(const EngineOptions& options) {
    scheduler_.reset();
    options_ = options;
    cache_ = make_kv_cache(small_config(), KvFormat::kF32, options.cache_tokens,
                           options.max_sequence_tokens);
    scheduler_ = std::make_unique<Scheduler>(options, *cache_);
  }

  Sequence* add(int64_t prompt_size, int64_t max_new_tokens) {
    auto sequence = std::make_unique<Sequence>();
    sequence->id = next_id_++;
    sequence->prompt_size = prompt_size;
    sequence->max_new_tokens = max_new_tokens;
    sequence->tokens.assign(static_cast<std::size_t>(prompt_size), 1);
    sequence->kv = cache_->new_sequence();
    Sequence* raw = sequence.get();
    sequences_[raw->id] = std::move(sequence);
    scheduler_->add(raw);
    return raw;
  }

  // One step: checks the promises of the header, then lets every sequence that reached its end have
  // a token.
  std::vector<ScheduledRows> step() {
    std::vector<Sequence*> decoding;
    for (const auto& [id, sequence] : sequences_) {
      if (!sequence->kv.blocks.empty() && sequence->is_decoding())
        decoding.push_back(sequence.get());
    }
    const auto scheduled = scheduler_->schedule();
    const std::vector<ScheduledRows> rows(scheduled.begin(), scheduled.end());

    int64_t num_rows = 0;
    RequestId previous = 0;
    std::vector<KvRows> kv_rows;
    for (const ScheduledRows& r : rows) {
      EXPECT_GT(r.num_rows, 0);
      EXPECT_LE(r.num_rows, r.sequence->num_pending());
      EXPECT_GT(r.sequence->id, previous) << "not in order of arrival";
      previous = r.sequence->id;
      kv_rows.push_back({&r.sequence->kv, num_rows, r.num_rows});
      num_rows += r.num_rows;
    }
    EXPECT_LE(num_rows, options_.max_batch_tokens + 1);
    EXPECT_LE(static_cast<int64_t>(rows.size()), options_.max_num_seqs);
    for (Sequence* sequence : decoding) {
      const bool has_row = std::any_of(rows.begin(), rows.end(), [&](const ScheduledRows& r) {
        return r.sequence == sequence && r.num_rows == 1;
      });
      const bool was_preempted = sequence->kv.num_tokens == 0;
      EXPECT_TRUE(has_row || was_preempted) << "sequence " << sequence->id << " stalled";
    }

    cache_->begin_step(kv_rows, owned_.exec);
    const std::vector<float> zeros(static_cast<std::size_t>(num_rows * 8));
    cache_->append(0, zeros.data(), zeros.data(), zeros.data(), 8, owned_.exec);
    cache_->commit();
    for (const ScheduledRows& r : rows) {
      if (r.sequence->num_pending() > 0) continue;
      r.sequence->tokens.push_back(1);
      if (r.sequence->num_output() == r.sequence->max_new_tokens) {
        finished_.push_back(r.sequence->id);
        scheduler_->remove(r.sequence, true);
        sequences_.erase(r.sequence->id);
      }
    }
    return rows;
  }

  OwnedExec owned_{1};
  EngineOptions options_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::vector<RequestId> finished_;
  RequestId next_id_ = 1;
};

TEST_F(SchedulerTest, PromptsAreCutByTheBudget) {
  start({.max_num_seqs = 4,
         .max_batch_tokens = 50,
         .max_mixed_prefill_tokens = 10,
         .max_sequence_tokens = 512,
         .cache_tokens = 2048,
         .prefix_cache = false});
  Sequence* a = add(120, 5);
  Sequence* b = add(30, 5);
  auto rows = step();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].num_rows, 50);
  step();
  rows = step();  // 20 of a, its last; 30 of b
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].sequence, a);
  EXPECT_EQ(rows[0].num_rows, 20);
  EXPECT_EQ(rows[1].sequence, b);
  EXPECT_EQ(rows[1].num_rows, 30);
  add(100, 5);
  rows = step();  // two decode; the new prompt gets the smaller budget
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].num_rows, 1);
  EXPECT_EQ(rows[1].num_rows, 1);
  EXPECT_EQ(rows[2].num_rows, 10);
}

TEST_F(SchedulerTest, NobodyOvertakes) {
  start({.max_num_seqs = 4,
         .max_batch_tokens = 512,
         .max_mixed_prefill_tokens = 512,
         .max_sequence_tokens = 320,
         .cache_tokens = 320,
         .prefix_cache = false});
  add(200, 5);
  add(250, 5);  // does not fit beside the first
  add(10, 5);   // would
  EXPECT_EQ(step().size(), 1u);
  EXPECT_EQ(scheduler_->num_waiting(), 2);
  for (int i = 0; i < 30; ++i) step();
  EXPECT_EQ(finished_, (std::vector<RequestId>{1, 2, 3}));
}

TEST_F(SchedulerTest, TheYoungestIsPreempted) {
  start({.max_num_seqs = 4,
         .max_batch_tokens = 512,
         .max_mixed_prefill_tokens = 512,
         .max_sequence_tokens = 256,
         .cache_tokens = 256,
         .prefix_cache = false});
  Sequence* a = add(60, 150);
  Sequence* b = add(60, 120);
  while (scheduler_->num_preemptions() == 0) step();
  EXPECT_TRUE(b->kv.blocks.empty());
  EXPECT_FALSE(a->kv.blocks.empty());
  EXPECT_EQ(scheduler_->num_waiting(), 1);
  while (!sequences_.empty()) step();
  EXPECT_EQ(cache_->num_free_blocks(), cache_->num_blocks());
}

// Whatever arrives: everybody finishes, nothing leaks, and step() checks the promises on the way.
TEST_F(SchedulerTest, RandomLoadsFinish) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    EngineOptions options;
    options.max_num_seqs = 1 + static_cast<int64_t>(rng.below(8));
    options.max_batch_tokens = options.max_num_seqs + static_cast<int64_t>(rng.below(64));
    options.max_mixed_prefill_tokens = 1 + static_cast<int64_t>(rng.below(64));
    options.max_sequence_tokens = 192;
    options.cache_tokens = 192 + static_cast<int64_t>(rng.below(512));
    options.prefix_cache = seed % 2 == 1;
    start(options);
    finished_.clear();
    const int num_requests = 30;
    int added = 0;
    int steps = 0;
    while (added < num_requests || !sequences_.empty()) {
      ASSERT_LT(++steps, 200000) << "no end";
      if (added < num_requests && rng.below(3) == 0) {
        const auto prompt = 1 + static_cast<int64_t>(rng.below(150));
        add(prompt, 1 + static_cast<int64_t>(rng.below(static_cast<uint64_t>(191 - prompt))));
        ++added;
      }
      if (!sequences_.empty() && rng.below(20) == 0) {  // an abort
        Sequence* victim = sequences_.begin()->second.get();
        scheduler_->remove(victim, rng.below(2) == 0);
        finished_.push_back(victim->id);
        sequences_.erase(victim->id);
      }
      const bool had_work = !sequences_.empty();
      const auto rows = step();
      ASSERT_EQ(rows.empty(), !had_work);
      if (testing::Test::HasFailure()) return;
    }
    EXPECT_EQ(finished_.size(), static_cast<std::size_t>(num_requests));
    EXPECT_EQ(scheduler_->num_shared_tokens() > 0, options.prefix_cache);
    scheduler_.reset();  // forgets the finished ones
    EXPECT_EQ(cache_->num_free_blocks(), cache_->num_blocks());
  }
}

}  // namespace
}  // namespace lathe
