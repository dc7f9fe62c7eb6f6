#include "compress/judge_miner.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "engine/logits.h"

namespace lathe {
namespace {

// Of the draft model. Where only choices come back from a GPU, more of them.
constexpr int64_t kChunkRows = 64;
constexpr int64_t kDeviceChunkRows = 512;

}  // namespace

struct JudgeMiner::Live {
  int64_t question = 0;
  std::optional<SemiGreedySearch> search;  // none while the reference is generated
  KvSequence draft_kv;
  std::vector<int32_t> choices;  // the draft's, of search->current()
  int64_t num_valid = 0;         // of them, and of the draft's cache behind the prompt
  MinedQuestion result;
  // The request in progress, or what came of it.
  std::vector<int32_t> prefix;  // generated part that its prompt ends with
  std::vector<int32_t> tokens;
  std::optional<FinishReason> reason;
  std::optional<Error> error;
  bool done = false;
};

JudgeMiner::JudgeMiner(Engine& engine, Model& draft, KvFormat kv_format, const MiningTask& task,
                       const MiningOptions& options, Exec& exec)
    : engine_(engine), draft_(draft), task_(task), options_(options), exec_(exec) {
  if (options.max_new_tokens < 2 || options.max_live < 1) {
    fail(ErrorCode::kInvalidArgument, "mining needs at least 2 new tokens and 1 question at once");
  }
  std::size_t longest = 0;
  for (const std::vector<int32_t>& prompt : task.prompts) {
    longest = std::max(longest, prompt.size());
  }
  const int64_t max_tokens = static_cast<int64_t>(longest) + options.max_new_tokens;
  const int64_t room =
      std::min(engine.options().max_sequence_tokens - 1, draft.config().max_position_embeddings);
  if (max_tokens > room) {
    fail(ErrorCode::kInvalidArgument, "the longest prompt and max_new_tokens are ", max_tokens,
         " tokens; the models take ", room);
  }
  draft_cache_ = draft.make_cache(kv_format, options.max_live * blocks_for(max_tokens) * kBlockSize,
                                  max_tokens);
}

JudgeMiner::~JudgeMiner() {
  for (const auto& live : live_) draft_cache_->release(live->draft_kv);
}

void JudgeMiner::run(std::vector<int64_t> questions,
                     const std::function<void(const MinedQuestion&)>& on_done) {
  std::reverse(questions.begin(), questions.end());
  while (!questions.empty() || !live_.empty()) {
    while (!questions.empty() && static_cast<int64_t>(live_.size()) < options_.max_live) {
      start(questions.back());
      questions.pop_back();
    }
    engine_.step();
    for (std::size_t i = 0; i < live_.size();) {
      Live& live = *live_[i];
      if (live.error) throw *live.error;
      if (live.reason) advance(live);
      if (!live.done) {
        ++i;
        continue;
      }
      on_done(live.result);
      draft_cache_->release(live.draft_kv);
      live_.erase(live_.begin() + static_cast<int64_t>(i));
    }
  }
}

void JudgeMiner::start(int64_t question) {
  live_.push_back(std::make_unique<Live>());
  Live& live = *live_.back();
  live.question = question;
  live.result.question = question;
  live.draft_kv = draft_cache_->new_sequence();
  submit(live, {}, options_.max_new_tokens);
}

// Lets the target go on behind the question and `prefix`.
void JudgeMiner::submit(Live& live, std::vector<int32_t> prefix, int64_t max_tokens) {
  live.prefix = std::move(prefix);
  live.tokens.clear();
  live.reason.reset();
  Request request;
  request.prompt = task_.prompts[static_cast<std::size_t>(live.question)];
  request.prompt.insert(request.prompt.end(), live.prefix.begin(), live.prefix.end());
  request.params.temperature = 0;
  request.params.max_tokens = max_tokens;
  request.params.stop = task_.stop;
  request.wants_hidden = live.search.has_value();
  request.on_output = [&live](const RequestOutput& output) {
    live.tokens.insert(live.tokens.end(), output.token_ids.begin(), output.token_ids.end());
    live.result.generated_tokens += std::ssize(output.token_ids);
    live.result.features.insert(live.result.features.end(), output.hidden.begin(),
                                output.hidden.end());
    if (output.error != nullptr) live.error = *output.error;
    live.reason = output.finish_reason;
  };
  engine_.add_request(std::move(request));
}

// A request of the question has ended.
void JudgeMiner::advance(Live& live) {
  std::vector<int32_t> answer = live.prefix;
  const bool cut_by_draft = !answer.empty() && ends(answer.back());
  // The draft's token was the last that the limit allows: what follows was asked for its hidden
  // state alone.
  const bool is_full = !cut_by_draft && std::ssize(answer) >= options_.max_new_tokens;
  if (!cut_by_draft && !is_full) {
    answer.insert(answer.end(), live.tokens.begin(), live.tokens.end());
  }
  const bool truncated = is_full || (!cut_by_draft && live.reason == FinishReason::kLength);
  Outcome outcome;
  if (!truncated) outcome = task_.outcome(live.question, text_of(answer));
  if (!live.search) {
    const bool usable = outcome && (!task_.is_usable || task_.is_usable(*outcome));
    if (!usable) {
      live.done = true;
      return;
    }
    live.result.used = true;
    live.result.outcome = *outcome;
    live.search.emplace(std::move(answer), *outcome);
  } else {
    const auto accepted_before = live.search->current();
    live.search->report(std::move(answer), outcome, truncated);
    if (!live.search->records().back().important) {
      live.num_valid = std::min(live.num_valid, live.search->position() + 1);
    }
  }
  if (find_next(live)) {
    const std::vector<int32_t> prefix = live.search->tried_prefix();
    const bool is_end = ends(prefix.back());
    const auto left = options_.max_new_tokens - std::ssize(prefix);
    submit(live, prefix, is_end ? 1 : std::max<int64_t>(1, left));
    return;
  }
  live.result.answer = live.search->current();
  live.result.tokens = live.search->records();
  live.done = true;
}

bool JudgeMiner::find_next(Live& live) {
  update_choices(live);
  return live.search->find_next(live.choices);
}

// The draft's greedy choice at every position of the answer, teacher-forced: only what lies behind
// the last change is computed again.
void JudgeMiner::update_choices(Live& live) {
  const std::vector<int32_t>& prompt = task_.prompts[static_cast<std::size_t>(live.question)];
  const std::vector<int32_t>& answer = live.search->current();
  const auto prompt_size = std::ssize(prompt);
  const int64_t vocab_size = draft_.config().vocab_size;
  const auto common_size =
      static_cast<std::size_t>(std::min(vocab_size, engine_.config().vocab_size));
  live.choices.resize(answer.size());
  // Choice t comes from the row whose input is the token before position t.
  int64_t position =
      std::min(live.draft_kv.num_tokens, std::max<int64_t>(0, prompt_size + live.num_valid - 1));
  draft_cache_->truncate(live.draft_kv, position);
  const int64_t end = prompt_size + std::ssize(answer) - 1;
  std::vector<int32_t> tokens, logit_rows, best;
  std::vector<int64_t> positions;
  // Choices among all that the draft knows are the ones among what both know.
  const bool chooses_there = draft_.can_sample() && vocab_size <= engine_.config().vocab_size;
  const std::vector<SamplingRow> greedy(chooses_there ? kDeviceChunkRows : 0);
  if (!chooses_there) {
    logits_.reserve(kChunkRows * vocab_size * static_cast<int64_t>(sizeof(float)));
  }
  while (position < end) {
    const int64_t rows = std::min(chooses_there ? kDeviceChunkRows : kChunkRows, end - position);
    tokens.clear();
    positions.clear();
    logit_rows.clear();
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t p = position + i;
      const int32_t token = p < prompt_size ? prompt[static_cast<std::size_t>(p)]
                                            : answer[static_cast<std::size_t>(p - prompt_size)];
      if (token >= vocab_size) {
        fail(ErrorCode::kInvalidArgument, "the draft model has no token ", token);
      }
      tokens.push_back(token);
      positions.push_back(p);
      if (p >= prompt_size - 1) logit_rows.push_back(static_cast<int32_t>(i));
    }
    if (!draft_cache_->reserve(live.draft_kv, rows)) {
      fail(ErrorCode::kInternal, "the draft's cache has no room; it was sized for all questions");
    }
    const KvRows kv_rows{.sequence = &live.draft_kv, .row_begin = 0, .num_rows = rows};
    const ForwardBatch batch = {.token_ids = tokens,
                                .positions = positions,
                                .sequences = {&kv_rows, 1},
                                .logit_rows = logit_rows};
    best.resize(logit_rows.size());
    if (chooses_there) {
      draft_.forward_and_sample(batch, *draft_cache_,
                                {.rows = std::span(greedy).first(logit_rows.size())},
                                {.tokens = best}, nullptr, exec_);
    } else {
      draft_.forward(batch, *draft_cache_, logit_rows.empty() ? nullptr : logits_.as<float>(),
                     nullptr, exec_);
      exec_.threads.parallel_for(std::ssize(best), 1, [&](int64_t begin, int64_t stop, int) {
        for (int64_t i = begin; i < stop; ++i) {
          best[static_cast<std::size_t>(i)] =
              static_cast<int32_t>(argmax({logits_.as<float>() + i * vocab_size, common_size}));
        }
      });
    }
    for (std::size_t i = 0; i < best.size(); ++i) {
      const int64_t p = positions[static_cast<std::size_t>(logit_rows[i])];
      live.choices[static_cast<std::size_t>(p + 1 - prompt_size)] = best[i];
    }
    position += rows;
  }
  live.num_valid = std::ssize(answer);
}

std::string JudgeMiner::text_of(std::span<const int32_t> tokens) const {
  std::vector<int32_t> known;
  for (const int32_t token : tokens) {
    if (token < engine_.tokenizer()->vocab_size()) known.push_back(token);
  }
  return cut_at_stop(engine_.tokenizer()->decode(known, /*skip_special=*/true), task_.stop);
}

bool JudgeMiner::ends(int32_t token) const {
  const std::span<const int32_t> list = engine_.end_tokens();
  return std::find(list.begin(), list.end(), token) != list.end();
}

std::string cut_at_stop(std::string text, const std::vector<std::string>& stops) {
  std::size_t end = text.size();
  for (const std::string& stop : stops) end = std::min(end, text.find(stop));
  text.resize(std::min(end, text.size()));
  return text;
}

}  // namespace lathe
