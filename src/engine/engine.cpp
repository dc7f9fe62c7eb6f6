#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "base/error.h"
#include "engine/speculation/model_drafter.h"

namespace lathe {
namespace {

constexpr int kMaxSamplers = 8;  // some megabytes of scratch each

// Each token once, with the sum of its biases, so that the order of adding does not matter.
void merge_biases(std::vector<LogitBias>& biases) {
  std::stable_sort(biases.begin(), biases.end(),
                   [](const LogitBias& a, const LogitBias& b) { return a.token < b.token; });
  std::size_t count = 0;
  for (const LogitBias& bias : biases) {
    if (count > 0 && biases[count - 1].token == bias.token) {
      biases[count - 1].bias += bias.bias;
    } else {
      biases[count++] = bias;
    }
  }
  biases.resize(count);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void check_judge_params(const SpeculativeParams& params, bool has_judge) {
  const auto check = [](const char* field, double value) {
    if (value >= 0 || value == -1) return;  // NaN fails
    fail(ErrorCode::kInvalidArgument, "speculative.", field, " is ", value,
         "; it must be at least 0, or -1 for the engine's choice");
  };
  check("judge_threshold", params.judge_threshold);
  check("max_judge_accepts", static_cast<double>(params.max_judge_accepts));
  check("max_logprob_deficit", params.max_logprob_deficit);
  if (params.judge_threshold > 0 && !has_judge) {
    fail(ErrorCode::kInvalidArgument, "speculative.judge_threshold is ", params.judge_threshold,
         ", but there is no judge here");
  }
}

}  // namespace

std::string_view to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
  }
  return "unknown";
}

Engine::Engine(Model& model, std::unique_ptr<KvCache> cache, const Tokenizer* tokenizer,
               const EngineOptions& options, Exec& exec)
    : model_(model),
      cache_(std::move(cache)),
      tokenizer_(tokenizer),
      options_(options),
      exec_(exec),
      scheduler_(options, *cache_),
      device_sampling_(model.config().vocab_size) {
  for (const int64_t token : model.config().eos_token_ids) {
    end_tokens_.push_back(static_cast<int32_t>(token));
  }
  if (tokenizer != nullptr) {
    const std::span<const int32_t> ends = tokenizer->end_ids();
    end_tokens_.insert(end_tokens_.end(), ends.begin(), ends.end());
  }

  for (int i = 0; i < std::min(exec.threads.num_threads(), kMaxSamplers); ++i) {
    samplers_.emplace_back(model.config().vocab_size);
  }
  // A prompt may get one row beyond the budget (Scheduler::prefill_budget).
  const auto max_rows = static_cast<std::size_t>(options.max_batch_tokens + 1);
  const auto max_seqs = static_cast<std::size_t>(options.max_num_seqs);
  token_ids_.reserve(max_rows);
  positions_.reserve(max_rows);
  kv_rows_.reserve(max_seqs);
  logit_rows_.reserve(max_rows);
  sampled_.reserve(max_rows);
  verdicts_.reserve(max_rows);
  choices_.reserve(max_seqs);
  publish_stats();
}

// Its drafter knows the sequences.
Engine::~Engine() { speculator_.reset(); }

void Engine::set_drafter(std::unique_ptr<Drafter> drafter, const SpeculationOptions& options) {
  validate(options);
  StepTimes times;
  if (options.num_tokens < 0) {
    static constexpr int64_t kRows[] = {1, 2, 4, 8, 16, 32, 64, 128};
    times = measure_step_times(model_, *cache_, kRows, exec_);
  }
  speculator_ = std::make_unique<Speculator>(std::move(drafter), options, std::move(times),
                                             options_.max_num_seqs);
}

void Engine::set_parker(std::unique_ptr<PrefixParker> parker) {
  parker_ = std::move(parker);
  scheduler_.set_parker(parker_.get());
  publish_stats();  // what the store has found
}

RequestId Engine::add_request(Request request) {
  std::unique_ptr<Sequence> sequence = make_sequence(std::move(request));
  const std::lock_guard lock(mutex_);
  const RequestId id = next_id_++;
  sequence->id = id;
  arrivals_.push_back(std::move(sequence));
  work_arrived_.notify_one();
  return id;
}

