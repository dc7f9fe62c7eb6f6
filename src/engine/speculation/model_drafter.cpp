#include "engine/speculation/model_drafter.h"

#include <algorithm>
#include <chrono>
#include <limits>

namespace lathe {
namespace {

constexpr int kMaxSamplers = 8;
constexpr double kSteep = 3;  // times the time of one row

}  // namespace

ModelDrafter::ModelDrafter(Model& model, std::unique_ptr<KvCache> cache, int64_t target_vocab_size,
                           const ModelDrafterOptions& options, Exec& exec)
    : model_(model),
      cache_(std::move(cache)),
      target_vocab_size_(target_vocab_size),
      options_(options),
      exec_(exec),
      prefixes_(*cache_),
      device_sampling_(model.config().vocab_size) {
  for (int i = 0; i < std::min(exec.threads.num_threads(), kMaxSamplers); ++i) {
    samplers_.emplace_back(target_vocab_size);
  }
  const auto max_seqs = static_cast<std::size_t>(options.max_num_seqs);
  const auto max_rows = static_cast<std::size_t>(options.max_batch_tokens) + 2 * max_seqs;
  known_.reserve(max_seqs);
  drafting_.reserve(max_seqs);
  token_ids_.reserve(max_rows);
  positions_.reserve(max_rows);
  kv_rows_.reserve(max_seqs);
  logit_rows_.reserve(max_seqs);
  if (model.config().vocab_size != target_vocab_size) {
    padded_logits_.reserve(static_cast<int64_t>(samplers_.size()) * target_vocab_size *
                           static_cast<int64_t>(sizeof(float)));
  }
}

ModelDrafter::~ModelDrafter() {
  for (Sequence* sequence : known_) cache_->release(sequence->draft_state.kv);
}

void ModelDrafter::propose(std::span<const DraftJob> jobs) {
  try {
    draft_all(jobs);
  } catch (...) {
    for (const DraftJob& job : jobs) job.sequence->take_back(job.sequence->draft.tokens);
    throw;
  }
  for (const DraftJob& job : jobs) job.sequence->take_back(job.sequence->draft.tokens);
}

void ModelDrafter::draft_all(std::span<const DraftJob> jobs) {
  // What may be spent on catching up beyond a token or two each.
  int64_t budget =
      jobs.size() == 1 ? std::numeric_limits<int64_t>::max() : options_.max_mixed_prefill_tokens;
  drafting_.clear();
  for (const DraftJob& job : jobs) {
    Sequence& sequence = *job.sequence;
    if (!begin(sequence)) continue;
    drafting_.push_back({.sequence = &sequence, .max_tokens = job.max_tokens, .num_rows = 0});
  }
  while (!drafting_.empty()) {
    int64_t room = options_.max_batch_tokens;
    for (Drafting& d : drafting_) {
      DraftState& state = d.sequence->draft_state;
      const int64_t pending = d.sequence->size() + d.sequence->draft.size() - state.kv.num_tokens;
      const int64_t extra = std::min({pending - 1, budget, room});
      d.num_rows = pending <= 2 ? pending : extra;
      d.row = -1;
      if (pending > 2) {
        d.num_rows = extra == pending - 1 ? pending : extra;
        budget -= extra;
        room -= extra;
        d.goes_on = d.num_rows > 0;  // too long for now: goes on in the next step of the engine
      }
      if (d.goes_on && !make_room(*d.sequence, d.num_rows)) d.goes_on = false;
    }
    std::erase_if(drafting_, [](const Drafting& d) { return !d.goes_on; });
    if (drafting_.empty()) break;
    run_step();
    choose_tokens();
    std::erase_if(drafting_, [](const Drafting& d) { return !d.goes_on; });
  }
}

// Brings the sequence's cache back to what is true of it. False when it cannot be drafted for.
bool ModelDrafter::begin(Sequence& sequence) {
  DraftState& state = sequence.draft_state;
  const auto usable = [&](int32_t token) { return token < model_.config().vocab_size; };
  if (state.cannot_draft || sequence.size() >= cache_->max_sequence_tokens()) return false;
  if (state.kv.blocks.capacity() == 0) state.kv = cache_->new_sequence();
  if (state.kv.num_tokens == 0) {
    if (std::find(known_.begin(), known_.end(), &sequence) == known_.end()) {
      known_.push_back(&sequence);
    }
    state.base = 0;
    state.fed.clear();
    state.fed.reserve(kMaxDraftTokens + 1);
    if (options_.prefix_cache) share_prefix(sequence);
  }
  const std::span<const int32_t> newer =
      std::span<const int32_t>(sequence.tokens).subspan(static_cast<std::size_t>(state.base));
  state.base += common_prefix(state.fed, newer);
  state.fed.clear();
  state.base = std::min(state.base, sequence.size() - 1);  // the last token's logits are wanted
  cache_->truncate(state.kv, std::min(state.base, state.kv.num_tokens));
  state.base = state.kv.num_tokens;
  for (std::size_t i = static_cast<std::size_t>(state.base); i < sequence.tokens.size(); ++i) {
    if (!usable(sequence.tokens[i])) state.cannot_draft = true;
  }
  if (state.cannot_draft) cache_->release(state.kv);
  return !state.cannot_draft;
}

void ModelDrafter::share_prefix(Sequence& sequence) {
  const auto tokens = std::span<const int32_t>(sequence.tokens)
                          .first(static_cast<std::size_t>(sequence.size() - 1));
  PrefixCache::Match best = prefixes_.find(tokens);
  for (const Sequence* other : known_) {
    const DraftState& state = other->draft_state;
    if (other == &sequence) continue;
    const auto sure = std::min(state.base, state.kv.num_tokens);
    const auto computed =
        std::span<const int32_t>(other->tokens).first(static_cast<std::size_t>(sure));
    const int64_t size = common_prefix(tokens, computed);
    if (size > best.num_tokens && size >= PrefixCache::kMinTokens) best = {&state.kv, size};
  }
  if (best.kv == nullptr) return;
  cache_->fork(*best.kv, best.num_tokens, sequence.draft_state.kv);
  sequence.draft_state.base = best.num_tokens;
}

// Drafting is a luxury: a sequence that has no room here goes without.
bool ModelDrafter::make_room(Sequence& sequence, int64_t num_rows) {
  KvSequence& kv = sequence.draft_state.kv;
  if (kv.num_tokens + num_rows > cache_->max_sequence_tokens()) return false;
  while (!cache_->reserve(kv, num_rows)) {
    if (!prefixes_.evict_oldest()) return false;
  }
  return true;
}

void ModelDrafter::run_step() {
  token_ids_.clear();
  positions_.clear();
  kv_rows_.clear();
  logit_rows_.clear();
  for (Drafting& d : drafting_) {
    Sequence& sequence = *d.sequence;
    DraftState& state = sequence.draft_state;
    kv_rows_.push_back({.sequence = &state.kv,
                        .row_begin = static_cast<int64_t>(token_ids_.size()),
                        .num_rows = d.num_rows});
    for (int64_t i = 0; i < d.num_rows; ++i) {
      const int64_t position = state.kv.num_tokens + i;
      const bool is_draft = position >= sequence.size();
      token_ids_.push_back(
          is_draft ? sequence.draft.tokens[static_cast<std::size_t>(position - sequence.size())]
                   : sequence.tokens[static_cast<std::size_t>(position)]);
      positions_.push_back(position);
      if (is_draft) state.fed.push_back(token_ids_.back());
    }
    const int64_t end = state.kv.num_tokens + d.num_rows;
    state.base = std::max(state.base, std::min(end, sequence.size()));
    if (end < sequence.size() + sequence.draft.size()) continue;
    d.row = static_cast<int64_t>(logit_rows_.size());
    logit_rows_.push_back(static_cast<int32_t>(token_ids_.size()) - 1);
  }
  const ForwardBatch batch = {.token_ids = token_ids_,
                              .positions = positions_,
                              .sequences = kv_rows_,
                              .logit_rows = logit_rows_};
  chose_on_device_ = chooses_on_device();
  if (chose_on_device_) {
    device_sampling_.clear();
    for (const Drafting& d : drafting_) {
      if (d.row >= 0) device_sampling_.add(*d.sequence);
    }
    model_.forward_and_sample(batch, *cache_, device_sampling_.batch(), device_sampling_.results(),
                              nullptr, exec_);
    return;
  }
  const int64_t vocab_size = model_.config().vocab_size;
  logits_.reserve(static_cast<int64_t>(logit_rows_.size()) * vocab_size *
                  static_cast<int64_t>(sizeof(float)));
  model_.forward(batch, *cache_, logit_rows_.empty() ? nullptr : logits_.as<float>(), nullptr,
                 exec_);
}

// A GPU's choice is a token; the distribution that a draft was drawn from stays there.
bool ModelDrafter::chooses_on_device() const {
  return model_.can_sample() && !keeps_logits_ && !logit_rows_.empty() &&
         model_.config().vocab_size == target_vocab_size_ &&
         std::all_of(drafting_.begin(), drafting_.end(), [](const Drafting& d) {
           return d.row < 0 || d.sequence->request.params.temperature == 0;
         });
}

void ModelDrafter::choose_tokens() {
  if (chose_on_device_) {
    for (Drafting& d : drafting_) {
      if (d.row < 0) continue;
      try {
        d.token = device_sampling_.take(d.row, {}, d.sequence->size(), -1, {}).sampled.token;
      } catch (const Error&) {
        d.goes_on = false;
      }
    }
  } else {
    choose_from_logits();
  }
  for (Drafting& d : drafting_) {
    if (d.row < 0 || !d.goes_on) continue;
    Sequence& sequence = *d.sequence;
    sequence.draft.add(d.token);
    sequence.advance(d.token);
    d.goes_on = sequence.draft.size() < d.max_tokens && !sequence.is_end_token(d.token) &&
                d.token < model_.config().vocab_size;
  }
}

void ModelDrafter::choose_from_logits() {
  const auto num_drafting = static_cast<int64_t>(drafting_.size());
  const auto num_samplers = static_cast<int64_t>(samplers_.size());
  const int64_t grain = std::max<int64_t>(1, (num_drafting + num_samplers - 1) / num_samplers);
  const int64_t vocab_size = model_.config().vocab_size;
  exec_.threads.parallel_for(num_drafting, grain, [&](int64_t begin, int64_t end, int) {
    const int64_t sampler = begin / grain;
    for (int64_t i = begin; i < end; ++i) {
      Drafting& d = drafting_[static_cast<std::size_t>(i)];
      if (d.row < 0) continue;
      std::span<float> row(logits_.as<float>() + d.row * vocab_size,
                           static_cast<std::size_t>(std::min(vocab_size, target_vocab_size_)));
      const std::span<const float> common = row;  // ids that both models have
      if (vocab_size < target_vocab_size_) {
        float* padded = padded_logits_.as<float>() + sampler * target_vocab_size_;
        std::fill(std::copy(row.begin(), row.end(), padded), padded + target_vocab_size_,
                  -std::numeric_limits<float>::infinity());
        row = {padded, static_cast<std::size_t>(target_vocab_size_)};
      }
      Sequence& sequence = *d.sequence;
      try {
        // Before the transforms: a judge compares the models.
        if (keeps_logits_) {
          sequence.draft.logits_width = common.size();
          sequence.draft.logits.insert(sequence.draft.logits.end(), common.begin(), common.end());
        }
        d.token = samplers_[static_cast<std::size_t>(sampler)].draft(
            row, sequence.request.params, sequence.counts, sequence.request.constraint.get(),
            sequence.size() + sequence.draft.size(), sequence.draft.probs);
      } catch (const Error&) {
        d.goes_on = false;  // a draft model without a finite logit: what is drafted so far stands
      }
    }
  });
}

void ModelDrafter::retire(Sequence& sequence) {
  const auto known = std::find(known_.begin(), known_.end(), &sequence);
  if (known == known_.end()) return;
  known_.erase(known);
  DraftState& state = sequence.draft_state;
  const std::span<const int32_t> newer =
      std::span<const int32_t>(sequence.tokens)
          .subspan(static_cast<std::size_t>(std::min(state.base, sequence.size())));
  const int64_t sure = state.base + common_prefix(state.fed, newer);
  cache_->truncate(state.kv, std::min({sure, state.kv.num_tokens, sequence.size()}));
  if (options_.prefix_cache && state.kv.num_tokens >= PrefixCache::kMinTokens) {
    prefixes_.add(sequence.tokens, std::move(state.kv));
  } else {
    cache_->release(state.kv);
  }
}

void ModelDrafter::measure() {
  std::vector<int64_t> rows;
  for (const int64_t n : {1, 2, 4, 8, 16, 32, 64}) {
    if (n <= options_.max_num_seqs) rows.push_back(n);
  }
  times_ = measure_step_times(model_, *cache_, rows, exec_);
}

StepTimes measure_step_times(Model& model, KvCache& cache, std::span<const int64_t> rows,
                             Exec& exec) {
  std::vector<double> measured_rows;
  std::vector<double> seconds;
  KvSequence sequence = cache.new_sequence();
  Buffer logits;
  for (const int64_t n : rows) {
    // Where rows cost in proportion, the line through the last two points says the rest.
    if (seconds.size() >= 3 && seconds.back() > kSteep * seconds.front()) break;
    if (n >= cache.max_sequence_tokens() ||
        !cache.blocks_needed(sequence, n, n).fit_into(cache.free_blocks())) {
      break;
    }
    const std::vector<int32_t> tokens(static_cast<std::size_t>(n), 0);
    std::vector<int64_t> positions;
    std::vector<int32_t> logit_rows;
    for (int64_t i = 0; i < n; ++i) {
      positions.push_back(i);
      logit_rows.push_back(static_cast<int32_t>(i));
    }
    const std::vector<SamplingRow> greedy(model.can_sample() ? tokens.size() : 0);
    std::vector<int32_t> chosen(greedy.size());
    if (greedy.empty()) {
      logits.reserve(n * model.config().vocab_size * static_cast<int64_t>(sizeof(float)));
    }
    double best = std::numeric_limits<double>::infinity();
    // The very first warms up; a GPU's first step of a size allocates, its second makes a graph.
    const int first_round = n == 1 || !greedy.empty() ? 0 : 1;
    const int num_rounds = greedy.empty() ? 3 : 4;
    for (int round = first_round; round < num_rounds; ++round) {
      if (!cache.reserve(sequence, n)) break;
      const KvRows kv_rows{.sequence = &sequence, .row_begin = 0, .num_rows = n};
      const ForwardBatch batch = {.token_ids = tokens,
                                  .positions = positions,
                                  .sequences = {&kv_rows, 1},
                                  .logit_rows = logit_rows};
      const auto start = std::chrono::steady_clock::now();
      if (greedy.empty()) {
        model.forward(batch, cache, logits.as<float>(), nullptr, exec);
      } else {
        model.forward_and_sample(batch, cache, {.rows = greedy}, {.tokens = chosen}, nullptr, exec);
      }
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      if (round > 0) best = std::min(best, time.count());
      cache.release(sequence);
    }
    measured_rows.push_back(static_cast<double>(n));
    seconds.push_back(best);
  }
  if (measured_rows.empty()) return StepTimes({1}, {0});
  return StepTimes(std::move(measured_rows), std::move(seconds));
}

}  // namespace lathe