void Engine::set_judge(std::unique_ptr<Judge> judge, double threshold) {
  if (speculator_ == nullptr) {
    fail(ErrorCode::kInvalidArgument, "a judge decides about draft tokens; it needs a draft");
  }
  if (!(threshold >= 0)) {
    fail(ErrorCode::kInvalidArgument, "the judge's threshold is ", threshold,
         "; it must be at least 0 (0: exact)");
  }
  if (judge != nullptr && judge->needs_draft_logits() && !speculator_->has_draft_logits()) {
    // It would never let anything pass: exact without saying so.
    fail(ErrorCode::kInvalidArgument, "the judge ", judge->name(),
         " compares the target's probabilities with the draft's; this draft has none");
  }
  judge_ = std::move(judge);
  judge_threshold_ = threshold;
  speculator_->keep_draft_logits(judge_ != nullptr && judge_->needs_draft_logits());
}

std::unique_ptr<Sequence> Engine::make_sequence(Request request) const {
  const int64_t vocab_size = config().vocab_size;
  validate(request.params, vocab_size);
  if (tokenizer_ == nullptr && !request.params.stop.empty()) {
    fail(ErrorCode::kInvalidArgument, "stop strings need a tokenizer; this model has none");
  }
  const auto prompt_size = static_cast<int64_t>(request.prompt.size());
  if (prompt_size == 0) fail(ErrorCode::kInvalidArgument, "the prompt is empty");
  if (prompt_size >= options_.max_sequence_tokens) {
    fail(ErrorCode::kInvalidArgument, "the prompt has ", prompt_size,
         " tokens; with one to generate, at most ", options_.max_sequence_tokens - 1, " fit",
         options_.max_sequence_tokens < config().max_position_embeddings
             ? str("; the model goes to ", config().max_position_embeddings,
                   ": raise --context or --cache-tokens (now ", options_.cache_tokens, ")")
             : str(" the model's context of ", options_.max_sequence_tokens));
  }
  for (const int32_t token : request.prompt) {
    if (token >= 0 && token < vocab_size) continue;
    fail(ErrorCode::kInvalidArgument, "the prompt has token ", token, "; the vocabulary has ",
         vocab_size, " tokens");
  }

  merge_biases(request.params.logit_bias);
  auto sequence = std::make_unique<Sequence>();
  sequence->arrival = std::chrono::steady_clock::now();
  const int64_t room = options_.max_sequence_tokens - prompt_size;
  const int64_t wanted = request.params.max_tokens;
  sequence->max_new_tokens = wanted < 0 ? room : std::min(wanted, room);
  sequence->prompt_size = prompt_size;
  sequence->tokens = std::move(request.prompt);
  sequence->tokens.reserve(static_cast<std::size_t>(prompt_size + sequence->max_new_tokens));
  sequence->request = std::move(request);
  const SamplingParams& params = sequence->request.params;
  sequence->kv = cache_->new_sequence();
  if (params.has_penalties()) {
    sequence->counts = TokenCounts(sequence->tokens, vocab_size, sequence->max_new_tokens);
  }
  sequence->text = OutputText(tokenizer_, params);
  sequence->end_tokens = end_tokens_;
  const int64_t wanted_drafts = sequence->request.speculative.num_tokens;
  if (wanted_drafts < -1 || wanted_drafts > kMaxDraftTokens) {
    fail(ErrorCode::kInvalidArgument, "speculative.num_tokens is ", wanted_drafts,
         "; it must be in [0, ", kMaxDraftTokens, "], or -1 for the engine's choice");
  }
  check_judge_params(sequence->request.speculative, judge_ != nullptr);
  const int64_t window = speculator_ != nullptr ? 1 + kMaxDraftTokens : 1;
  if (params.logprobs > 0) sequence->top.resize(static_cast<std::size_t>(params.logprobs * window));
  return sequence;
}

void Engine::abort(RequestId id) {
  const std::lock_guard lock(mutex_);
  aborts_.push_back(id);
  work_arrived_.notify_one();
}

bool Engine::has_work() const {
  const std::lock_guard lock(mutex_);
  return !is_idle_ || !arrivals_.empty() || !aborts_.empty();
}

void Engine::wait_for_work(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  work_arrived_.wait_for(lock, timeout,
                         [&] { return !is_idle_ || !arrivals_.empty() || !aborts_.empty(); });
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void Engine::set_profile(StepProfile* profile) {
  profile_ = profile;
  model_.set_profile(profile);
}

bool Engine::step() {
  receive();
  const auto begin = std::chrono::steady_clock::now();
  propose_drafts();
  const std::span<const ScheduledRows> rows = scheduler_.schedule();
  if (rows.empty()) return fail_stuck();
  build_batch(rows);
  const auto start = std::chrono::steady_clock::now();
  if (forward(rows)) {
    sample();
    if (logit_rows_.size() > choices_.size()) windows_.verify_seconds += seconds_since(start);
    deliver();
    const bool only_decodes = logit_rows_.size() == token_ids_.size();
    if (speculator_ != nullptr && only_decodes) speculator_->learn_time(seconds_since(begin));
  }
  ++num_steps_;
  publish_stats();
  return true;
}

// Takes up what callers have left since the last step.
void Engine::receive() {
  const StageTimer timer(profile_, Stage::kSchedule);
  {
    const std::lock_guard lock(mutex_);
    std::swap(taken_arrivals_, arrivals_);
    std::swap(taken_aborts_, aborts_);
    is_idle_ = is_idle_ && taken_arrivals_.empty();
  }
  for (std::unique_ptr<Sequence>& sequence : taken_arrivals_) {
    scheduler_.add(sequence.get());
    num_prompt_tokens_ += sequence->prompt_size;
    const RequestId id = sequence->id;
    sequences_.emplace(id, std::move(sequence));
  }
  taken_arrivals_.clear();
  for (const RequestId id : taken_aborts_) {
    const auto found = sequences_.find(id);
    if (found != sequences_.end()) finish(*found->second, FinishReason::kAbort, nullptr);
  }
  taken_aborts_.clear();
}

void Engine::propose_drafts() {
  if (speculator_ == nullptr) return;
  const StageTimer timer(profile_, Stage::kDraft);
  const auto start = std::chrono::steady_clock::now();
  speculator_->propose(scheduler_.running(), options_.max_batch_tokens);
  windows_.draft_seconds += seconds_since(start);
}

void Engine::build_batch(std::span<const ScheduledRows> rows) {
  const StageTimer timer(profile_, Stage::kSchedule);
  token_ids_.clear();
  positions_.clear();
  kv_rows_.clear();
  logit_rows_.clear();
  choices_.clear();
  samples_on_device_ = model_.can_sample();
  keeps_hidden_ = false;
  for (const ScheduledRows& scheduled : rows) {
    Sequence& sequence = *scheduled.sequence;
    if (sequence.queue_seconds < 0) {
      const auto waited = std::chrono::steady_clock::now() - sequence.arrival;
      sequence.queue_seconds = std::chrono::duration<double>(waited).count();
    }
    kv_rows_.push_back({.sequence = &sequence.kv,
                        .row_begin = static_cast<int64_t>(token_ids_.size()),
                        .num_rows = scheduled.num_rows + scheduled.num_drafts});
    for (int64_t i = 0; i < scheduled.num_rows; ++i) {
      const int64_t position = sequence.kv.num_tokens + i;
      token_ids_.push_back(sequence.tokens[static_cast<std::size_t>(position)]);
      positions_.push_back(position);
    }
    if (!scheduled.reaches_end()) continue;
    choices_.push_back({.sequence = &sequence,
                        .first_row = logit_rows_.size(),
                        .num_drafts = scheduled.num_drafts,
                        .error = nullptr});
    logit_rows_.push_back(static_cast<int32_t>(token_ids_.size()) - 1);
    for (const int32_t token : sequence.draft.tokens) {
      logit_rows_.push_back(static_cast<int32_t>(token_ids_.size()));
      positions_.push_back(positions_.back() + 1);
      token_ids_.push_back(token);
    }
    // A device draws by other random numbers than `coupled` asks for, and keeps its logits.
    const SamplingParams& params = sequence.request.params;
    const bool wants_hidden = sequence.request.wants_hidden && sequence.num_output() == 0;
    const bool is_judged = scheduled.num_drafts > 0 && judge_threshold(choices_.back()) > 0;
    if (params.coupled && params.temperature > 0) samples_on_device_ = false;
    if (is_judged && judge_->needs_logits()) samples_on_device_ = false;
    if (wants_hidden || (is_judged && judge_->needs_hidden())) keeps_hidden_ = true;
  }
  sampled_.resize(logit_rows_.size());
  verdicts_.assign(logit_rows_.size(), {});
}

// False when the forward pass failed; the step's requests have then been ended.
bool Engine::forward(std::span<const ScheduledRows> rows) {
  const ForwardBatch batch = {.token_ids = token_ids_,
                              .positions = positions_,
                              .sequences = kv_rows_,
                              .logit_rows = logit_rows_};
  const auto num_logits = static_cast<int64_t>(logit_rows_.size());
  try {
    if (keeps_hidden_) {
      hidden_.reserve(num_logits * config().hidden_size * static_cast<int64_t>(sizeof(float)));
    }
    if (samples_on_device_) {
      device_sampling_.clear();
      for (const Choice& choice : choices_) {
        device_sampling_.add(*choice.sequence, choice.num_drafts);
      }
      model_.forward_and_sample(batch, *cache_, device_sampling_.batch(),
                                device_sampling_.results(),
                                keeps_hidden_ ? hidden_.as<float>() : nullptr, exec_);
      return true;
    }
    logits_.reserve(num_logits * config().vocab_size * static_cast<int64_t>(sizeof(float)));
    model_.forward(batch, *cache_, logits_.as<float>(),
                   keeps_hidden_ ? hidden_.as<float>() : nullptr, exec_);
    return true;
  } catch (const Error& error) {
    for (const ScheduledRows& r : rows) finish(*r.sequence, FinishReason::kError, &error);
  } catch (const std::bad_alloc&) {
    const Error error(ErrorCode::kOutOfMemory, "out of memory in the forward pass");
    for (const ScheduledRows& r : rows) finish(*r.sequence, FinishReason::kError, &error);
  }
  return false;
}

void Engine::sample() {
  const StageTimer timer(profile_, Stage::kSample);
  if (samples_on_device_) {
    for (Choice& choice : choices_) choose_tokens(choice, nullptr);
    return;
  }
  const auto num_choices = static_cast<int64_t>(choices_.size());
  const auto num_samplers = static_cast<int64_t>(samplers_.size());
  const int64_t grain = std::max<int64_t>(1, (num_choices + num_samplers - 1) / num_samplers);
  exec_.threads.parallel_for(num_choices, grain, [&](int64_t begin, int64_t end, int) {
    Sampler& sampler = samplers_[static_cast<std::size_t>(begin / grain)];
    for (int64_t i = begin; i < end; ++i) {
      choose_tokens(choices_[static_cast<std::size_t>(i)], &sampler);
    }
  });
}

void Engine::choose_tokens(Choice& choice, Sampler* sampler) {
  try {
    choose_window(choice, sampler);
  } catch (const Error& error) {
    choice.error = std::make_unique<Error>(error);
  }
}

// Row after row, until a draft token is rejected; the row behind the last accepted one gives a
// token of its own. Penalties and constraint move on with each token that is emitted, so a row is
// judged in the state behind d_1..d_i and nothing has to be taken back.
void Engine::choose_window(Choice& choice, Sampler* sampler) {
  Sequence& sequence = *choice.sequence;
  const SamplingParams& params = sequence.request.params;
  TokenConstraint* constraint = sequence.request.constraint.get();
  const auto num_top = static_cast<std::size_t>(std::max<int64_t>(0, params.logprobs));
  for (int64_t i = 0; i <= choice.num_drafts; ++i) {
    const std::size_t row = choice.first_row + static_cast<std::size_t>(i);
    const std::span<TokenLogprob> top =
        std::span(sequence.top).subspan(static_cast<std::size_t>(i) * num_top, num_top);
    const int64_t position = sequence.size() + i;
    const bool has_draft = i < choice.num_drafts;
    const int32_t draft = has_draft ? sequence.draft.tokens[static_cast<std::size_t>(i)] : -1;
    Acceptance verdict;
    if (sampler == nullptr) {
      verdict = device_sampling_.take(static_cast<int64_t>(row), params, position, draft, top);
    } else if (has_draft) {
      verdict = sampler->verify(logits_row(row), params, sequence.counts, constraint, position,
                                draft, sequence.draft.distribution(i), top);
    } else {
      verdict.sampled =
          sampler->sample(logits_row(row), params, sequence.counts, constraint, position, top);
    }
    TokenSource& source = verdicts_[row].source;
    if (!has_draft) {
      source = choice.num_drafts == 0 ? TokenSource::kPlain : TokenSource::kBonus;
    } else if (verdict.accepted) {
      source = TokenSource::kMatch;
    } else {
      verdict.accepted = lets_pass(choice, i, sampler, verdict);
      source = verdict.accepted ? TokenSource::kJudge : TokenSource::kCorrection;
    }
    choice.num_passed += verdict.accepted;
    sampled_[row] = verdict.sampled;
    ++choice.num_tokens;
    sequence.advance(verdict.sampled.token);
    if (!verdict.accepted || sequence.is_end_token(verdict.sampled.token)) break;
  }
}

double Engine::judge_threshold(const Choice& choice) const {
  if (judge_ == nullptr) return 0;
  const SpeculativeParams& params = choice.sequence->request.speculative;
  const SpeculationUsage& used = choice.sequence->speculation;
  const int64_t accepted = used.judge_accepted + choice.judge_accepted;
  const double deficit = used.logprob_deficit + choice.logprob_deficit;
  if (params.max_judge_accepts >= 0 && accepted >= params.max_judge_accepts) return 0;
  if (params.max_logprob_deficit >= 0 && deficit >= params.max_logprob_deficit) return 0;
  return params.judge_threshold >= 0 ? params.judge_threshold : judge_threshold_;
}

// A draft token that the exact rule rejects, before the judge. When it passes, it takes the place
// of the exact choice, and the window goes on: the rows behind it were computed with it. The hidden
// state at the draft token is that of the row whose input it is, one behind the row that chose
// against it.
bool Engine::lets_pass(Choice& choice, int64_t draft, Sampler* sampler, Acceptance& exact) {
  const Sequence& sequence = *choice.sequence;
  const SamplingParams& params = sequence.request.params;
  const double threshold = judge_threshold(choice);
  if (!(threshold > 0)) return false;
  const std::size_t row = choice.first_row + static_cast<std::size_t>(draft);
  JudgedToken token{.draft = sequence.draft.tokens[static_cast<std::size_t>(draft)],
                    .logits = {},
                    .hidden = {},
                    .draft_logits = sequence.draft.logits_of(draft),
                    .target_prob = 0};
  double gap = 0;
  if (sampler == nullptr) {
    const SampledDraft& rejected = device_sampling_.rejected(static_cast<int64_t>(row));
    token.target_prob = static_cast<double>(rejected.prob);
    gap = static_cast<double>(rejected.gap);
  } else {
    token.logits = logits_row(row);
    token.target_prob = sampler->probability(token.logits, params, token.draft);
    gap = static_cast<double>(token.logits[static_cast<std::size_t>(exact.sampled.token)]) -
          static_cast<double>(token.logits[static_cast<std::size_t>(token.draft)]);
  }
  if (keeps_hidden_) token.hidden = hidden_row(row + 1);
  ++choice.num_judged;
  Verdict& verdict = verdicts_[row];
  verdict.probability = judge_->probability(token);
  // What a grammar, top-k, top-p or min-p forbids has no probability, whatever the judge.
  if (!(token.target_prob > 0) || !judge_->accepts(token, threshold)) return false;
  verdict.logprob_deficit = gap;
  ++choice.judge_accepted;
  choice.logprob_deficit += gap;
  exact.sampled.token = token.draft;
  if (sampler != nullptr) {
    sampler->set_logprob(params, exact.sampled);
  } else if (params.logprobs >= 0) {
    exact.sampled.logprob = device_sampling_.rejected(static_cast<int64_t>(row)).logprob;
  }
  return true;
}

std::span<float> Engine::logits_row(std::size_t row) {
  const auto size = static_cast<std::size_t>(config().vocab_size);
  return {logits_.as<float>() + row * size, size};
}

std::span<const float> Engine::hidden_row(std::size_t row) const {
  const auto size = static_cast<std::size_t>(config().hidden_size);
  return {hidden_.as<float>() + row * size, size};
}

void Engine::deliver() {
  const StageTimer timer(profile_, Stage::kSchedule);
  for (Choice& choice : choices_) {
    Sequence& sequence = *choice.sequence;
    if (choice.num_drafts > 0) {
      // The length of windows follows from all that passes, whoever let it.
      speculator_->learn(sequence, choice.num_drafts, choice.num_passed);
      count_window(choice);
      sequence.draft.clear();
    }
    bool goes_on = true;
    for (int64_t i = 0; goes_on && i < choice.num_tokens; ++i) {
      const std::size_t row = choice.first_row + static_cast<std::size_t>(i);
      count_token(choice, i);
      goes_on = deliver_token(sequence, sampled_[row],
                              keeps_hidden_ ? hidden_row(row) : std::span<const float>());
    }
    if (!goes_on) continue;
    // Rejected drafts leave the cache; the newest token has not been in it.
    if (choice.num_drafts > 0) cache_->truncate(sequence.kv, sequence.size() - 1);
    if (choice.error != nullptr) finish(sequence, FinishReason::kError, choice.error.get());
  }
}

void Engine::count(Sequence& sequence, const SpeculationUsage& news) {
  sequence.speculation += news;
  speculation_ += news;
}

void Engine::count_window(const Choice& choice) {
  SpeculationUsage news;
  news.cycles = 1;
  news.drafted = choice.num_drafts;
  news.judged = choice.num_judged;
  count(*choice.sequence, news);
  ++windows_.windows_of[static_cast<std::size_t>(choice.num_drafts)];
  if (choice.num_judged == 0) return;
  constexpr auto& bounds = SpeculationStats::kJudgeScoreBounds;
  for (int64_t i = 0; i < choice.num_tokens; ++i) {
    const double p = verdicts_[choice.first_row + static_cast<std::size_t>(i)].probability;
    if (std::isnan(p)) continue;
    const auto bucket = std::lower_bound(bounds.begin(), bounds.end() - 1, p) - bounds.begin();
    ++windows_.judge_scores[static_cast<std::size_t>(bucket)];
    windows_.judge_score_sum += p;
  }
}

// Before it is delivered: an output says how far it has come with the token.
void Engine::count_token(const Choice& choice, int64_t idx) {
  const Verdict& verdict = verdicts_[choice.first_row + static_cast<std::size_t>(idx)];
  SpeculationUsage news;
  switch (verdict.source) {
    case TokenSource::kPlain:
      return;
    case TokenSource::kMatch:
      news.accepted = 1;
      break;
    case TokenSource::kJudge:
      news.judge_accepted = 1;
      news.logprob_deficit = verdict.logprob_deficit;
      break;
    case TokenSource::kCorrection:
      news.corrected = 1;
      break;
    case TokenSource::kBonus:
      news.bonus = 1;
      break;
  }
  if (news.accepted + news.judge_accepted > 0) {
    ++windows_.accepted_at[static_cast<std::size_t>(idx)];
  }
  count(*choice.sequence, news);
}

// False when the sequence ended with it.
bool Engine::deliver_token(Sequence& sequence, const SampledToken& sampled,
                           std::span<const float> hidden) {
  const int32_t token = sampled.token;
  sequence.tokens.push_back(token);
  ++num_generated_;

  RequestOutput output;
  output.token_ids = {&token, 1};
  if (sequence.request.wants_hidden && sequence.num_output() == 1) output.hidden = hidden;
  if (sequence.request.params.logprobs >= 0) output.logprobs = {&sampled, 1};
  if (sequence.is_end_token(token)) {
    output.finish_reason = FinishReason::kStop;
    output.text = sequence.text.finish();
  } else {
    const bool is_last = sequence.num_output() == sequence.max_new_tokens;
    output.text = sequence.text.append(token, is_last);
    if (is_last) output.finish_reason = FinishReason::kLength;
    if (sequence.text.found_stop()) output.finish_reason = FinishReason::kStop;
  }
  const bool goes_on = emit(sequence, output) && !output.finish_reason;
  if (!goes_on) retire(sequence, true);
  return goes_on;
}

// False when the callback failed, which ends the request silently: nobody listens.
bool Engine::emit(Sequence& sequence, RequestOutput output) {
  output.id = sequence.id;
  output.usage = sequence.usage();
  try {
    if (sequence.request.on_output) sequence.request.on_output(output);
    return true;
  } catch (...) {
    return false;
  }
}

void Engine::finish(Sequence& sequence, FinishReason reason, const Error* error) {
  RequestOutput output;
  output.text = sequence.text.finish();
  output.finish_reason = reason;
  output.error = error;
  emit(sequence, output);
  retire(sequence, error == nullptr);
}

void Engine::retire(Sequence& sequence, bool keep_prefix) {
  const RequestId id = sequence.id;
  // Only tokens that were delivered stay in the cache for others.
  if (sequence.kv.num_tokens >= sequence.size()) {
    cache_->truncate(sequence.kv, sequence.size() - 1);
  }
  if (speculator_ != nullptr) speculator_->retire(sequence);
  scheduler_.remove(&sequence, keep_prefix);
  sequences_.erase(id);
}

// Nothing can run. When sequences wait all the same, the oldest one does not fit into an empty
// cache.
bool Engine::fail_stuck() {
  Sequence* stuck = scheduler_.oldest_waiting();
  if (stuck != nullptr) {
    const Error error(ErrorCode::kOutOfMemory,
                      str("the cache has ", cache_->num_free_blocks(), " free blocks of ",
                          kBlockSize, " tokens; a sequence of ", stuck->size(),
                          " tokens does not fit; --cache-tokens makes it larger"));
    finish(*stuck, FinishReason::kError, &error);
  }
  publish_stats();
  return stuck != nullptr;
}

double EngineStats::cache_usage() const {
  const auto share = [](int64_t part, int64_t whole) {
    return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
  };
  return std::max(share(running_cache_blocks.live, cache_blocks.live),
                  share(running_cache_blocks.coded, cache_blocks.coded));
}

void Engine::publish_stats() {
  const std::lock_guard lock(mutex_);
  is_idle_ = sequences_.empty();
  stats_.num_running = scheduler_.num_running();
  stats_.num_waiting = scheduler_.num_waiting();
  stats_.num_preemptions = scheduler_.num_preemptions();
  stats_.prompt_tokens = num_prompt_tokens_;
  stats_.generated_tokens = num_generated_;
  stats_.steps = num_steps_;
  stats_.cache_blocks = cache_->all_blocks();
  stats_.free_cache_blocks = cache_->free_blocks();
  stats_.running_cache_blocks = cache_->running_blocks();
  stats_.cache_block_bytes = {.live = cache_->bytes_per_block(),
                              .coded = cache_->bytes_per_coded_block()};
  const ModelConfig& config = model_.config();
  stats_.cache_block_numbers = 2 * config.num_layers * config.kv_size() * kBlockSize;
  stats_.shared_prompt_tokens = scheduler_.num_shared_tokens();
  stats_.speculation = speculation_;
  stats_.windows = windows_;
  if (parker_ != nullptr) stats_.parking = parker_->stats();
}

}  // namespace lathe
